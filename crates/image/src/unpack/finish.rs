//! What the server adds to a tree that the helper built: marks that need CAP_SYS_ADMIN, and what only the layers below know.
//!
//! The helper's lists are hostile: each path is resolved inside the tree, and leads to a directory or to nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Gid, Mode, OFlags, Uid, XattrFlags};

use super::Unpacked;
use super::tree::open_directory;
use crate::merged::Merged;

/// SOURCE: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Completes the tree at `root` and makes all of it durable. `below`: the layers under this one, topmost first.
pub(crate) fn finish_layer(root: &Path, unpacked: &Unpacked, below: &[PathBuf]) -> io::Result<()> {
    let root = fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for path in &unpacked.opaque {
        let directory = open_directory(as_fd(&root), path, OFlags::RDONLY)?;
        fs::fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
    }
    if !below.is_empty() {
        let merged = Merged::open(below)?;
        for path in &unpacked.implicit {
            inherit(&root, path, &merged)?;
        }
        if !unpacked.root_described {
            inherit(&root, b".", &merged)?;
        }
    }
    fs::syncfs(&root)?;
    Ok(())
}

/// Gives a directory the owner and mode that it has in the layers below, if they have it.
fn inherit(root: &OwnedFd, path: &[u8], merged: &Merged) -> io::Result<()> {
    let Some(stat) = merged.directory_stat(path)? else { return Ok(()) };
    let directory = open_directory(as_fd(root), path, OFlags::RDONLY)?;
    fs::fchown(&directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fs::fchmod(&directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(())
}

fn as_fd(fd: &OwnedFd) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}
