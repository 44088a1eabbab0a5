//! The guest and shim programs as files of the data directory: `<data>/bin/<digest>/`.
//!
//! Owns writing them and removing versions that no sandbox needs. A version's files never change: running guests are mounted from them.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::RuntimeError;

use super::directory::io_error;

/// Digits of the digest that name a version: enough for the handful that ever lie side by side.
const NAME_DIGITS: usize = 16;
const GUEST: &str = "atoll-guest";
pub(super) const SHIM: &str = "atoll-shim";

/// One version of the two programs, on disk.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    root: PathBuf,
    name: String,
}

impl Programs {
    /// Writes them where they are not yet.
    pub(super) fn install(
        data_dir: &Path,
        guest: &[u8],
        shim: &[u8],
    ) -> Result<Self, RuntimeError> {
        let root = data_dir.join("bin");
        let name = name_of(guest, shim);
        let directory = root.join(&name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(io_error("create", &directory))?;
        // Class `container` mounts the guest for an unprivileged root, which must be able to reach it.
        for (file, program) in [(GUEST, guest), (SHIM, shim)] {
            write_program(&directory, file, program)?;
        }
        Ok(Self { root, name })
    }

    pub(super) fn guest(&self) -> PathBuf {
        self.root.join(&self.name).join(GUEST)
    }

    pub(super) fn shim(&self) -> PathBuf {
        self.root.join(&self.name).join(SHIM)
    }

    /// Removes versions other than this one and those of these guests. What cannot be removed stays for the next time.
    pub(super) fn remove_unused(&self, guests: &BTreeSet<PathBuf>) {
        let Ok(versions) = fs::read_dir(&self.root) else { return };
        for version in versions.flatten() {
            let path = version.path();
            let used = version.file_name() == self.name.as_str()
                || guests.iter().any(|guest| guest.starts_with(&path));
            if !used && let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "an unused program stays");
            }
        }
    }
}

fn name_of(guest: &[u8], shim: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(u64::try_from(guest.len()).unwrap_or(u64::MAX).to_le_bytes());
    hasher.update(guest);
    hasher.update(shim);
    let mut name: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    name.truncate(NAME_DIGITS);
    name
}

fn write_program(directory: &Path, name: &str, program: &[u8]) -> Result<(), RuntimeError> {
    let path = directory.join(name);
    // The name is the digest: a file of that size is the program, unless the disk lies.
    let length = u64::try_from(program.len()).unwrap_or(u64::MAX);
    if fs::metadata(&path).is_ok_and(|found| found.len() == length) {
        return Ok(());
    }
    let half_written = directory.join(format!(".{name}-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half_written)
        .and_then(|mut file| {
            file.write_all(program)?;
            file.set_permissions(Permissions::from_mode(0o555))?;
            file.sync_all()
        });
    written.map_err(io_error("write", &half_written))?;
    fs::rename(&half_written, &path).map_err(io_error("rename a program to", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_lie_side_by_side_until_nobody_needs_them() {
        let data = tempfile::tempdir().unwrap();
        let old = Programs::install(data.path(), b"guest 1", b"shim 1").unwrap();
        let new = Programs::install(data.path(), b"guest 2", b"shim 1").unwrap();
        assert_eq!(fs::read(old.guest()).unwrap(), b"guest 1");
        assert_eq!(fs::metadata(new.shim()).unwrap().permissions().mode() & 0o777, 0o555);
        new.remove_unused(&BTreeSet::from([old.guest()]));
        assert!(old.guest().exists(), "a sandbox uses it");
        new.remove_unused(&BTreeSet::new());
        assert!(!old.guest().exists());
        assert!(new.guest().exists());
    }
}
