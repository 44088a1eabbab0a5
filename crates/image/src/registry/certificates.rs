//! Certificates of private authorities: beside those of the system, for every registry or for one.

use std::path::{Path, PathBuf};

use reqwest::Certificate;

use super::RegistryError;

/// Largest file looked at (guess: a bundle of the system's size, doubled).
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads `*.pem` and `*.crt` at the top of the directory and in its subdirectory of this registry's name.
pub(super) fn load(directory: &Path, registry: &str) -> Result<Vec<Certificate>, RegistryError> {
    let mut certificates = Vec::new();
    for directory in [directory.to_owned(), directory.join(registry)] {
        for path in files(&directory)? {
            certificates.extend(read(&path)?);
        }
    }
    Ok(certificates)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |error: std::io::Error| RegistryError::Certificate {
        path: directory.into(),
        detail: error.to_string(),
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_certificate =
            path.extension().is_some_and(|extension| extension == "pem" || extension == "crt");
        if is_certificate && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<Certificate>, RegistryError> {
    let failed = |detail: String| RegistryError::Certificate { path: path.into(), detail };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(failed(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&bytes)
        .map_err(|error| failed(super::error::chain(&error)))?;
    if certificates.is_empty() {
        return Err(failed("it holds no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}
