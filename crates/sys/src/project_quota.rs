//! Project quotas of ext4 and xfs: a directory tree with an id of its own, and limits for what carries that id.
//!
//! Owns thin, typed calls. Decides nothing: which ids are whose, and whether a limit is really enforced, is the caller's business. Needs Linux
//! 5.14 (`quotactl_fd`).
//!
//! Who may give a file another id: the owner of a file could leave its quota behind that way. SOURCE: `fileattr_set_prepare` in fs/ioctl.c,
//! project ids change only from within the first user namespace; the seccomp profile refuses the call to everybody else.

use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::{btrfs as uapi, ioctl};
use rustix::io::Errno;

use crate::errno::last_errno;

/// SOURCE: include/uapi/linux/quota.h.
const PROJECT: libc::c_int = 2;
const GET_QUOTA: libc::c_int = 0x0080_0007;
const SET_QUOTA: libc::c_int = 0x0080_0008;
const GET_NEXT_QUOTA: libc::c_int = 0x0080_0009;
const VALID_LIMITS: u32 = 1 | 4;
/// The unit of block limits there.
const LIMIT_UNIT_BYTES: u64 = 1024;

/// What may be, and what is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProjectQuota {
    /// Most bytes; 0: no limit.
    pub limit_bytes: u64,
    /// Most files and directories; 0: no limit.
    pub limit_inodes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Files and directories in use.
    pub used_inodes: u64,
}

/// SOURCE: `struct if_nextdqblk` in include/uapi/linux/quota.h, which begins as `struct if_dqblk` does.
#[derive(Default)]
#[repr(C)]
struct QuotaBlock {
    block_hard_limit: u64,
    block_soft_limit: u64,
    current_bytes: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    current_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
    id: u32,
}

impl QuotaBlock {
    const fn quota(&self) -> ProjectQuota {
        ProjectQuota {
            limit_bytes: self.block_hard_limit.saturating_mul(LIMIT_UNIT_BYTES),
            limit_inodes: self.inode_hard_limit,
            used_bytes: self.current_bytes,
            used_inodes: self.current_inodes,
        }
    }
}

/// Gives an open, empty directory a project id, which all that is made below it inherits.
///
/// # Errors
/// The kernel's answer: ENOTTY or EOPNOTSUPP where the file system has no project ids.
pub fn set_project(directory: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    let mut attributes = attributes(directory)?;
    attributes.fsx_projid = id;
    attributes.fsx_xflags |= uapi::FS_XFLAG_PROJINHERIT;
    // SAFETY: FS_IOC_FSSETXATTR reads one `fsxattr`, which lives until the call returns, and writes nothing.
    let answer = unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            libc::Ioctl::from(ioctl::FS_IOC_FSSETXATTR),
            std::ptr::from_ref(&attributes),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The project id of an open file or directory; 0: none.
///
/// # Errors
/// The kernel's answer: ENOTTY or EOPNOTSUPP where the file system has no project ids.
pub fn project_of(file: BorrowedFd<'_>) -> Result<u32, Errno> {
    Ok(attributes(file)?.fsx_projid)
}

fn attributes(file: BorrowedFd<'_>) -> Result<uapi::fsxattr, Errno> {
    let mut found = uapi::fsxattr {
        fsx_xflags: 0,
        fsx_extsize: 0,
        fsx_nextents: 0,
        fsx_projid: 0,
        fsx_cowextsize: 0,
        fsx_pad: [0; 8],
    };
    // SAFETY: FS_IOC_FSGETXATTR writes one `fsxattr`, which lives until the call returns.
    let answer = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::Ioctl::from(ioctl::FS_IOC_FSGETXATTR),
            std::ptr::from_mut(&mut found),
        )
    };
    if answer == 0 { Ok(found) } else { Err(last_errno()) }
}

/// Sets both limits of a project, 0 for none. Limits of bytes are cut to whole KiB.
///
/// # Errors
/// The kernel's answer: ESRCH or ENOSYS where the file system of `place` keeps no project quotas.
pub fn set_limits(
    place: BorrowedFd<'_>,
    id: u32,
    limit_bytes: u64,
    limit_inodes: u64,
) -> Result<(), Errno> {
    let mut block = QuotaBlock {
        block_hard_limit: limit_bytes / LIMIT_UNIT_BYTES,
        inode_hard_limit: limit_inodes,
        valid: VALID_LIMITS,
        ..QuotaBlock::default()
    };
    call(place, SET_QUOTA, id, &mut block)
}

/// A project's quota; all zero for one that nothing is known of.
///
/// # Errors
/// The kernel's answer: ESRCH or ENOSYS where the file system of `place` keeps no project quotas.
pub fn quota(place: BorrowedFd<'_>, id: u32) -> Result<ProjectQuota, Errno> {
    let mut block = QuotaBlock::default();
    match call(place, GET_QUOTA, id, &mut block) {
        // xfs has no record of an id that was never used.
        Ok(()) | Err(Errno::NOENT) => Ok(block.quota()),
        Err(errno) => Err(errno),
    }
}

/// The first project from `id` on that the file system of `place` has a record of; `None`: there is none.
///
/// # Errors
/// The kernel's answer: ESRCH or ENOSYS where it keeps no project quotas.
pub fn next_known(place: BorrowedFd<'_>, id: u32) -> Result<Option<(u32, ProjectQuota)>, Errno> {
    let mut block = QuotaBlock::default();
    match call(place, GET_NEXT_QUOTA, id, &mut block) {
        Ok(()) => Ok(Some((block.id, block.quota()))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn call(
    place: BorrowedFd<'_>,
    command: libc::c_int,
    id: u32,
    block: &mut QuotaBlock,
) -> Result<(), Errno> {
    // SAFETY: the kernel reads or writes at most one `QuotaBlock`, the largest of the commands' structures, which lives until the call
    // returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            place.as_raw_fd(),
            (command << 8) | PROJECT,
            id,
            std::ptr::from_mut(block),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}
