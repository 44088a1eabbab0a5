//! The guest as an ordinary process: copies in and out, honest and hostile.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::*;
use atoll_wire::frame::MAX_DATA_BYTES;
use atoll_wire::guest::*;

fn own_user() -> UserIds {
    spec(&["x"]).user
}

fn nobody() -> UserIds {
    UserIds { uid: 65534, gid: 65534, supplementary_gids: Vec::new() }
}

fn upload(host: &mut Host, stream: u32, path: &Path, user: UserIds, tar: &[u8]) -> Option<String> {
    let path = path.to_str().unwrap().to_owned();
    host.send(stream, HostMessage::Upload(TransferRequest { path, user }));
    let mut window = INITIAL_STDIN_WINDOW_BYTES as usize;
    let mut rest = tar;
    while !rest.is_empty() {
        let part = rest.len().min(window).min(MAX_DATA_BYTES);
        if part == 0 {
            match host.next_message() {
                (from, GuestMessage::Credit(bytes)) if from == stream => window += bytes as usize,
                (from, GuestMessage::TransferDone(outcome)) if from == stream => {
                    return outcome.error;
                }
                _ => {}
            }
            continue;
        }
        host.send(stream, HostMessage::Stdin(rest[..part].to_vec()));
        rest = &rest[part..];
        window -= part;
    }
    host.send(stream, HostMessage::StdinEnd);
    host.follow(stream).transferred.unwrap().error
}

fn download(host: &mut Host, stream: u32, path: &Path, user: UserIds) -> (Vec<u8>, Option<String>) {
    let path = path.to_str().unwrap().to_owned();
    host.send(stream, HostMessage::Download(TransferRequest { path, user }));
    let ran = host.follow(stream);
    (ran.stdout, ran.transferred.unwrap().error)
}

/// Name, kind, link's target, claimed size, data.
type Entry<'a> = (&'a str, tar::EntryType, &'a str, u64, &'a [u8]);

/// A tar with entries made by hand: header fields as a hostile client would write them.
fn hostile(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link, size, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(*size);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn a_tree_goes_out_and_in_again_unchanged() {
    let mut host = Host::booted();
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    let large: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(tree.join("a/large"), &large).unwrap();
    fs::write(tree.join("a/b/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("a/b/script"), PermissionsExt::from_mode(0o751)).unwrap();
    let long = "n".repeat(200);
    fs::write(tree.join(&long), "long name").unwrap();
    symlink("a/large", tree.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    let (tar, error) = download(&mut host, 1, &tree, own_user());
    assert_eq!(error, None);
    let to = tempfile::tempdir().unwrap();
    assert_eq!(upload(&mut host, 2, to.path(), own_user(), &tar), None);
    let copy = to.path().join("tree");
    assert!(fs::read(copy.join("a/large")).unwrap() == large);
    assert_eq!(fs::read_to_string(copy.join(long)).unwrap(), "long name");
    assert_eq!(fs::metadata(copy.join("a/b/script")).unwrap().permissions().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("a/large"));
    assert!(!copy.join("fifo").exists(), "a FIFO is no file to copy");
    // A link as the path itself is followed.
    let (tar, error) = download(&mut host, 3, &tree.join("link"), own_user());
    assert_eq!(error, None);
    assert_eq!(upload(&mut host, 4, to.path(), own_user(), &tar), None);
    assert!(fs::read(to.path().join("link")).unwrap() == large);
}

#[test]
fn what_a_user_may_not_read_or_write_is_told() {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: what_a_user_may_not_read_or_write_is_told: needs root");
        return;
    }
    let mut host = Host::booted();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(directory.path().join("public"), "p").unwrap();
    fs::write(directory.path().join("secret"), "s").unwrap();
    fs::set_permissions(directory.path().join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let (tar, error) = download(&mut host, 1, directory.path(), nobody());
    assert!(
        error.is_some_and(|error| error.contains("secret") && error.contains("ermission denied"))
    );
    let mut archive = tar::Archive::new(tar.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    assert!(names.iter().any(|name| name.ends_with("public")), "the rest came: {names:?}");
    let file = hostile(&[("new", tar::EntryType::Regular, "", 1, b"n")]);
    let error = upload(&mut host, 2, directory.path(), nobody(), &file);
    assert!(error.is_some_and(|error| error.contains("ermission denied")));
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(upload(&mut host, 3, directory.path(), nobody(), &file), None);
    assert_eq!(fs::metadata(directory.path().join("new")).unwrap().uid(), 65534);
}

#[test]
fn a_hostile_tar_stays_beneath_its_directory() {
    let mut host = Host::booted();
    let top = tempfile::tempdir().unwrap();
    let inside = top.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let outside = top.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside_name = outside.to_str().unwrap();
    use tar::EntryType as E;
    let cases: [&[Entry]; 6] = [
        &[("../outside/a", E::Regular, "", 1, b"x")],
        &[("l", E::Symlink, outside_name, 0, b""), ("l/b", E::Regular, "", 1, b"x")],
        &[("m", E::Symlink, "../outside", 0, b""), ("m/c", E::Regular, "", 1, b"x")],
        &[("h", E::Link, "../../../../../../etc/passwd", 0, b"")],
        &[("dev", E::Char, "", 0, b"")],
        &[("fifo", E::Fifo, "", 0, b"")],
    ];
    for (stream, case) in (1..).zip(cases) {
        let error = upload(&mut host, stream, &inside, own_user(), &hostile(case));
        assert!(error.is_some(), "{case:?} is told");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(
        !inside.join("dev").exists() && !inside.join("fifo").exists() && !inside.join("h").exists()
    );
    // An absolute name is taken beneath the directory.
    let name = "/tmp/atoll-absolute-name";
    assert_eq!(
        upload(&mut host, 50, &inside, own_user(), &hostile(&[(name, E::Regular, "", 1, b"x")])),
        None
    );
    assert!(inside.join("tmp/atoll-absolute-name").exists() && !Path::new(name).exists());
}

#[test]
fn a_tar_that_lies_or_breaks_off_ends_with_an_error_and_nothing_else() {
    let mut host = Host::booted();
    let directory = tempfile::tempdir().unwrap();
    use tar::EntryType as E;
    let terabyte = hostile(&[("x", E::Regular, "", 1 << 40, b"short")]);
    let long_name = hostile(&[("x", E::GNULongName, "", 1 << 33, b"short")]);
    let mut broken = hostile(&[("y", E::Regular, "", 3, b"abc")]);
    broken[150] ^= 0xff;
    for (stream, tar) in
        (1..).zip([&terabyte[..], &long_name, &broken, &[0xff; 5000], &b"short"[..]])
    {
        assert!(
            upload(&mut host, stream, directory.path(), own_user(), tar).is_some(),
            "case {stream}"
        );
    }
    assert_eq!(
        upload(&mut host, 20, directory.path(), own_user(), b""),
        None,
        "nothing is a whole copy of nothing"
    );
    let endless = vec![b'n'; 200 << 20];
    let name = hostile(&[("x", E::GNULongName, "", endless.len() as u64, &endless)]);
    let error = upload(&mut host, 21, directory.path(), own_user(), &name);
    assert!(error.is_some(), "a name of 200 MiB ends the helper");
    assert_eq!(host.run(22, spec(&["true"])).exited, Some(SUCCESS));
    for path in ["relative", "/no/such/directory", "/dev/null", "/nul\0byte"] {
        let path = Path::new(path);
        assert!(upload(&mut host, 30, path, own_user(), b"").is_some(), "{path:?}");
    }
    assert!(download(&mut host, 31, Path::new("/no/such/file"), own_user()).1.is_some());
}

#[test]
fn who_leaves_a_download_ends_it() {
    let mut host = Host::booted();
    let directory = tempfile::tempdir().unwrap();
    fs::File::create(directory.path().join("large")).unwrap().set_len(1 << 30).unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    host.send(1, HostMessage::Download(TransferRequest { path, user: own_user() }));
    let mut received = 0;
    while received < INITIAL_WINDOW_BYTES as usize {
        if let (1, GuestMessage::Stdout { data, .. }) = host.next_message() {
            received += data.len();
        }
    }
    host.send(1, HostMessage::Detach);
    assert!(matches!(
        host.event(1),
        GuestMessage::TransferDone(TransferOutcome { error: Some(_) })
    ));
    assert!(descendants(host.guest.id()).is_empty());
}
