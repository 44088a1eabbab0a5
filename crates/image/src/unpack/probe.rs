//! Trying, from within the confined helper, what it must not be able to do. `atoll doctor` and the tests ask for it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::process::{self, Pid};
use rustix::thread::{self, UnshareFlags};

/// Names of what succeeded although it must not. `root`: the helper's directory, `parent`: the process that started it.
pub(super) fn probe(root: &OwnedFd, parent: i32) -> Vec<String> {
    let made =
        fs::openat(root, "program", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o755))
            .and_then(|file| rustix::io::write(&file, b"#!/bin/sh\n"));
    let attempts = [
        ("failing to write to its own directory", made.is_err()),
        (
            "making a block device",
            fs::mknodat(root, "block", FileType::BlockDevice, Mode::empty(), 0x0700).is_ok(),
        ),
        (
            "making a character device",
            fs::mknodat(root, "char", FileType::CharacterDevice, Mode::empty(), 0x0103).is_ok(),
        ),
        ("listening on a socket in its directory", UnixListener::bind("socket").is_ok()),
        ("executing a program", executes()),
        ("starting a thread", std::thread::Builder::new().spawn(|| ()).is_ok()),
        ("leaving its root", process::chroot("/").is_ok()),
        (
            "seeing the host's files",
            fs::stat("/proc").is_ok()
                || fs::stat("/etc").is_ok()
                || fs::stat("/..").is_ok_and(|up| !is_same(root, &up)),
        ),
        ("entering another namespace", enters_namespace()),
        ("connecting over TCP", connects()),
        ("sending over UDP", sends()),
        (
            "signalling its parent",
            Pid::from_raw(parent).is_none_or(|pid| process::test_kill_process(pid).is_ok()),
        ),
        ("becoming root", thread::set_thread_uid(rustix::process::Uid::ROOT).is_ok()),
        (
            "mounting",
            rustix::mount::mount("none", ".", "tmpfs", rustix::mount::MountFlags::empty(), None)
                .is_ok(),
        ),
    ];
    attempts
        .iter()
        .filter(|(_, succeeded)| *succeeded)
        .map(|(what, _)| (*what).to_owned())
        .collect()
}

fn is_same(root: &OwnedFd, other: &fs::Stat) -> bool {
    fs::fstat(root).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (other.st_dev, other.st_ino))
}

fn enters_namespace() -> bool {
    #[expect(
        deprecated,
        reason = "its successor is unsafe because of CLONE_FILES, which is not used here"
    )]
    thread::unshare(UnshareFlags::NEWNET).is_ok()
}

/// Its interpreter does not exist: what is not refused as such, would run. Refused is also who shares its user with so many others at the
/// moment that the limit of processes is passed. SOURCE: execve(2), EAGAIN.
fn executes() -> bool {
    use std::io::ErrorKind::{PermissionDenied, WouldBlock};
    !matches!(Command::new("/program").exec().kind(), PermissionDenied | WouldBlock)
}

/// Refused is an answer too: the packet came somewhere.
fn connects() -> bool {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9).into();
    match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

fn sends() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)))
        .is_ok()
}
