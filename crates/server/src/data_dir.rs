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
//! | `volumes/<uid>/` | one named volume: its disk, and `condemned` once it is to go |
//! | `quarantine/` | sandbox directories and store records that could not be believed, whole |
//! | `images/` | the image store |
//! | `bin/<digest>/` | the guest and shim programs; a version stays while sandboxes use it |
//! | `runsc/<uid>/` | what runsc keeps of a running sandbox |
//! | `registry-credentials.json` | registries' credentials, mode 0600 |
//! | `certs/` | certificates of private authorities, put there by the operator |
//! | `gvisor-host.json` | what was found out about runsc on this machine |
//! | `template-*.ext4` | empty disks, copied for sandboxes |
//! | `server.log`, `server.log.1` | what a server that was started with `--detach` logs, and the part before it |
//! | `run/` | programs, sockets and mounts of the running server; may be removed while none runs |

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_sys::process::ProcessIdentity;
use atoll_wire::record::ProcessId;
use atoll_wire::rest::{SERVER_RECORD_VERSION, ServerRecord};
use serde::{Deserialize, Serialize};

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
        Self::create(path)?;
        let path = path.canonicalize().map_err(io("resolve", path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        let give_up_at = Instant::now() + HELD_UNTIL_AN_EXEC;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() < give_up_at => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
                    return Err(DataDirError::Locked { path, pid: pid.trim().to_owned() });
                }
                Err(std::fs::TryLockError::Error(source)) => {
                    return Err(DataDirError::Io { operation: "lock", path: lock_path, source });
                }
            }
        }
        let data_dir = Self { path, _lock: lock };
        data_dir.note_pid(&lock_path);
        data_dir.check_layout()?;
        Ok(data_dir)
    }

    /// Makes the directory, for its owner alone, where there is none. Does not lock it.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn create(path: &Path) -> Result<(), DataDirError> {
        let failed =
            |source| DataDirError::Io { operation: "create", path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if !(error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir()) => {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }

    /// For people only: the lock itself is the kernel's.
    fn note_pid(&self, lock_path: &Path) {
        if let Err(error) = std::fs::write(lock_path, format!("{}\n", std::process::id())) {
            tracing::warn!(%error, "the lock file cannot be written");
        }
    }

    fn check_layout(&self) -> Result<(), DataDirError> {
        let path = self.path.join("layout.json");
        match std::fs::read(&path) {
            Ok(text) => check_layout_text(&path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let layout = Layout { layout: LAYOUT_VERSION };
                let text = serde_json::to_vec(&layout).unwrap_or_default();
                self.write_whole(&path, &text)
            }
            Err(source) => Err(DataDirError::Io { operation: "read", path, source }),
        }
    }

    /// Written beside, synced, renamed: there is never half of it.
    fn write_whole(&self, path: &Path, text: &[u8]) -> Result<(), DataDirError> {
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            file.write_all(text)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataDirError::Io {
            operation: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// The bearer token; made at the first start, readable by the owner only.
    pub(crate) fn token(&self) -> Result<String, DataDirError> {
        let path = self.path.join("token");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let token = text.trim();
                // Fail closed: an empty or cut token would be easy to guess.
                if token.len() < 32 {
                    let message =
                        "it is shorter than 32 characters; remove it, and a new one is made"
                            .to_owned();
                    return Err(DataDirError::Foreign { path, message });
                }
                Ok(token.to_owned())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(|error| {
                    let source = std::io::Error::other(error.to_string());
                    DataDirError::Io {
                        operation: "get random bytes for",
                        path: path.clone(),
                        source,
                    }
                })?;
                let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                self.write_whole(&path, format!("{token}\n").as_bytes())?;
                Ok(token)
            }
            Err(source) => Err(DataDirError::Io { operation: "read", path, source }),
        }
    }

    /// Tells others where this server is.
    pub(crate) fn write_server_record(&self, address: &str) -> Result<(), DataDirError> {
        let path = self.path.join("server.json");
        let identity = ProcessIdentity::of_self().map_err(|error| DataDirError::Foreign {
            path: path.clone(),
            message: format!("this process cannot be identified: {error}"),
        })?;
        let process = ProcessId {
            pid: identity.pid,
            start_time_ticks: identity.start_time_ticks,
            boot_id: identity.boot_id,
        };
        let record = ServerRecord {
            version: SERVER_RECORD_VERSION,
            process,
            address: address.to_owned(),
            build: crate::VERSION.to_owned(),
            started_at: crate::time::now_text(),
        };
        let text = serde_json::to_vec(&record).unwrap_or_default();
        self.write_whole(&path, &text)
    }

    /// Nobody is to look for this server any more.
    pub(crate) fn remove_server_record(&self) {
        // A record that stays names a process that is gone: nobody believes it.
        std::fs::remove_file(self.path.join("server.json")).ok();
    }

    pub(crate) fn store_directory(&self) -> PathBuf {
        self.path.join("store")
    }

    pub(crate) fn sandboxes_directory(&self) -> PathBuf {
        self.path.join("sandboxes")
    }

    /// The directory, resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Version of the layout described above.
const LAYOUT_VERSION: u32 = 1;

/// How long a lock is waited for that a killed server, or a child it had just forked, may hold for a moment more.
const HELD_UNTIL_AN_EXEC: Duration = Duration::from_millis(500);

/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

#[derive(Serialize, Deserialize)]
struct Layout {
    layout: u32,
}

fn check_layout_text(path: &Path, text: &[u8]) -> Result<(), DataDirError> {
    let path = path.to_owned();
    match serde_json::from_slice::<Layout>(text) {
        Ok(Layout { layout }) if layout > LAYOUT_VERSION => {
            Err(DataDirError::Newer { path, found: layout, known: LAYOUT_VERSION })
        }
        Ok(Layout { layout: 0 }) => {
            Err(DataDirError::Foreign { path, message: "version 0".to_owned() })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(DataDirError::Foreign { path, message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_server_is_refused_and_told_whose_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataDir::open(directory.path()).unwrap();
        match DataDir::open(directory.path()) {
            Err(DataDirError::Locked { pid, .. }) => {
                assert_eq!(pid, std::process::id().to_string())
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        DataDir::open(directory.path()).unwrap();
    }

    #[test]
    fn a_new_data_directory_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/data");
        DataDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_token_is_made_once_and_for_the_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(directory.path()).unwrap();
        let token = data_dir.token().unwrap();
        assert_eq!((token.len(), data_dir.token().unwrap()), (64, token.clone()));
        let mode = std::fs::metadata(directory.path().join("token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(directory.path().join("token"), "short").unwrap();
        assert!(matches!(data_dir.token(), Err(DataDirError::Foreign { .. })));
    }

    #[test]
    fn a_newer_or_foreign_layout_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(DataDir::open(directory.path()).unwrap());
        for (text, newer) in [
            ("{\"layout\":2}", true),
            ("{\"layout\":0}", false),
            ("{}", false),
            ("x", false),
            ("", false),
        ] {
            std::fs::write(directory.path().join("layout.json"), text).unwrap();
            match DataDir::open(directory.path()) {
                Err(DataDirError::Newer { found: 2, known: 1, .. }) if newer => {}
                Err(DataDirError::Foreign { .. }) if !newer => {}
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
