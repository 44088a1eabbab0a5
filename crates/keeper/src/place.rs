//! Where a keeper is found: its lock, its socket and its log, in the network's directory of an instance's data.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// Longest path of a socket, with its closing zero. SOURCE: unix(7), sun_path.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The files of a keeper.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    directory: PathBuf,
}

impl Place {
    /// Within the data directory of an instance.
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("network") }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("keeper.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("keeper.log")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.join("keeper.lock")
    }

    /// Locks it for as long as the file lives. `None`: another keeper lives.
    pub(crate) fn take_lock(&self) -> std::io::Result<Option<File>> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(self.lock())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Does something with an address of the socket, however long its path is.
    pub(crate) fn with_address<T>(
        &self,
        act: impl FnOnce(&Path) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let path = self.socket();
        if path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            return act(&path);
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, flags, Mode::empty())?;
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        act(&PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
    }
}
