//! Subvolumes of btrfs and the limits of their quota groups.
//!
//! Owns thin, typed calls. Decides nothing, and never switches a file system's quotas on: that changes all of it. A subvolume's own quota
//! group is made by the kernel with it, and its number is the subvolume's.
//!
//! Who may make a subvolume: everybody who may write to a directory, and what is made has a quota group of its own. The seccomp profile
//! refuses it to sandboxes.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::ctypes::c_char;
use linux_raw_sys::{btrfs as uapi, ioctl};
use rustix::io::Errno;

use crate::errno::last_errno;
use crate::mount::file_system_magic;

/// SOURCE: BTRFS_SUPER_MAGIC in include/uapi/linux/magic.h.
const MAGIC: u64 = 0x9123_683E;
/// The inode of every subvolume's root. SOURCE: BTRFS_FIRST_FREE_OBJECTID in include/uapi/linux/btrfs_tree.h, as the numbers below.
const ROOT_INODE: u64 = 256;
const QUOTA_TREE: u64 = 8;
const QGROUP_INFO_KEY: u32 = 242;
/// Where `rfer` stands in `struct btrfs_qgroup_info_item`: behind the generation.
const REFERENCED_AT: usize = 8;

/// Whether an open directory lies on btrfs.
///
/// # Errors
/// The kernel's answer.
pub fn is_btrfs(directory: impl AsFd) -> Result<bool, Errno> {
    Ok(file_system_magic(directory)? == MAGIC)
}

/// The number of the subvolume whose root an open directory is; `None`: it is no subvolume's root.
///
/// # Errors
/// The kernel's answer.
pub fn subvolume(directory: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let is_root = rustix::fs::fstat(directory)?.st_ino == ROOT_INODE;
    if !is_root || !is_btrfs(directory)? {
        return Ok(None);
    }
    let mut lookup =
        uapi::btrfs_ioctl_ino_lookup_args { treeid: 0, objectid: ROOT_INODE, name: [0; 4080] };
    call(directory, ioctl::BTRFS_IOC_INO_LOOKUP, &mut lookup)?;
    Ok(Some(lookup.treeid))
}

/// Makes an empty subvolume.
///
/// # Errors
/// The kernel's answer: ENOTTY where `parent` does not lie on btrfs.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    call(parent, ioctl::BTRFS_IOC_SUBVOL_CREATE, &mut named(name)?)
}

/// Removes a subvolume with all that it holds, whoever has it open or mounted.
///
/// # Errors
/// The kernel's answer: ENOTEMPTY where another subvolume lies in it.
pub fn delete_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    call(parent, ioctl::BTRFS_IOC_SNAP_DESTROY, &mut named(name)?)
}

/// Limits what the files of a subvolume may refer to.
///
/// # Errors
/// The kernel's answer: ENOTCONN where quotas are not on.
pub fn limit(place: BorrowedFd<'_>, subvolume: u64, bytes: u64) -> Result<(), Errno> {
    let limit = uapi::btrfs_qgroup_limit {
        flags: u64::from(uapi::BTRFS_QGROUP_LIMIT_MAX_RFER),
        max_rfer: bytes,
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    let mut limits = uapi::btrfs_ioctl_qgroup_limit_args { qgroupid: subvolume, lim: limit };
    call(place, ioctl::BTRFS_IOC_QGROUP_LIMIT, &mut limits)
}

/// Removes the quota group that a deleted subvolume left.
///
/// # Errors
/// The kernel's answer: ENOENT when it is gone, EBUSY as long as the subvolume is not wholly deleted, ENOTCONN where quotas are not on.
pub fn remove_quota_group(place: BorrowedFd<'_>, subvolume: u64) -> Result<(), Errno> {
    let mut group = uapi::btrfs_ioctl_qgroup_create_args { create: 0, qgroupid: subvolume };
    call(place, ioctl::BTRFS_IOC_QGROUP_CREATE, &mut group)
}

/// What the files of a subvolume refer to, in bytes, as of the file system's last commit. `None`: it has no quota group.
///
/// # Errors
/// The kernel's answer: ENOENT where quotas are not on.
pub fn used_bytes(place: BorrowedFd<'_>, subvolume: u64) -> Result<Option<u64>, Errno> {
    let key = uapi::btrfs_ioctl_search_key {
        tree_id: QUOTA_TREE,
        min_objectid: 0,
        max_objectid: 0,
        min_offset: subvolume,
        max_offset: subvolume,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: QGROUP_INFO_KEY,
        max_type: QGROUP_INFO_KEY,
        nr_items: 1,
        unused: 0,
        unused1: 0,
        unused2: 0,
        unused3: 0,
        unused4: 0,
    };
    let mut search = uapi::btrfs_ioctl_search_args { key, buf: [0; 3992] };
    call(place, ioctl::BTRFS_IOC_TREE_SEARCH, &mut search)?;
    if search.key.nr_items == 0 {
        return Ok(None);
    }
    let at = size_of::<uapi::btrfs_ioctl_search_header>() + REFERENCED_AT;
    let mut bytes = [0_u8; 8];
    for (byte, found) in bytes.iter_mut().zip(&search.buf[at..]) {
        [*byte] = found.to_ne_bytes();
    }
    Ok(Some(u64::from_le_bytes(bytes)))
}

fn named(name: &CStr) -> Result<uapi::btrfs_ioctl_vol_args, Errno> {
    let mut arguments = uapi::btrfs_ioctl_vol_args { fd: 0, name: [0; 4088] };
    let bytes = name.to_bytes();
    if bytes.len() >= arguments.name.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, from) in arguments.name.iter_mut().zip(bytes) {
        *to = c_char::from_ne_bytes([*from]);
    }
    Ok(arguments)
}

/// What btrfs's calls exchange with the kernel.
trait Arguments {}
impl Arguments for uapi::btrfs_ioctl_ino_lookup_args {}
impl Arguments for uapi::btrfs_ioctl_vol_args {}
impl Arguments for uapi::btrfs_ioctl_qgroup_limit_args {}
impl Arguments for uapi::btrfs_ioctl_qgroup_create_args {}
impl Arguments for uapi::btrfs_ioctl_search_args {}

fn call(file: BorrowedFd<'_>, number: u32, arguments: &mut impl Arguments) -> Result<(), Errno> {
    // SAFETY: `Arguments` are the kernel's own structures, plain numbers without pointers, and every caller gives the one that its call reads
    // and writes; it lives until the call returns.
    let answer = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(number), std::ptr::from_mut(arguments))
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}
