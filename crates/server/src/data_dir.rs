//! The data directory: its layout (documented here and nowhere else), its version, its lock.
//!
//! | path | what |
//! |---|---|
//! | `layout.json` | version of this layout; older is migrated, newer refused |
//! | `lock` | locked (flock) by the server for as long as it lives; holds its pid, for people |
//! | `token` | the bearer token, 64 hexadecimal digits, mode 0600 |
//! | `server.json` | `wire::rest::ServerRecord`: address and process, while it serves |
//! | `store/atoll.db` | objects and events, SQLite |
//! | `sandboxes/<uid>/` | one sandbox, see `wire::shim` |
//! | `quarantine/` | sandbox directories and store records that could not be believed, whole |
//! | `images/` | the image store |
//! | `run/` | programs, sockets and mounts of the running server; may be removed while none runs |

use std::fs::File;
use std::path::{Path, PathBuf};

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another server has it.
    #[error("{} is in use by another server (pid {pid}); stop it with 'atoll down --data-dir {}', or use another --data-dir", path.display(), path.display())]
    Locked {
        /// Which.
        path: PathBuf,
        /// Who, as far as the lock file says.
        pid: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// As a verb.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Written by a newer atoll.
    #[error("{} has layout version {found}, this atoll knows up to {known}: use the newer atoll that wrote it", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Not something that atoll wrote.
    #[error("{} is not a layout file of atoll: {message}; if this directory holds something else, use another --data-dir", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Why not.
        message: String,
    },
}

impl DataDir {
    /// Opens (or makes) and locks a data directory.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { operation, path, source }
        };
        std::fs::create_dir_all(path).map_err(io("create", path))?;
        let path = path.canonicalize().map_err(io("resolve", path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
                return Err(DataDirError::Locked { path, pid: pid.trim().to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(DataDirError::Io { operation: "lock", path: lock_path, source });
            }
        }
        Ok(Self { path, _lock: lock })
    }

    /// The directory, resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
