//! Backend `project-quota`: a directory for each disk on the data directory's own ext4 or xfs, with a project id of its own and limits for it.
//!
//! Owns the instance's range of project ids, written to `project-ids` in the data directory when it is first needed. Which ids of it are in
//! use is the kernel's knowledge: those that have limits. An id belongs to the directory that carries it; limits of ids that no directory
//! carries are left from a crash, and swept away at start.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use atoll_sys::project_quota::{self, ProjectQuota};
use atoll_wire::shim::DiskBackend;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{DIRECTORY_NAME, Disk, Maker, entries, failed, mount_of, open, remove_tree};
use crate::RuntimeError;

/// Ids of one instance: more than it has disks at a time.
const IDS: u32 = 1 << 16;
/// Where ranges begin. Guess: administrators number projects from 1, other programs from 1000 or a million on.
const FIRST: u32 = 0x1000_0000;
/// Where they end: ids that are negative to old programs.
const END: u32 = 0x8000_0000;
/// Ids for trials lie just below.
const TRIAL_FIRST: u32 = FIRST - IDS;
/// A file or directory for each of these bytes, as images have.
const BYTES_PER_INODE: u64 = 8192;
/// Fewest files and directories that a disk has room for: upper, work and tmp are among them.
const FEWEST_INODES: u64 = 64;
/// The file with the range's first id, in decimal.
const RANGE_FILE: &str = "project-ids";

/// Makes directories with limits.
#[derive(Debug)]
pub(super) struct Projects {
    first: u32,
    next: Mutex<u32>,
}

impl Projects {
    /// Reads the instance's range, or chooses one that nobody uses on this file system and writes it down.
    pub(super) fn open(data_dir: &Path, seed: u32) -> Result<Self, RuntimeError> {
        let first = match read_range(data_dir)? {
            Some(first) => first,
            None => choose_range(data_dir, seed)?,
        };
        Ok(Self { first, next: Mutex::new(0) })
    }

    /// Limits an id that has none, and gives it to the directory.
    fn give(&self, directory: BorrowedFd<'_>, bytes: u64, inodes: u64) -> Result<(), Errno> {
        // Held throughout, so that nobody else finds the same id without limits.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..IDS {
            let id = self.first + *next;
            *next = (*next + 1) % IDS;
            if project_quota::quota(directory, id)? == ProjectQuota::default() {
                project_quota::set_limits(directory, id, bytes, inodes)?;
                return project_quota::set_project(directory, id);
            }
        }
        Err(Errno::DQUOT)
    }
}

impl Maker for Projects {
    fn backend(&self) -> DiskBackend {
        DiskBackend::ProjectQuota
    }

    fn make(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        let path = pool.join(name);
        rustix::fs::mkdir(&path, Mode::RWXU)
            .map_err(|errno| failed("create", &path)(errno.into()))?;
        let made = || {
            let directory = open(&path)?;
            self.give(directory.as_fd(), size_bytes, inodes(size_bytes))
                .map_err(|errno| failed("set a project quota for", &path)(errno.into()))?;
            mount_of(&directory, &path)
        };
        match made() {
            Ok(mount) => Ok(Disk { path, mount }),
            Err(error) => {
                // The first error is the one to report; limits that stay are swept at the next start.
                let _ = super::remove(&path);
                Err(error)
            }
        }
    }
}

const fn inodes(size_bytes: u64) -> u64 {
    let inodes = size_bytes / BYTES_PER_INODE;
    if inodes < FEWEST_INODES { FEWEST_INODES } else { inodes }
}

/// Removes a disk's directory and the limits of its id, where it has one of ours.
pub(super) fn remove(path: &Path, directory: OwnedFd) -> Result<(), RuntimeError> {
    let id = project_quota::project_of(directory.as_fd()).unwrap_or(0);
    drop(directory);
    remove_tree::remove(path)?;
    if (TRIAL_FIRST..END).contains(&id) {
        let parent = open(path.parent().unwrap_or(Path::new("/")))?;
        match project_quota::set_limits(parent.as_fd(), id, 0, 0) {
            // Quotas have been switched off: the limits are gone with them.
            Ok(()) | Err(Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed("take back the project quota of", path)(errno.into())),
        }
    }
    Ok(())
}

/// Takes back the limits of the instance's ids that no disk carries.
pub(super) fn sweep(data_dir: &Path) {
    let swept = || -> Result<(), RuntimeError> {
        let Some(first) = read_range(data_dir)? else { return Ok(()) };
        let carried = carried(data_dir)?;
        let place = open(data_dir)?;
        let io = |errno: Errno| failed("read project quotas of", data_dir)(errno.into());
        let mut from = first;
        while let Some((id, quota)) = known(place.as_fd(), from).map_err(io)? {
            if id >= first + IDS {
                break;
            }
            if quota.limit_bytes != 0 && !carried.contains(&id) {
                project_quota::set_limits(place.as_fd(), id, 0, 0).map_err(io)?;
            }
            from = id + 1;
        }
        Ok(())
    };
    if let Err(error) = swept() {
        tracing::warn!(%error, "project quotas of an earlier server may be left");
    }
}

/// As [`project_quota::next_known`]; nothing is known where there are no quotas any more.
fn known(place: BorrowedFd<'_>, from: u32) -> Result<Option<(u32, ProjectQuota)>, Errno> {
    match project_quota::next_known(place, from) {
        Err(Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(None),
        known => known,
    }
}

/// The project ids of all disks below the data directory.
fn carried(data_dir: &Path) -> Result<BTreeSet<u32>, RuntimeError> {
    let mut ids = BTreeSet::new();
    for place in ["sandboxes", "quarantine"] {
        for sandbox in entries(&data_dir.join(place))? {
            for container in entries(&sandbox)? {
                // One that is gone by now carries nothing.
                let Ok(disk) = open(&container.join(DIRECTORY_NAME)) else { continue };
                ids.extend(project_quota::project_of(disk.as_fd()).ok());
            }
        }
    }
    for volume in entries(&data_dir.join(super::VOLUMES))? {
        let Ok(disk) = open(&volume.join(DIRECTORY_NAME)) else { continue };
        ids.extend(project_quota::project_of(disk.as_fd()).ok());
    }
    Ok(ids)
}

fn range_file(data_dir: &Path) -> PathBuf {
    data_dir.join(RANGE_FILE)
}

fn read_range(data_dir: &Path) -> Result<Option<u32>, RuntimeError> {
    let path = range_file(data_dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let first = text.trim().parse::<u32>().ok();
    match first.filter(|first| (FIRST..END).contains(first) && first.is_multiple_of(IDS)) {
        Some(first) => Ok(Some(first)),
        None => Err(failed("read the range in", &path)(std::io::Error::other(
            "it is damaged: delete all sandboxes of this data directory, then the file",
        ))),
    }
}

fn choose_range(data_dir: &Path, seed: u32) -> Result<u32, RuntimeError> {
    let place = open(data_dir)?;
    let ranges = (END - FIRST) / IDS;
    let first_of = |number: u32| FIRST + (number % ranges) * IDS;
    let io = |errno: Errno| failed("read project quotas of", data_dir)(errno.into());
    let unused = |first: u32| -> Result<bool, RuntimeError> {
        let known = known(place.as_fd(), first).map_err(io)?;
        Ok(known.is_none_or(|(id, _)| id >= first + IDS))
    };
    for number in 0..ranges {
        let first = first_of(seed.wrapping_add(number) % ranges);
        if unused(first)? {
            let path = range_file(data_dir);
            let half_written = path.with_extension("new");
            fs::write(&half_written, format!("{first}\n"))
                .and_then(|()| fs::rename(&half_written, &path))
                .map_err(failed("write", &path))?;
            return Ok(first);
        }
    }
    Err(RuntimeError::Host { message: "every range of project ids is in use".into() })
}

/// For a trial: a directory with limits of an id that is nobody's.
pub(super) fn trial_directory(place: &Path, bytes: u64, inodes: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(place, flags, Mode::empty())?;
    let trial = Projects { first: TRIAL_FIRST, next: Mutex::new(std::process::id() % IDS) };
    trial.give(directory.as_fd(), bytes, inodes)?;
    Ok(directory)
}
