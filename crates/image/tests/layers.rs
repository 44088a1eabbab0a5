//! Layers together: as overlayfs shows them, and as users are read from them without a mount.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use atoll_image::{ProgressSink, users};
use support::namespace::{has_own_mounts, mount_overlay};
use support::{Built, Scratch, Tar, scratch};

/// Imports an image of these layers, lowest first; gives its trees, topmost first.
async fn layers(scratch: &Scratch, layers: &[Vec<u8>]) -> Vec<PathBuf> {
    let built = Built::new(layers, serde_json::json!({}));
    let file = scratch.write("image.tar", &built.layout("x:1"));
    scratch.store.import(file, Some("x:1".parse().unwrap()), ProgressSink::none()).await.unwrap();
    scratch.store.get(&built.digest()).unwrap().layers
}

#[tokio::test]
async fn overlayfs_shows_what_the_layers_mean() {
    if !has_own_mounts("overlayfs_shows_what_the_layers_mean") {
        return;
    }
    let scratch = scratch().await;
    let base = Tar::new()
        .entry(tar::EntryType::Directory, b"./", b"", b"", |header| header.set_mode(0o711))
        .directory("etc")
        .file("etc/old", b"old")
        .file("etc/same", b"low")
        .directory("all")
        .file("all/one", b"")
        .file("all/two", b"")
        .entry(tar::EntryType::Directory, b"tmp", b"", b"", |header| {
            header.set_mode(0o1777);
            header.set_uid(7);
        })
        .file("was-a-file", b"")
        .directory("was-a-directory")
        .file("was-a-directory/inside", b"")
        .finish();
    let top = Tar::new()
        .file("etc/.wh.old", b"")
        .file("etc/same", b"high")
        .file("all/.wh..wh..opq", b"")
        .file("all/three", b"")
        .file("tmp/new", b"")
        .file(".wh.was-a-file", b"")
        .file("was-a-file/now", b"")
        .file(".wh.was-a-directory", b"")
        .directory("was-a-directory")
        .finish();
    let layers = layers(&scratch, &[base, top]).await;
    let root = scratch.path("root");
    mount_overlay(&layers, &root);
    let names = |directory: &str| {
        let mut names: Vec<_> = std::fs::read_dir(root.join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("etc"), ["same"]);
    assert_eq!(std::fs::read(root.join("etc/same")).unwrap(), b"high");
    assert_eq!(names("all"), ["three"]);
    assert_eq!(names("tmp"), ["new"]);
    assert_eq!(names("was-a-file"), ["now"]);
    assert_eq!(names("was-a-directory"), Vec::<String>::new());
    let mode = |path: &str| {
        let found = std::fs::metadata(root.join(path)).unwrap();
        (found.mode() & 0o7777, found.uid())
    };
    // Directories that the upper archive does not describe are still those of the lower one.
    assert_eq!(mode("tmp"), (0o1777, 7));
    assert_eq!(mode("."), (0o711, 0));
}

#[tokio::test]
async fn users_are_read_across_layers() {
    let scratch = scratch().await;
    let old = b"root:x:0:0::/root:\nweb:x:33:33::/srv:\n".as_slice();
    let base = Tar::new()
        .directory("etc")
        .file("etc/passwd", old)
        .file("etc/group", b"log:x:4:web\n")
        .finish();
    let resolve = |layers: &[PathBuf], user: &str| users::resolve(user, layers);

    let empty = layers(&scratch, &[base.clone(), Tar::new().file("other", b"").finish()]).await;
    let web = resolve(&empty, "web").unwrap();
    assert_eq!(
        (web.uid, web.supplementary_gids.as_slice(), web.home.as_str()),
        (33, [4].as_slice(), "/srv")
    );

    let newer = Tar::new().file("etc/passwd", b"web:x:44:44::/:\n").finish();
    let replaced = layers(&scratch, &[base.clone(), newer]).await;
    assert_eq!(resolve(&replaced, "web").unwrap().uid, 44, "the upper file is the only one");

    for top in [
        Tar::new().file("etc/.wh.passwd", b"").finish(),
        Tar::new().file(".wh.etc", b"").finish(),
        Tar::new().file("etc/.wh..wh..opq", b"").finish(),
        Tar::new().file("etc", b"now a file").finish(),
    ] {
        let hidden = layers(&scratch, &[base.clone(), top]).await;
        assert!(resolve(&hidden, "web").is_err(), "what is hidden is not read");
        assert_eq!(resolve(&hidden, "33:44").unwrap().gid, 44, "numbers need no file");
    }

    for (target, expected) in
        [("/real/passwd", 55), ("../real/passwd", 55), ("../../../../real/../real/./passwd", 55)]
    {
        let linked = Tar::new()
            .symlink("etc/passwd", target)
            .file("real/passwd", b"web:x:55:55::/:\n")
            .finish();
        let linked = layers(&scratch, &[base.clone(), linked]).await;
        assert_eq!(resolve(&linked, "web").unwrap().uid, expected, "{target}");
    }
}

/// Files that would be another one of the host, wait for ever or never end.
#[tokio::test]
async fn hostile_user_files_are_harmless() {
    let scratch = scratch().await;
    let outside = scratch.write("passwd", b"web:x:66:66::/:\n");
    let outside = outside.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(40), &outside[1..]);
    for target in [outside, &up, "/proc/self/fd/0", "passwd", "/etc", "missing"] {
        let tree =
            layers(&scratch, &[Tar::new().directory("etc").symlink("etc/passwd", target).finish()])
                .await;
        assert!(users::resolve("web", &tree).is_err(), "{target}");
    }
    let loops = Tar::new().symlink("etc", "b").symlink("b", "c/d").symlink("c", "etc").finish();
    assert!(users::resolve("web", &layers(&scratch, &[loops]).await).is_err());
    let fifo = Tar::new().entry(tar::EntryType::Fifo, b"etc/passwd", b"", b"", |_| {}).finish();
    assert!(
        users::resolve("web", &layers(&scratch, &[fifo]).await).is_err(),
        "a fifo is not waited for"
    );
    let huge = Tar::new().file("etc/passwd", &vec![b'x'; (1 << 20) + 1]).finish();
    let error = users::resolve("web", &layers(&scratch, &[huge]).await).unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
}
