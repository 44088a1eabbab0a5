//! Disks of sandboxes: bounded places to write to, whatever bounds them.
//!
//! The seam is small: a [`Maker`] makes an empty disk in the pool, as a file or directory and a mount of it that stands nowhere; [`remove`]
//! takes away whatever kind lies at a path, so that sandboxes outlive a change of the choice. What a disk is can be seen from itself: a
//! file is an image, a subvolume's root is btrfs's, a directory with a project id has a project quota. No list of them is kept, so none can
//! be wrong after a crash.
//!
//! | backend | a full disk answers | who takes it back after a crash |
//! |---|---|---|
//! | [`image`] | ENOSPC | the kernel (loop device), `remove` (file) |
//! | [`project_quota`] | ENOSPC on xfs, EDQUOT on ext4: found by trying | `remove` (directory, limits), [`project_quota`]'s sweep (limits) |
//! | [`btrfs`] | EDQUOT | `remove` (subvolume), [`btrfs`]'s sweep (quota groups) |

mod btrfs;
mod choice;
mod image;
mod lasting;
mod project_quota;
mod remove_tree;
mod trial;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::DiskBackend;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{DiskUsage, RuntimeError};

pub(crate) use choice::maker;
pub use choice::{ChosenDisks, DiskChoice, UnknownBackend, choose, try_all};
pub(crate) use lasting::{LASTING_MIN_BYTES, find_lasting, mount_lasting, usage_of_lasting};
pub use trial::FullDisk;

/// A new, empty disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// It, mounted nowhere; nosuid and nodev.
    pub(crate) mount: OwnedFd,
}

/// One way of bounding disks, on one data directory.
pub(crate) trait Maker: Send + Sync {
    /// Which.
    fn backend(&self) -> DiskBackend;

    /// Makes an empty disk in the directory `pool`. What fails leaves nothing that [`remove`] and the start of the next server would not find.
    fn make(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError>;

    /// The same for a disk that outlives its users and crashes of the host. What is there of it when this returns survives them.
    fn make_lasting(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        self.make(pool, name, size_bytes)
    }
}

/// The name of a container's disk in its directory.
pub(crate) const fn file_name(backend: DiskBackend) -> &'static str {
    match backend {
        DiskBackend::Image => image::FILE_NAME,
        DiskBackend::Btrfs | DiskBackend::ProjectQuota => DIRECTORY_NAME,
    }
}

const DIRECTORY_NAME: &str = "disk";
/// Begins the name of a volume's directory among what is on its way out; no sandbox's name begins so.
pub(crate) const REMOVED_VOLUME: &str = "volume-";
/// Below the data directory: a directory for each disk that outlives its users.
pub(crate) const VOLUMES: &str = "volumes";

/// What a disk that is a directory holds. `None`: nobody counts it, as where quotas were switched off meanwhile. `asked_bytes`: its size.
pub(crate) fn usage_of_directory(
    backend: DiskBackend,
    path: &Path,
    asked_bytes: u64,
) -> Result<Option<DiskUsage>, RuntimeError> {
    let directory = open(path)?;
    let counted = || {
        if backend == DiskBackend::ProjectQuota {
            let id = atoll_sys::project_quota::project_of(directory.as_fd())?;
            let quota = atoll_sys::project_quota::quota(directory.as_fd(), id)?;
            return Ok((quota.limit_bytes > 0).then_some((quota.limit_bytes, quota.used_bytes)));
        }
        let Some(number) = atoll_sys::btrfs::subvolume(directory.as_fd())? else { return Ok(None) };
        let used = atoll_sys::btrfs::used_bytes(directory.as_fd(), number)?;
        Ok(used.map(|used| (asked_bytes, used)))
    };
    let counted = counted().map_err(|errno: Errno| failed("count", path)(errno.into()))?;
    Ok(counted.map(|(limit_bytes, used_bytes)| DiskUsage { backend, limit_bytes, used_bytes }))
}

/// What a disk that is an image holds, asked of a directory on it.
pub(crate) fn usage_of_image(mounted: &OwnedFd) -> Result<Option<DiskUsage>, RuntimeError> {
    let stat = rustix::fs::fstatvfs(mounted)
        .map_err(|errno| failed("count", Path::new("a container's root"))(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Some(DiskUsage {
        backend: DiskBackend::Image,
        limit_bytes: bytes(stat.f_blocks),
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
    }))
}

/// Removes the disk at a path, of whatever kind, with all that the host keeps of it. Absent already is as good.
pub(crate) fn remove(path: &Path) -> Result<(), RuntimeError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !metadata.is_dir() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        };
    }
    let directory = open(path)?;
    if let Some(subvolume) = atoll_sys::btrfs::subvolume(directory.as_fd())
        .map_err(|errno| failed("look at", path)(errno.into()))?
    {
        drop(directory);
        return btrfs::remove(path, subvolume);
    }
    project_quota::remove(path, directory)
}

/// Removes the disks in a sandbox's directory, wherever that lies now.
pub(crate) fn remove_all_of(sandbox: &Path) -> Result<(), RuntimeError> {
    for disk in disks_of(sandbox)? {
        remove(&disk)?;
    }
    Ok(())
}

/// Removes the disks that lie in a directory of prepared ones or of removed sandboxes.
pub(crate) fn remove_what_is_left(directory: &Path) -> Result<(), RuntimeError> {
    for entry in entries(directory)? {
        if is_disk(&entry) {
            remove(&entry)?;
        } else if is_removed_volume(&entry) {
            // Its disk is what a sandbox wrote: nothing is looked for inside.
            find_lasting(&entry).map_or(Ok(()), |disk| remove(&disk))?;
        } else {
            remove_all_of(&entry)?;
        }
    }
    Ok(())
}

/// Whether a directory is a volume's that is on its way out.
fn is_removed_volume(path: &Path) -> bool {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    name.is_some_and(|name| name.starts_with(REMOVED_VOLUME))
}

/// Whether a directory is a disk itself.
fn is_disk(path: &Path) -> bool {
    open(path).is_ok_and(|directory| {
        atoll_sys::btrfs::subvolume(directory.as_fd()).is_ok_and(|number| number.is_some())
            || atoll_sys::project_quota::project_of(directory.as_fd()).is_ok_and(|id| id != 0)
    })
}

/// The paths where a sandbox's directory has disks, of whatever kind.
fn disks_of(sandbox: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let mut found = Vec::new();
    for container in entries(sandbox)? {
        for name in [image::FILE_NAME, DIRECTORY_NAME] {
            let disk = container.join(name);
            if fs::symlink_metadata(&disk).is_ok() {
                found.push(disk);
            }
        }
    }
    Ok(found)
}

/// What lies in a directory; nothing when it is none or absent.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let path = |entry: std::io::Result<fs::DirEntry>| entry.map(|entry| entry.path());
    listed.map(path).collect::<Result<_, _>>().map_err(failed("list", directory))
}

/// What an earlier server's end left of disks that are nobody's any more, on `data_dir`. Best effort: what stays is told and tried again at the
/// next start.
pub(crate) fn sweep(data_dir: &Path) {
    choice::sweep(data_dir);
    btrfs::sweep(data_dir);
    project_quota::sweep(data_dir);
}

/// A detached mount of a directory, to be placed in any mount namespace. nosuid and nodev, as images are mounted.
fn mount_of(directory: &OwnedFd, path: &Path) -> Result<OwnedFd, RuntimeError> {
    let attributes = Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOATIME;
    mount::copy_tree(directory.as_fd(), Path::new(""), false)
        .and_then(|copy| {
            mount::add_attributes(copy.as_fd(), attributes)?;
            Ok(copy)
        })
        .map_err(|errno| failed("mount", path)(errno.into()))
}

fn open(directory: &Path) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|errno: Errno| failed("open", directory)(errno.into()))
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::Io { operation, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kill in the middle of a deletion leaves it: its depth is the workload's choice.
    #[test]
    fn what_is_left_of_a_deleted_volume_goes_however_deep_it_is() {
        let place = tempfile::tempdir().unwrap();
        let disk =
            place.path().join(format!("{REMOVED_VOLUME}0123456789abcdef")).join(DIRECTORY_NAME);
        fs::create_dir_all(&disk).unwrap();
        let mut at = open(&disk).unwrap();
        for _ in 0..6000 {
            rustix::fs::mkdirat(&at, DIRECTORY_NAME, Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, DIRECTORY_NAME, flags, Mode::empty()).unwrap();
        }
        drop(at);
        remove_what_is_left(place.path()).unwrap();
        assert!(!disk.exists());
    }
}
