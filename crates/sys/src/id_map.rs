//! The ids of a sandbox: how many, how they are given to a user namespace, and whether a file system can show its files under them.
//!
//! Owns the maps' format, and a try for real of id-mapped mounts, from a process that may have threads. Leaves nothing behind.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::mount;

/// Ids that a sandbox has: all that a 16-bit system knows, `nobody` included.
pub const IDS_PER_SANDBOX: u32 = 65_536;

/// Why a directory's files cannot be id-mapped.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// No user namespace.
    #[error(
        "cannot make a user namespace: enable user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
    )]
    UserNamespace {
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A user namespace cannot be given ids.
    #[error("cannot write {}", path.display())]
    Map {
        /// The map.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file system does not take part, or the kernel is older than 5.12.
    #[error("the file system of {} has no id-mapped mounts: use ext4, xfs or btrfs on a kernel from 5.19 on", path.display())]
    FileSystem {
        /// The directory tried.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Tries to id-map the directory's file system to 65,536 ids from `first_host_id` on.
///
/// # Errors
/// [`IdMapError`] says what is missing.
pub fn try_id_map(directory: &Path, first_host_id: u32) -> Result<(), IdMapError> {
    let namespace = user_namespace(first_host_id)?;
    let failed =
        |errno: Errno| IdMapError::FileSystem { path: directory.to_owned(), source: errno.into() };
    let opened = mount::open_directory(directory).map_err(failed)?;
    let copy = mount::copy_tree(opened.as_fd(), Path::new(""), false).map_err(failed)?;
    mount::map_ids(copy.as_fd(), namespace.as_fd()).map_err(failed)
}

/// A user namespace whose ids 0 to 65535 are the host's from `first_host_id` on.
fn user_namespace(first_host_id: u32) -> Result<OwnedFd, IdMapError> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack this is a fork. The caller may have threads, so the child calls nothing that could
    // take a lock: it asks the kernel to suspend it, by system call, until it is killed.
    let answer =
        unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    if answer == 0 {
        loop {
            // SAFETY: waits in the kernel, touches no memory.
            unsafe { libc::syscall(libc::SYS_ppoll, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) };
        }
    }
    let child = libc::pid_t::try_from(answer).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let Some(child) = child else {
        return Err(IdMapError::UserNamespace { source: std::io::Error::last_os_error() });
    };
    let namespace = map_and_open(child.as_raw_nonzero().get(), first_host_id);
    // Both concern a child that nobody else reaps.
    let _ = kill_process(child, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    namespace
}

fn map_and_open(pid: i32, first_host_id: u32) -> Result<OwnedFd, IdMapError> {
    write_id_maps(pid, first_host_id)?;
    let path = PathBuf::from(format!("/proc/{pid}/ns/user"));
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| IdMapError::UserNamespace { source: errno.into() })
}

/// Gives the user namespace of that process its ids, once: 0 to 65535 are the host's from `first_host_id` on.
pub(crate) fn write_id_maps(pid: i32, first_host_id: u32) -> Result<(), IdMapError> {
    let map = format!("0 {first_host_id} {IDS_PER_SANDBOX}");
    for name in ["uid_map", "gid_map"] {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        fs::write(&path, &map).map_err(|source| IdMapError::Map { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_cannot_be_mapped_and_a_missing_directory_is_named() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: id_map::proc_cannot_be_mapped: needs root");
            return;
        }
        let refused = try_id_map(Path::new("/proc"), 1_879_048_192).unwrap_err();
        assert!(matches!(refused, IdMapError::FileSystem { .. }), "{refused}");
        let missing = try_id_map(Path::new("/nonexistent/atoll"), 1_879_048_192).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/atoll"));
    }
}
