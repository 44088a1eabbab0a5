//! Removing a tree that a sandbox wrote: as deep and as wide as it could make it.
//!
//! Never recurses and never holds more than two directories open: what is nested is first moved to the top. Follows no symbolic link and
//! leaves the file system of the tree's root alone but for what lies below that root. Nobody may write to the tree meanwhile.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{failed, open};
use crate::RuntimeError;

/// Removes a directory with all that is in it. Can be done again after it was broken off.
pub(super) fn remove(path: &Path) -> Result<(), RuntimeError> {
    let root = open(path)?;
    let io = |errno: Errno| failed("remove", path)(errno.into());
    empty(root.as_fd()).map_err(io)?;
    drop(root);
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(io(errno)),
    }
}

fn empty(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut moved = 0_u64;
    loop {
        let mut left = false;
        for name in names(root)? {
            left = true;
            // ISDIR is Linux's word for "a directory", PERM is POSIX's.
            match rustix::fs::unlinkat(root, &*name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => remove_directory(root, &name, &mut moved)?,
                Err(errno) => return Err(errno),
            }
        }
        if !left {
            return Ok(());
        }
    }
}

/// Removes a directory of the root's, or empties it: its files go, its directories come to the root under new names.
fn remove_directory(
    root: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    moved: &mut u64,
) -> Result<(), Errno> {
    match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return done,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(root, name, flags, Mode::empty())?;
    for inner in names(directory.as_fd())? {
        match rustix::fs::unlinkat(&directory, &*inner, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                match rustix::fs::unlinkat(&directory, &*inner, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        bring_up(root, &directory, &inner, moved)?
                    }
                    done => done?,
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR)
}

fn bring_up(
    root: BorrowedFd<'_>,
    directory: impl AsFd,
    name: &std::ffi::CStr,
    moved: &mut u64,
) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let to = format!("moved-{moved}");
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&directory, name, root, to.as_str(), flags) {
            // The sandbox had one of that name.
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
}

/// Everything in a directory, which may change afterwards. Bounded by what fits onto a sandbox's disk.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let is_itself = matches!(entry.file_name().to_bytes(), b"." | b"..");
        if !(is_itself && matches!(entry.file_type(), FileType::Directory | FileType::Unknown)) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn deep_and_wide_trees_go_and_what_links_lead_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let kept = place.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        fs::create_dir_all(tree.join("moved-1/moved-2")).unwrap();
        for number in 0..2000 {
            fs::write(tree.join(format!("file-{number}")), "").unwrap();
        }
        // Deeper than a path can be long, and than a process can have files open.
        let mut at = open(&tree).unwrap();
        for level in 0..6000 {
            rustix::fs::mkdirat(&at, "a-directory", Mode::RWXU).unwrap();
            if level % 100 == 0 {
                rustix::fs::symlinkat("/", &at, "up").unwrap();
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, "a-directory", flags, Mode::empty()).unwrap();
        }
        drop(at);
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
    }
}
