//! Registry credentials at rest: one file, readable by its owner only, never logged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::error::{ImageError, io_error};

/// User name and password (or token) of a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The file.
pub(crate) struct CredentialFile {
    path: PathBuf,
    known: Mutex<BTreeMap<String, Credentials>>,
}

impl CredentialFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self, ImageError> {
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io_error("understand", &path, std::io::Error::other(error)))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(io_error("read", &path, error)),
        };
        Ok(Self { path, known: Mutex::new(known) })
    }

    pub(crate) fn get(&self, registry: &str) -> Option<Credentials> {
        self.lock().get(registry).cloned()
    }

    /// Registries with credentials, and the user names.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        self.lock()
            .iter()
            .map(|(registry, known)| (registry.clone(), known.username.clone()))
            .collect()
    }

    /// Sets or removes (`None`) those of a registry; says whether there were some.
    pub(crate) fn set(
        &self,
        registry: &str,
        credentials: Option<Credentials>,
    ) -> Result<bool, ImageError> {
        let mut known = self.lock();
        let mut next = known.clone();
        let before = match credentials {
            Some(credentials) => next.insert(registry.to_owned(), credentials),
            None => next.remove(registry),
        };
        write(&self.path, &next)?;
        *known = next;
        Ok(before.is_some())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Credentials>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn write(path: &Path, known: &BTreeMap<String, Credentials>) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(known)
        .map_err(|error| io_error("write", path, std::io::Error::other(error)))?;
    atomic_file::replace(path, &bytes).map_err(|error| io_error("write", path, error))
}
