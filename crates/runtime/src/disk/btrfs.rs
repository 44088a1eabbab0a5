//! Backend `btrfs`: a subvolume for each disk, limited by its quota group. Made and removed in one step each, however much lies in it.
//!
//! Owns `run/qgroups/<number>` below the data directory: an empty file for each quota group that must go and may not be gone yet. It is
//! written before the subvolume is deleted, since afterwards nobody could tell whose the group was; the kernel lets go of a group only
//! once it has cleaned up behind the subvolume, some seconds later.

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use atoll_sys::btrfs;
use atoll_wire::shim::DiskBackend;
use rustix::io::Errno;

use super::{Disk, Maker, entries, failed, mount_of, open, remove_tree};
use crate::RuntimeError;

/// How many old quota groups a removal tries to take along: more than it makes, so that they become fewer.
const TRIED_WITH_A_REMOVAL: usize = 4;

/// Makes subvolumes.
#[derive(Debug)]
pub(super) struct Subvolumes;

impl Maker for Subvolumes {
    fn backend(&self) -> DiskBackend {
        DiskBackend::Btrfs
    }

    fn make(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        let path = pool.join(name);
        let parent = open(pool)?;
        let io = |operation| {
            let path = path.clone();
            move |errno: Errno| failed(operation, &path)(errno.into())
        };
        let c_name = c_name(&path)?;
        btrfs::create_subvolume(parent.as_fd(), &c_name).map_err(io("make a subvolume at"))?;
        let made = || {
            let directory = open(&path)?;
            let number = btrfs::subvolume(directory.as_fd()).map_err(io("look at"))?;
            let number = number.ok_or_else(|| io("find the subvolume at")(Errno::NOENT))?;
            btrfs::limit(directory.as_fd(), number, size_bytes)
                .map_err(io("limit the quota group of"))?;
            mount_of(&directory, &path)
        };
        match made() {
            Ok(mount) => Ok(Disk { path, mount }),
            Err(error) => {
                // The first error is the one to report; a subvolume that stays is the next start's.
                let _ = super::remove(&path);
                Err(error)
            }
        }
    }
}

/// Removes a subvolume and its quota group.
pub(super) fn remove(path: &Path, number: u64) -> Result<(), RuntimeError> {
    let parent_path = path.parent().unwrap_or(Path::new("/"));
    let parent = open(parent_path)?;
    let groups = groups_of(path);
    if let Some(groups) = &groups {
        let note = groups.join(number.to_string());
        make_private(groups)?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&note)
            .map_err(failed("create", &note))?;
    }
    let c_name = c_name(path)?;
    match btrfs::delete_subvolume(parent.as_fd(), &c_name) {
        // Another subvolume within, which no workload can make but an administrator can.
        Err(Errno::NOTEMPTY) => remove_tree::remove(path)?,
        Err(Errno::NOENT) | Ok(()) => {}
        Err(errno) => return Err(failed("delete the subvolume", path)(errno.into())),
    }
    match groups {
        Some(groups) => forget(&groups, parent.as_fd(), TRIED_WITH_A_REMOVAL),
        None => drop(btrfs::remove_quota_group(parent.as_fd(), number)),
    }
    Ok(())
}

/// Removes the quota groups that earlier removals noted, and that the kernel lets go of by now.
pub(super) fn sweep(data_dir: &Path) {
    let groups = data_dir.join(GROUPS);
    if let Ok(place) = open(&groups) {
        forget(&groups, place.as_fd(), usize::MAX);
    }
}

/// Where quota groups to be removed are noted.
const GROUPS: &str = "run/qgroups";

fn make_private(groups: &Path) -> Result<(), RuntimeError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(groups).map_err(failed("create", groups))
}

/// The notes of the data directory that a disk lies in; `None` for a disk that lies in none, as in a trial.
fn groups_of(disk: &Path) -> Option<PathBuf> {
    disk.ancestors().skip(1).map(|above| above.join(GROUPS)).find(|groups| groups.is_dir())
}

/// Makes the directory of the notes.
pub(super) fn prepare(data_dir: &Path) -> Result<(), RuntimeError> {
    let groups = data_dir.join(GROUPS);
    make_private(&groups)
}

fn forget(groups: &Path, place: BorrowedFd<'_>, at_most: usize) {
    let notes = entries(groups).unwrap_or_default();
    for note in notes.into_iter().take(at_most) {
        let number = note.file_name().and_then(|name| name.to_str()?.parse().ok());
        let gone = match number.map(|number| btrfs::remove_quota_group(place, number)) {
            None | Some(Ok(()) | Err(Errno::NOENT | Errno::NOTCONN)) => true,
            Some(Err(_)) => false,
        };
        if gone {
            // A note that stays is read once more.
            let _ = fs::remove_file(&note);
        }
    }
}

fn c_name(path: &Path) -> Result<CString, RuntimeError> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    CString::new(name).map_err(|error| failed("name", path)(std::io::Error::other(error)))
}
