//! An image with a static busybox under all its names: the tar of a root file system, made once for each test program, in memory.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// What the tests call it.
pub const IMAGE: &str = "busybox";
/// Where Debian's busybox-static lies.
const PROGRAM: &str = "/bin/busybox";

/// The archive; `None` where there is no busybox.
pub fn archive() -> Option<&'static [u8]> {
    static ARCHIVE: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    ARCHIVE.get_or_init(|| Path::new(PROGRAM).exists().then(build)).as_deref()
}

fn owned_by_root() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn build() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode) in [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
        let mut header = owned_by_root();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        archive.append_data(&mut header, name, std::io::empty()).expect("a directory");
    }
    let mut program = owned_by_root();
    let bytes = std::fs::read(PROGRAM).expect("busybox");
    program.set_mode(0o755);
    program.set_size(bytes.len() as u64);
    archive.append_data(&mut program, "bin/busybox", bytes.as_slice()).expect("the program");
    let names = Command::new(PROGRAM).arg("--list").output().expect("busybox --list").stdout;
    for name in String::from_utf8_lossy(&names).lines().filter(|name| *name != "busybox") {
        let mut link = owned_by_root();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_mode(0o777);
        link.set_size(0);
        archive.append_link(&mut link, format!("bin/{name}"), "busybox").expect("a link");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    let group = "root:x:0:\nnogroup:x:65534:\n";
    for (name, text) in [("etc/passwd", passwd), ("etc/group", group)] {
        let mut header = owned_by_root();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, name, text.as_bytes()).expect("a file");
    }
    archive.into_inner().expect("the archive's end")
}
