//! The namespaces that containers of one sandbox share: users, IPC and hostname.
//!
//! Owns making them and writing id maps. They live through their descriptors and the processes in them, never through a path.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::clone::{self, Child, CloneError};
use crate::process::{self, Exit, Wait};

/// Ids that a sandbox has: all that a 16-bit system knows, `nobody` included.
pub const IDS_PER_SANDBOX: u32 = 65_536;

/// Shared namespaces could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// No process.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// An id map or a namespace file.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The helper process that stood in the new namespaces failed.
    #[error("cannot set the hostname in the new namespace")]
    Hostname {
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The namespaces that a sandbox's containers share.
#[derive(Debug)]
pub struct SharedNamespaces {
    /// Maps ids 0 to 65535 to the sandbox's own; `None`: the host's.
    pub user: Option<OwnedFd>,
    /// System V IPC and POSIX queues; owned by `user`.
    pub ipc: OwnedFd,
    /// The hostname; owned by `user`.
    pub uts: OwnedFd,
}

impl SharedNamespaces {
    /// Makes them, with that hostname. `first_host_id`: the host's id of the sandbox's root.
    ///
    /// # Errors
    /// [`NamespaceError`]; nothing is left.
    pub fn create(hostname: &str, first_host_id: Option<u32>) -> Result<Self, NamespaceError> {
        let mut kinds = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        if first_host_id.is_some() {
            kinds |= UnshareFlags::NEWUSER;
        }
        let pipe =
            |errno: Errno| NamespaceError::Clone(CloneError::Refused { source: errno.into() });
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(pipe)?;
        let child = clone::start(kinds, None, || {
            let set = rustix::system::sethostname(hostname.as_bytes());
            // Its own end, or the parent would never be missed.
            // SAFETY: this copy of the process never uses its copy of `writer` again.
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(&writer)) };
            // Stays until the parent has opened the namespaces and closed the pipe.
            let _ = rustix::io::read(&reader, &mut [0_u8; 1]);
            set.map_or_else(Errno::raw_os_error, |()| 0)
        })?;
        let opened = Self::open(&child, first_host_id);
        drop(writer);
        let ended = process::reap(child.pid, Wait::Block);
        let namespaces = opened?;
        match ended {
            Ok(Some(Exit::Code(0))) => Ok(namespaces),
            Ok(Some(Exit::Code(errno))) => {
                Err(NamespaceError::Hostname { source: std::io::Error::from_raw_os_error(errno) })
            }
            _ => Err(NamespaceError::Hostname { source: Errno::IO.into() }),
        }
    }

    fn open(child: &Child, first_host_id: Option<u32>) -> Result<Self, NamespaceError> {
        let directory = PathBuf::from(format!("/proc/{}", child.pid));
        if let Some(first) = first_host_id {
            let map = format!("0 {first} {IDS_PER_SANDBOX}");
            for name in ["uid_map", "gid_map"] {
                let path = directory.join(name);
                fs::write(&path, &map).map_err(|source| NamespaceError::Io {
                    operation: "write",
                    path,
                    source,
                })?;
            }
        }
        let open = |name: &str| {
            let path = directory.join("ns").join(name);
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
                |errno| NamespaceError::Io { operation: "open", path, source: errno.into() },
            )
        };
        Ok(Self {
            user: first_host_id.map(|_| open("user")).transpose()?,
            ipc: open("ipc")?,
            uts: open("uts")?,
        })
    }
}

/// Moves the calling process into a namespace of any kind.
///
/// # Errors
/// The kernel's answer.
pub fn enter(namespace: impl AsFd) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness has threads; the success path is tested by the container engine's tests.
        let parked = std::thread::spawn(std::thread::park);
        let error = super::SharedNamespaces::create("name", None).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
        parked.thread().unpark();
        parked.join().unwrap();
    }
}
