//! The namespaces that containers of one sandbox share: users, IPC and hostname.
//!
//! Owns making them. They live through their descriptors and the processes in them, never through a path.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::clone::{self, Child, CloneError};
use crate::id_map::{IdMapError, write_id_maps};
use crate::process::{self, Exit, Wait};

/// Shared namespaces could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// No process.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The namespace of users has no ids.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    /// A namespace that was made cannot be held.
    #[error("cannot open {}", path.display())]
    Open {
        /// The namespace's file.
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
    /// Makes them, with that hostname. `first_host_id`: the host's id of the sandbox's root, who also owns the user namespace: what the
    /// kernel counts by user (inotify instances, namespaces) is counted against the sandbox and never against the host's root, whose
    /// share one sandbox could use up otherwise.
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
        let child = as_owner(first_host_id, || {
            clone::start(kinds, None, || {
                let set = rustix::system::sethostname(hostname.as_bytes());
                // Its own end, or the parent would never be missed.
                // SAFETY: this copy of the process never uses its copy of `writer` again.
                unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(&writer)) };
                // Stays until the parent has opened the namespaces and closed the pipe.
                let _ = rustix::io::read(&reader, &mut [0_u8; 1]);
                set.map_or_else(Errno::raw_os_error, |()| 0)
            })
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
        if let Some(first) = first_host_id {
            write_id_maps(child.pid, first)?;
        }
        let open = |name: &str| {
            let path = PathBuf::from(format!("/proc/{}/ns/{name}", child.pid));
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| NamespaceError::Open { path, source: errno.into() })
        };
        Ok(Self {
            user: first_host_id.map(|_| open("user")).transpose()?,
            ipc: open("ipc")?,
            uts: open("uts")?,
        })
    }
}

/// Runs `make` with that effective user: the owner of the user namespaces that it makes.
fn as_owner(
    owner: Option<u32>,
    make: impl FnOnce() -> Result<Child, CloneError>,
) -> Result<Child, CloneError> {
    let Some(owner) = owner else { return make() };
    let (real, own) = (rustix::process::getuid(), rustix::process::geteuid());
    let become_user = |user| {
        // The saved id is the way back.
        rustix::thread::set_thread_res_uid(real, user, own)
            .map_err(|errno| CloneError::Refused { source: errno.into() })
    };
    become_user(rustix::process::Uid::from_raw(owner))?;
    let made = make();
    become_user(own)?;
    made
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
