//! Imports of each kind of archive, through the confined helper.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "skipped tests say so")]

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use atoll_image::{ImageErrorKind, ProgressSink};
use support::{Built, Tar, gzip, scratch};

#[tokio::test]
async fn a_root_file_system_becomes_an_image() {
    let scratch = scratch().await;
    let tar = Tar::new()
        .directory("./bin")
        .file_with("./bin/tool", b"#!", |header| {
            header.set_mode(0o4755);
            header.set_uid(7);
            header.set_gid(65_535);
        })
        .symlink("./bin/link", "tool")
        .hard_link("./bin/hard", "bin/tool")
        .entry(tar::EntryType::Fifo, b"./fifo", b"", b"", |_| {})
        .finish();
    let tree = scratch.import(&gzip(&tar), "demo/root:1").await.unwrap();
    let tool = std::fs::metadata(tree.join("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.gid()), (0o4755, 7, 65_535));
    assert_eq!((tool.mtime(), tool.nlink()), (1_600_000_000, 2));
    assert_eq!(std::fs::read_link(tree.join("bin/link")).unwrap().to_str(), Some("tool"));
    assert!(std::fs::symlink_metadata(tree.join("fifo")).unwrap().file_type().is_fifo());

    let image = scratch.store.resolve(&"demo/root:1".parse().unwrap()).unwrap();
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.layers, [tree]);
    assert!(scratch.store.resolve(&"demo/root:2".parse().unwrap()).is_none());
}

#[tokio::test]
async fn an_oci_layout_keeps_its_digest_and_its_layers_are_shared() {
    let scratch = scratch().await;
    let base = Tar::new().directory("etc/").file("etc/a", b"low").finish();
    let top = Tar::new().file("etc/.wh.a", b"").file("etc/b", b"high").finish();
    let one = Built::new(&[base.clone(), top], serde_json::json!({"Cmd": ["x"], "User": "7:8"}));
    let two = Built::new(&[base, Tar::new().file("c", b"c").finish()], serde_json::json!({}));
    let file = scratch.write("one.tar", &one.layout("example.org/one:1"));
    let images = scratch.store.import(file, None, ProgressSink::none()).await.unwrap();
    assert_eq!((images.len(), &images[0].digest), (1, &one.digest()));
    assert_eq!(images[0].references, ["example.org/one:1"]);
    let first = scratch.store.get(&one.digest()).unwrap();
    assert_eq!(first.config.user, "7:8");
    let whiteout = std::fs::symlink_metadata(first.layers[0].join("etc/a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "an overlayfs whiteout");

    let file = scratch.write("two.tar", &two.layout("latest"));
    let error = scratch.store.import(&file, None, ProgressSink::none()).await.unwrap_err();
    assert!(error.to_string().contains("give it a reference"), "{error}");
    scratch.store.import(&file, Some("two".parse().unwrap()), ProgressSink::none()).await.unwrap();
    let second = scratch.store.get(&two.digest()).unwrap();
    assert_eq!(first.layers[1], second.layers[1], "unpacked once");
    assert_eq!(scratch.names("layers").len(), 3);
    assert_eq!(scratch.names("staging"), Vec::<String>::new());
}

#[tokio::test]
async fn docker_save_archives_old_and_linked() {
    let scratch = scratch().await;
    let layer = Tar::new().file("a", b"a").finish();
    let built =
        Built::new(&[layer.clone(), layer.clone()], serde_json::json!({"Entrypoint": ["/a"]}));
    let config_name = format!("{}.json", atoll_image::Digest::of(&built.config).hex());
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": ["demo:1", "demo:latest"],
        "Layers": [format!("{one}/layer.tar"), format!("{two}/layer.tar")],
    }]);
    let tar = Tar::new()
        .directory(&format!("{one}/"))
        .file(&format!("{one}/VERSION"), b"1.0")
        .file(&format!("{one}/layer.tar"), &layer)
        .symlink(&format!("{two}/layer.tar"), &format!("../{one}/layer.tar"))
        .file(&config_name, &built.config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish();
    let file = scratch.write("save.tar", &tar);
    let images = scratch.store.import(&file, None, ProgressSink::none()).await.unwrap();
    assert_eq!(images[0].references, ["demo:1", "demo:latest"]);
    let image = scratch.store.resolve(&"demo".parse().unwrap()).unwrap();
    assert_eq!(
        (image.layers.len(), image.config.entrypoint.as_slice()),
        (2, ["/a".to_owned()].as_slice())
    );
    let again = scratch.store.import(&file, None, ProgressSink::none()).await.unwrap();
    assert_eq!(again[0].digest, images[0].digest, "the same content is the same image");
}

/// containerd GO-2026-5338: an archive of a stranger replaced the tag of another image.
#[tokio::test]
async fn an_archive_does_not_take_over_the_name_of_another_image() {
    let scratch = scratch().await;
    let good = Built::new(&[Tar::new().file("good", b"").finish()], serde_json::json!({}));
    let evil = Built::new(&[Tar::new().file("evil", b"").finish()], serde_json::json!({}));
    let file = scratch.write("good.tar", &good.layout("busybox:latest"));
    scratch.store.import(file, None, ProgressSink::none()).await.unwrap();
    let file = scratch.write("evil.tar", &evil.layout("docker.io/library/busybox:latest"));
    let error = scratch.store.import(&file, None, ProgressSink::none()).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Conflict, "{error}");
    let busybox = "busybox".parse().unwrap();
    assert_eq!(scratch.store.resolve(&busybox).unwrap().digest, good.digest());
    scratch.store.import(&file, Some("mine".parse().unwrap()), ProgressSink::none()).await.unwrap();
    assert_eq!(
        scratch.store.resolve(&busybox).unwrap().digest,
        good.digest(),
        "its own names are ignored"
    );
    scratch.store.import(&file, Some(busybox.clone()), ProgressSink::none()).await.unwrap();
    assert_eq!(
        scratch.store.resolve(&busybox).unwrap().digest,
        evil.digest(),
        "who is asked to replaces"
    );
}

#[tokio::test]
async fn archives_whose_parts_do_not_fit_are_refused() {
    let scratch = scratch().await;
    let mut built = Built::new(&[Tar::new().file("a", b"a").finish()], serde_json::json!({}));
    let honest = built.layout("x:1");
    let blob = built.layers[0].clone();
    built.layers[0] = gzip(&Tar::new().file("a", b"b").finish());
    // The blob under its right name holds something else; the blob is missing; the content is not what the configuration promises.
    let at = honest.windows(blob.len()).position(|window| window == blob).unwrap();
    let mut changed = honest.clone();
    changed[at + 20] ^= 1;
    let lying = Built {
        config: honest_config_of(b"c"),
        ..Built::new(&[Tar::new().file("a", b"b").finish()], serde_json::json!({}))
    };
    for (what, bytes) in [
        ("changed", changed),
        ("missing", built.layout("x:1")),
        ("lying", relinked(&lying).layout("x:1")),
        ("cut", honest[..honest.len() - 2048].to_vec()),
    ] {
        let error = scratch.import(&bytes, "x:1").await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Invalid, "{what}: {error}");
        scratch.assert_nothing_half_made();
    }
    scratch.import(&honest, "x:1").await.unwrap();
}

/// What other tools write: skopeo's two archive formats.
#[tokio::test]
async fn archives_of_other_tools_are_read() {
    let scratch = scratch().await;
    let layers = [Tar::new().file("a", b"a").finish(), Tar::new().file("b", b"b").finish()];
    let built = Built::new(&layers, serde_json::json!({"Cmd": ["/a"], "User": "5"}));
    let source = scratch.write("source.tar", &built.layout("1"));
    for (kind, name) in [("oci-archive", "named/by-oci:2"), ("docker-archive", "named/by-docker:3")]
    {
        let target = scratch.path(kind);
        let copied = std::process::Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("oci-archive:{}:1", source.display()))
            .arg(format!("{kind}:{}:{name}", target.display()))
            .status();
        let Ok(status) = copied else {
            eprintln!("SKIPPED: archives_of_other_tools_are_read: skopeo missing");
            return;
        };
        assert!(status.success(), "{kind}");
        scratch.store.import(target, None, ProgressSink::none()).await.unwrap();
        let image = scratch.store.resolve(&name.parse().unwrap()).unwrap();
        assert_eq!(
            (image.config.user.as_str(), image.config.cmd.as_slice()),
            ("5", ["/a".to_owned()].as_slice())
        );
        assert_eq!(std::fs::read(image.layers[0].join("b")).unwrap(), b"b");
    }
    assert_eq!(scratch.names("layers").len(), 2, "the same layers, however they came");
}

/// A configuration that promises a layer of one file with this content.
fn honest_config_of(content: &[u8]) -> Vec<u8> {
    Built::new(&[Tar::new().file("a", content).finish()], serde_json::json!({})).config
}

/// The same image with a manifest that names its (exchanged) configuration.
fn relinked(built: &Built) -> Built {
    let mut manifest: serde_json::Value = serde_json::from_slice(&built.manifest).unwrap();
    manifest["config"] =
        support::descriptor("application/vnd.oci.image.config.v1+json", &built.config);
    Built {
        manifest: manifest.to_string().into_bytes(),
        config: built.config.clone(),
        layers: built.layers.clone(),
    }
}
