//! Whether a limit holds: found by writing beyond it, as a sandbox would.
//!
//! A kernel that takes a limit need not enforce it (quotas that are only counted, a mount option that is missing), so nothing else is believed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The limit that a trial is to be given (bytes). Small, but above what an empty directory takes anywhere.
pub(super) const LIMIT_BYTES: u64 = 2 << 20;
/// Most files that a trial's disk is to be allowed, where files are counted.
pub(super) const LIMIT_INODES: u64 = 16;

/// What a full disk answers: the error of a write beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullDisk {
    /// ENOSPC, as a full file system does: programs know it.
    NoSpace,
    /// EDQUOT: programs say "Disk quota exceeded".
    QuotaExceeded,
}

/// Writes beyond [`LIMIT_BYTES`] in an open, empty directory.
///
/// # Errors
/// In words: the limit does not hold, or nothing can be written at all.
pub(super) fn write_beyond(directory: &OwnedFd) -> Result<FullDisk, String> {
    as_sandbox(|| {
        let file = create(directory, "full").map_err(|errno| errno.to_string())?;
        let chunk = vec![0x5a_u8; 64 << 10];
        let mut written = 0;
        while written < 2 * LIMIT_BYTES {
            match rustix::io::write(&file, &chunk) {
                Ok(length) => written += length as u64,
                Err(errno) => return answer(errno),
            }
        }
        // What was only promised is asked for now.
        match rustix::fs::fsync(&file) {
            Ok(()) => Err("a write beyond a limit succeeds".into()),
            Err(errno) => answer(errno),
        }
    })
}

/// Makes more than [`LIMIT_INODES`] files in an open directory.
///
/// # Errors
/// In words: the limit does not hold.
pub(super) fn create_beyond(directory: &OwnedFd) -> Result<FullDisk, String> {
    as_sandbox(|| {
        for number in 0..2 * LIMIT_INODES {
            if let Err(errno) = create(directory, &format!("file-{number}")) {
                return answer(errno);
            }
        }
        Err("a limit of files does not hold".into())
    })
}

fn answer(errno: Errno) -> Result<FullDisk, String> {
    match errno {
        Errno::NOSPC => Ok(FullDisk::NoSpace),
        Errno::DQUOT => Ok(FullDisk::QuotaExceeded),
        other => Err(format!("a write in a trial failed: {other}")),
    }
}

fn create(directory: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

/// On a thread that has given up what lets root write beyond limits, which no sandbox has. SOURCE: capabilities(7), CAP_SYS_RESOURCE:
/// "override disk quota limits".
fn as_sandbox<T: Send>(attempt: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let lesser = || {
        let mut sets = capabilities(None).map_err(|errno| errno.to_string())?;
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets).map_err(|errno| errno.to_string())?;
        attempt()
    };
    std::thread::scope(|scope| scope.spawn(lesser).join())
        .unwrap_or_else(|_| Err("a trial broke off".into()))
}
