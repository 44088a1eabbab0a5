//! Disks that outlive their users: found again, counted, and mounted for each user, whatever bounds them.
//!
//! All mounts of one disk are of one file system, also those that sandboxes of an earlier server hold. Who mounts calls one after the other.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use atoll_model::causes::with_causes;
use atoll_sys::disk_image::mount_lasting_image;
use atoll_wire::shim::DiskBackend;
use rustix::fs::OFlags;

use super::{failed, file_name, image, mount_of, open, usage_of_directory, usage_of_image};
use crate::{DiskUsage, RuntimeError};

/// Smallest disk: an ext4 with a journal (4 MiB) leaves room for files then.
pub(crate) const LASTING_MIN_BYTES: u64 = 16 << 20;

/// The disk in a volume's directory, of whatever kind; `None`: there is none.
pub(crate) fn find_lasting(directory: &Path) -> Option<PathBuf> {
    let mut names = [image::FILE_NAME, file_name(DiskBackend::ProjectQuota)].into_iter();
    names.find_map(|name| {
        let path = directory.join(name);
        fs::symlink_metadata(&path).is_ok().then_some(path)
    })
}

/// A mount of its own of a disk, for one user: its root is the disk's. nosuid and nodev.
pub(crate) fn mount_lasting(path: &Path) -> Result<OwnedFd, RuntimeError> {
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if metadata.is_dir() {
        return mount_of(&open(path)?, path);
    }
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))?;
    mount_lasting_image(&image, path)
        .map_err(|error| RuntimeError::Host { message: with_causes(&error) })
}

/// What a disk holds. `asked_bytes`: its size.
pub(crate) fn usage_of_lasting(
    path: &Path,
    asked_bytes: u64,
) -> Result<Option<DiskUsage>, RuntimeError> {
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if !metadata.is_dir() {
        return usage_of_image(&mount_lasting(path)?);
    }
    let directory = open(path)?;
    let is_subvolume = atoll_sys::btrfs::subvolume(directory.as_fd()).is_ok_and(|it| it.is_some());
    let backend = if is_subvolume { DiskBackend::Btrfs } else { DiskBackend::ProjectQuota };
    usage_of_directory(backend, path, asked_bytes)
}
