//! Archives that lie, escape, explode: each is refused with its reason or made harmless, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use atoll_image::{ImageErrorKind, ProgressSink};
use support::{Built, Scratch, Tar, gzip, noise, scratch, scratch_with};
use tar::EntryType;

/// The archive is refused for this reason, and nothing is left of it.
async fn assert_refused(scratch: &Scratch, archive: &[u8], reason: &str) {
    let error = scratch.import(archive, "hostile:1").await.unwrap_err();
    assert!(error.to_string().contains(reason), "expected {reason:?} in: {error}");
    assert_eq!(error.kind(), ImageErrorKind::Invalid, "{error}");
    scratch.assert_nothing_half_made();
}

#[tokio::test]
async fn paths_that_lead_up_are_refused() {
    let scratch = scratch().await;
    for name in ["../evil", "a/../../evil", "/../evil", "..", "a/.."] {
        assert_refused(&scratch, &Tar::new().file(name, b"x").finish(), "'..' in a path").await;
    }
    let pax = Tar::new().pax(&[("path", b"../evil")]).file("good", b"x").finish();
    assert_refused(&scratch, &pax, "'..' in a path").await;
    let long = format!("{}/../../../evil", "d".repeat(150));
    assert_refused(&scratch, &Tar::new().file(&long, b"x").finish(), "'..' in a path").await;
    assert!(!scratch.path("evil").exists() && !scratch.path("images/evil").exists());
}

#[tokio::test]
async fn absolute_paths_stay_inside() {
    let scratch = scratch().await;
    let marker = scratch.path("marker");
    let name = marker.to_str().unwrap();
    let tree = scratch.import(&Tar::new().file(name, b"x").finish(), "x:1").await.unwrap();
    assert!(!marker.exists());
    assert_eq!(std::fs::read(tree.join(&name[1..])).unwrap(), b"x");
}

#[tokio::test]
async fn symlinks_lead_nowhere_but_inside() {
    let scratch = scratch().await;
    let outside = scratch.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(40), &target[1..]);
    for link in [target, &up, "/proc/1/root", "/dev/fd"] {
        // The link leads to nothing inside: an entry below it cannot be placed.
        let archive = Tar::new().symlink("link", link).file("link/evil", b"x").finish();
        assert_refused(&scratch, &archive, "no directory").await;
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // With the same names inside, the link leads there, as it would in the sandbox.
    let archive = Tar::new()
        .directory(target)
        .symlink("link", target)
        .symlink("up", &up)
        .file("link/one", b"1")
        .file("up/two", b"2")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::read(tree.join(&target[1..]).join("two")).unwrap(), b"2");
    assert_eq!(std::fs::read_link(tree.join("link")).unwrap(), Path::new(target), "kept as it is");
}

#[tokio::test]
async fn a_file_replaces_a_symlink_instead_of_following_it() {
    let scratch = scratch().await;
    let outside = scratch.write("outside", b"untouched");
    let archive = Tar::new()
        .symlink("file", outside.to_str().unwrap())
        .file("file", b"new")
        .symlink("loop", "loop")
        .file("loop", b"no loop")
        .symlink("dir", "/")
        .directory("dir")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    assert_eq!(std::fs::read(&outside).unwrap(), b"untouched");
    assert_eq!(std::fs::read(tree.join("file")).unwrap(), b"new");
    assert_eq!(std::fs::read(tree.join("loop")).unwrap(), b"no loop");
    assert!(std::fs::symlink_metadata(tree.join("dir")).unwrap().is_dir());
}

#[tokio::test]
async fn hard_links_reach_only_what_the_archive_brought() {
    let scratch = scratch().await;
    let outside = scratch.write("secret", b"secret");
    let outside = outside.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(40), &outside[1..]);
    for (target, reason) in [
        (outside, "has not"),
        (up.as_str(), "'..'"),
        ("/etc/passwd", "has not"),
        ("missing", "has not"),
        ("/", "to the root"),
        ("", "to the root"),
        ("dir", "to a directory"),
    ] {
        let archive = Tar::new().directory("dir").hard_link("evil", target).finish();
        assert_refused(&scratch, &archive, reason).await;
    }
    let through = Tar::new().symlink("etc", "/etc").hard_link("evil", "etc/passwd").finish();
    assert_refused(&scratch, &through, "has not").await;
    assert_eq!(std::fs::metadata(outside).unwrap().nlink(), 1);
}

#[tokio::test]
async fn a_hard_link_to_a_symlink_is_the_symlink() {
    let scratch = scratch().await;
    let outside = scratch.write("secret", b"secret");
    let archive = Tar::new()
        .symlink("link", outside.to_str().unwrap())
        .hard_link("hard", "link")
        .file("hard", b"replaced")
        .hard_link("self", "link")
        .hard_link("self", "self")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
    assert_eq!(std::fs::read(tree.join("hard")).unwrap(), b"replaced");
    assert!(std::fs::symlink_metadata(tree.join("self")).unwrap().is_symlink());
}

#[tokio::test]
async fn device_nodes_are_left_out() {
    let scratch = scratch().await;
    let device = |kind, major, minor| {
        move |header: &mut tar::Header| {
            header.set_entry_type(kind);
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
    };
    let archive = Tar::new()
        .entry(EntryType::Block, b"dev/sda", b"", b"", device(EntryType::Block, 8, 0))
        .entry(EntryType::Char, b"dev/mem", b"", b"", device(EntryType::Char, 1, 1))
        .entry(EntryType::Char, b"whiteout", b"", b"", device(EntryType::Char, 0, 0))
        .file("dev/null", b"a plain file")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    for name in ["dev/sda", "dev/mem", "whiteout"] {
        assert!(std::fs::symlink_metadata(tree.join(name)).is_err(), "{name}");
    }
    assert!(tree.join("dev/null").is_file());
    let note = std::fs::read_to_string(tree.with_file_name("layer.json")).unwrap();
    assert!(note.contains(r#""skipped_devices":3"#), "counted: {note}");
}

#[tokio::test]
async fn whiteouts_hide_only_their_own_name() {
    let scratch = scratch().await;
    let base =
        Tar::new().directory("dir").file("dir/old", b"old").file("dir/gone", b"gone").finish();
    let import = async |top: Vec<u8>| {
        let built = Built::new(&[base.clone(), top], serde_json::json!({}));
        let file = scratch.write("image.tar", &built.layout("x:1"));
        let images =
            scratch.store.import(file, Some("x:1".parse().unwrap()), ProgressSink::none()).await?;
        Ok::<_, atoll_image::ImageError>(
            scratch.store.get(&images[0].digest).unwrap().layers[0].clone(),
        )
    };
    for name in [".wh...", ".wh..", ".wh.", "dir/.wh...", "dir/.wh."] {
        let error = import(Tar::new().file(name, b"").finish()).await.unwrap_err();
        assert!(error.to_string().contains("hides no name"), "{name}: {error}");
    }
    let error = import(Tar::new().file("../.wh.x", b"").finish()).await.unwrap_err();
    assert!(error.to_string().contains("'..' in a path"), "{error}");

    let is_whiteout = |path: &Path| {
        std::fs::symlink_metadata(path)
            .is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
    };
    let is_opaque = |path: &Path| {
        let mut value = [0; 1];
        matches!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value), Ok(1))
            && value == *b"y"
    };
    let tree = import(
        Tar::new()
            .file("dir/.wh.gone", b"")
            .file("kept", b"1")
            .file(".wh.kept", b"")
            .file(".wh.again", b"")
            .directory("again")
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/new", b"")
            .file(".wh..wh.plnk", b"")
            .finish(),
    )
    .await
    .unwrap();
    assert!(is_whiteout(&tree.join("dir/gone")));
    assert_eq!(std::fs::read(tree.join("kept")).unwrap(), b"1", "a layer does not hide its own");
    assert!(is_opaque(&tree.join("again")) && is_opaque(&tree.join("opaque")));
    assert!(!is_opaque(&tree) && !is_opaque(&tree.join("dir")));
    assert!(std::fs::symlink_metadata(tree.join(".wh..wh.plnk")).is_err());
    assert!(std::fs::symlink_metadata(tree.join(".wh.kept")).is_err());
}

#[tokio::test]
async fn a_link_as_a_whiteouts_directory_stays_inside() {
    let scratch = scratch().await;
    let outside = scratch.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), b"x").unwrap();
    let base = Tar::new().file("a", b"").finish();
    for name in ["link/.wh.victim", "link/.wh..wh..opq"] {
        let top = Tar::new().symlink("link", outside.to_str().unwrap()).file(name, b"").finish();
        let built = Built::new(&[base.clone(), top], serde_json::json!({}));
        let file = scratch.write("image.tar", &built.layout("x:1"));
        assert!(scratch.store.import(file, None, ProgressSink::none()).await.is_err());
        assert!(outside.join("victim").is_file());
        assert!(rustix::fs::lgetxattr(&outside, "trusted.overlay.opaque", &mut [0; 1]).is_err());
    }
}

#[tokio::test]
async fn sizes_that_lie_are_found_out() {
    let scratch = scratch().await;
    let huge = |size: u64| move |header: &mut tar::Header| header.set_size(size);
    let short = Tar::new().file_with("a", b"", huge(100_000)).finish();
    assert_refused(&scratch, &short, "ends within a file's data").await;
    for size in [u64::MAX, u64::MAX - 511, 1 << 62, 1 << 40] {
        let archive = Tar::new().file_with("a", b"", huge(size)).finish();
        assert_refused(&scratch, &archive, "exceeds the limit").await;
    }
    let smaller = Tar::new().file_with("a", &[b'x'; 2048], huge(512)).finish();
    assert_refused(&scratch, &smaller, "no tar archive").await;
    let by_pax = Tar::new().pax(&[("size", b"9999999999999")]).file("a", b"x").finish();
    assert_refused(&scratch, &by_pax, "exceeds the limit").await;
    let on_a_link = Tar::new()
        .entry(EntryType::Symlink, b"l", b"t", b"", huge(1 << 50))
        .file("after", b"still in step")
        .finish();
    let tree = scratch.import(&on_a_link, "x:1").await.unwrap();
    assert_eq!(std::fs::read(tree.join("after")).unwrap(), b"still in step");
}

#[tokio::test]
async fn sparse_headers_are_bounded_and_checked() {
    let scratch = scratch_with(|options| options.max_layer_bytes = 16 << 20).await;
    let sparse = |real: u64, offset: u64, length: u64, data: &[u8]| {
        Tar::new()
            .entry(EntryType::GNUSparse, b"sparse", b"", data, |header| {
                let gnu = header.as_gnu_mut().unwrap();
                let octal = |field: &mut [u8; 12], value: u64| {
                    *field = [0; 12];
                    field[0] = 0x80;
                    field[4..].copy_from_slice(&value.to_be_bytes());
                };
                octal(&mut gnu.realsize, real);
                octal(&mut gnu.sparse[0].offset, offset);
                octal(&mut gnu.sparse[0].numbytes, length);
            })
            .finish()
    };
    for real in [u64::MAX >> 1, 1 << 50, (16 << 20) + 1] {
        assert_refused(&scratch, &sparse(real, 0, 4, b"data"), "exceeds the limit").await;
    }
    for (real, offset, length) in [(100, 99, 4), (100, 0, 3), (100, u64::MAX - 1, 4), (2, 0, 4)] {
        assert_refused(&scratch, &sparse(real, offset, length, b"data"), "sparse").await;
    }
    let tree = scratch.import(&sparse(8 << 20, 4 << 20, 4, b"data"), "x:1").await.unwrap();
    let file = std::fs::metadata(tree.join("sparse")).unwrap();
    assert!(file.len() == 8 << 20 && file.blocks() * 512 < 1 << 20, "holes stay holes");
    let pax = Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("a", b"x").finish();
    let error = scratch.import(&pax, "x:2").await.unwrap_err();
    assert!(error.to_string().contains("--sparse"), "{error}");
}

#[tokio::test]
async fn archives_that_were_cut_are_refused() {
    let scratch = scratch().await;
    let whole = Tar::new().file("a", &noise(3000, 5)).directory("d").file("d/b", b"b").finish();
    for length in [0, 1, 100, 511, 512, 700, 3000, 3584, 4096, 4608, 5000, 5120] {
        let error = scratch.import(&whole[..length], "x:1").await.unwrap_err();
        assert!(error.to_string().contains("damaged"), "{length}: {error}");
        scratch.assert_nothing_half_made();
    }
    let zipped = gzip(&whole);
    for length in [1, 5, 20, zipped.len() / 2, zipped.len() - 1] {
        assert_refused(&scratch, &zipped[..length], "damaged").await;
    }
    let zstd = zstd::encode_all(whole.as_slice(), 1).unwrap();
    assert_refused(&scratch, &zstd[..zstd.len() / 2], "damaged").await;
    assert_refused(&scratch, &noise(10_000, 6), "damaged").await;
    scratch.import(&zstd, "x:1").await.unwrap();
}

#[tokio::test]
async fn too_many_entries_are_an_error_with_the_limit() {
    let scratch = scratch_with(|options| options.max_layer_entries = 1000).await;
    let mut many = Tar::new();
    for number in 0..1001 {
        many = many.file(&format!("f{number}"), b"");
    }
    assert_refused(&scratch, &many.finish(), "exceeds the limit of 1000 entries").await;
    // Directories that nothing but a longer path asks for count too.
    let mut nested = Tar::new();
    for number in 0..600 {
        nested = nested.file(&format!("d{number}/f"), b"");
    }
    assert_refused(&scratch, &nested.finish(), "exceeds the limit of 1000 entries").await;
    let mut same = Tar::new();
    for _ in 0..1001 {
        same = same.file("same", b"");
    }
    assert_refused(&scratch, &same.finish(), "exceeds the limit of 1000 entries").await;
}

#[tokio::test]
async fn bombs_are_bounded() {
    let scratch = scratch_with(|options| options.max_layer_bytes = 8 << 20).await;
    let zeros = vec![0; 32 << 20];
    let honest = Tar::new().file("a", &zeros).finish();
    let parts = Tar::new().file("a", &zeros[..5 << 20]).file("b", &zeros[..5 << 20]).finish();
    // All after the end mark: nothing to unpack, but a lot to read.
    let after = [Tar::new().file("a", b"").finish(), zeros.clone()].concat();
    let hidden = Tar::new()
        .entry(EntryType::Directory, b"d", b"", &zeros, |header| {
            header.set_size(zeros.len() as u64)
        })
        .finish();
    for plain in [&honest, &parts, &after] {
        assert_refused(&scratch, &gzip(plain), "exceeds the limit of 8388608 bytes").await;
        assert_refused(
            &scratch,
            &zstd::encode_all(plain.as_slice(), 1).unwrap(),
            "exceeds the limit of 8388608 bytes",
        )
        .await;
    }
    let error = scratch.import(&gzip(&hidden), "x:1").await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Invalid, "{error}");
    let twice = gzip(&gzip(&honest));
    assert_refused(&scratch, &twice, "damaged").await;
}

#[tokio::test]
async fn a_zstd_window_beyond_the_bound_is_refused() {
    use std::io::Write as _;
    let scratch = scratch().await;
    let compressed = |window_log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(&Tar::new().file("a", b"x").finish()).unwrap();
        encoder.finish().unwrap()
    };
    assert_refused(&scratch, &compressed(31), "damaged").await;
    scratch.import(&compressed(27), "x:1").await.unwrap();
}

#[tokio::test]
async fn absurd_extension_headers_are_refused() {
    let scratch = scratch().await;
    let claims = |kind: u8, size: u64| {
        Tar::new()
            .entry(EntryType::new(kind), b"x", b"", b"", move |header| header.set_size(size))
            .finish()
    };
    for kind in [b'x', b'g', b'L', b'K'] {
        for size in [(1 << 20) + 1, 1 << 40, u64::MAX] {
            assert_refused(&scratch, &claims(kind, size), "extension header").await;
        }
    }
    let mut many = Tar::new();
    for _ in 0..20 {
        many = many.pax(&[("comment", b"x")]);
    }
    assert_refused(&scratch, &many.file("a", b"").finish(), "too many extension headers").await;
    assert_refused(&scratch, &Tar::new().pax(&[("path", b"a")]).finish(), "followed by no entry")
        .await;
    let lies = Tar::new().extension(b'x', b"99 path=a\n").file("a", b"").finish();
    assert_refused(&scratch, &lies, "pax record").await;
    let name = format!("SCHILY.xattr.user.{}", "n".repeat(300));
    let many: Vec<(&str, &[u8])> = vec![(name.as_str(), b"v".as_slice()); 65];
    assert_refused(&scratch, &Tar::new().pax(&many).file("a", b"").finish(), "extended attributes")
        .await;
    let long = vec![b'a'; 5000];
    assert_refused(
        &scratch,
        &Tar::new().pax(&[("path", &long)]).file("a", b"").finish(),
        "at most 4095",
    )
    .await;
    assert_refused(
        &scratch,
        &Tar::new().pax(&[("path", &long[..300])]).file("a", b"").finish(),
        "255 bytes",
    )
    .await;
}

#[tokio::test]
async fn odd_names_are_kept_or_refused() {
    let scratch = scratch().await;
    let nul = Tar::new().pax(&[("path", b"a\0b")]).file("a", b"").finish();
    assert_refused(&scratch, &nul, "NUL").await;
    let nul = Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("a", "b").finish();
    assert_refused(&scratch, &nul, "NUL").await;
    let deep = "d/".repeat(600);
    assert_refused(&scratch, &Tar::new().directory(&deep).finish(), "512 directories deep").await;
    let odd = [b"new\nline".as_slice(), b"\xff\xfe", b"-rf", b"\x1b[31m", b"...", b"a\\b"];
    let mut archive = Tar::new().directory(&"d/".repeat(500));
    for name in odd {
        archive = archive.entry(EntryType::Regular, name, b"", b"x", |_| {});
    }
    let tree = scratch.import(&archive.finish(), "x:1").await.unwrap();
    for name in odd {
        use std::os::unix::ffi::OsStrExt as _;
        assert!(tree.join(std::ffi::OsStr::from_bytes(name)).is_file(), "{}", name.escape_ascii());
    }
    let error =
        scratch.import(&Tar::new().hard_link("\x1b[2J\n", "x").finish(), "x:2").await.unwrap_err();
    assert!(!error.to_string().contains(['\x1b', '\n']), "names in errors are escaped");
}

#[tokio::test]
async fn of_duplicate_paths_the_last_counts() {
    let scratch = scratch().await;
    let archive = Tar::new()
        .file("a", b"first")
        .file("./a", b"second")
        .directory("b")
        .file("b/deep/file", b"x")
        .file("b", b"now a file")
        .file("c", b"a file")
        .directory("c")
        .file("c/below", b"x")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    assert_eq!(std::fs::read(tree.join("a")).unwrap(), b"second");
    assert_eq!(std::fs::read(tree.join("b")).unwrap(), b"now a file");
    assert!(tree.join("c/below").is_file());
    let below = Tar::new().file("a", b"").file("a/b", b"").finish();
    let error = scratch.import(&below, "x:2").await.unwrap_err();
    assert!(error.to_string().contains("is no directory"), "{error}");
}

/// 2^32 must not become root, nor anything beyond the ids that a sandbox has become somebody else.
#[tokio::test]
async fn owners_beyond_a_sandboxs_ids_are_refused() {
    let scratch = scratch().await;
    for id in [65_536, 1 << 31, 1 << 32, (1 << 32) + 1000, u64::MAX] {
        let owner = Tar::new().file_with("a", b"", move |header| header.set_uid(id)).finish();
        assert_refused(&scratch, &owner, "ids end at 65535").await;
        let group = Tar::new().file_with("a", b"", move |header| header.set_gid(id)).finish();
        assert_refused(&scratch, &group, "ids end at 65535").await;
    }
    let pax = Tar::new().pax(&[("uid", b"4294967296")]).file("a", b"").finish();
    assert_refused(&scratch, &pax, "ids end at 65535").await;
    let nonsense = Tar::new().pax(&[("uid", b"-1")]).file("a", b"").finish();
    assert_refused(&scratch, &nonsense, "damaged").await;
}

/// What steers overlayfs, names ids of other machines or gives capabilities of another namespace does not come from an image.
#[tokio::test]
async fn only_harmless_attributes_are_kept() {
    let scratch = scratch().await;
    let version_2 = [&[1, 0, 0, 2][..], &[0; 16]].concat();
    let version_3 = [&[1, 0, 0, 3][..], &[0; 20]].concat();
    let archive = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.kept", b"yes\n"),
            ("SCHILY.xattr.security.capability", &version_2),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
            ("SCHILY.xattr.", b"x"),
        ])
        .file("a", b"")
        .pax(&[("SCHILY.xattr.security.capability", &version_3)])
        .file("b", b"")
        .finish();
    let tree = scratch.import(&archive, "x:1").await.unwrap();
    let names = |file: &str| {
        let mut buffer = [0_u8; 1024];
        let length = rustix::fs::llistxattr(tree.join(file), &mut buffer).unwrap();
        let mut names: Vec<String> = buffer[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("a"), ["security.capability", "user.kept"]);
    assert_eq!(names("b"), Vec::<String>::new());
    let note = std::fs::read_to_string(tree.with_file_name("layer.json")).unwrap();
    assert!(note.contains(r#""skipped_xattrs":7"#), "{note}");
}
