//! Who uses which image, across restarts: one empty file per sandbox and image.
//!
//! Not synced: what a crash of the machine loses, it ends too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Inner;
use crate::digest::Digest;
use crate::error::{ImageError, io_error};
use crate::store::Image;

/// Longest holder.
const MAX_HOLDER_BYTES: usize = 64;

pub(super) struct Leases {
    directory: PathBuf,
    by_holder: BTreeMap<String, BTreeSet<Digest>>,
    last_used: HashMap<Digest, jiff::Timestamp>,
}

impl Leases {
    pub(super) fn load(directory: &Path) -> Result<Self, ImageError> {
        let mut leases = Self {
            directory: directory.into(),
            by_holder: BTreeMap::new(),
            last_used: HashMap::new(),
        };
        for name in names(directory)? {
            let parsed = name.split_once('~').filter(|(holder, _)| is_holder(holder)).and_then(
                |(holder, hex)| Some((holder, format!("sha256:{hex}").parse::<Digest>().ok()?)),
            );
            match parsed {
                Some((holder, digest)) => {
                    leases.by_holder.entry(holder.to_owned()).or_default().insert(digest);
                }
                None => {
                    tracing::warn!(name, directory = %directory.display(), "a lease with a name that makes no sense is ignored")
                }
            }
        }
        leases.load_last_used()?;
        Ok(leases)
    }

    fn used_directory(&self) -> PathBuf {
        self.directory.with_file_name("used")
    }

    fn load_last_used(&mut self) -> Result<(), ImageError> {
        let used = self.used_directory();
        for name in names(&used)? {
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let modified =
                std::fs::metadata(used.join(&name)).and_then(|metadata| metadata.modified());
            if let Some(time) = modified.ok().and_then(|time| jiff::Timestamp::try_from(time).ok())
            {
                self.last_used.insert(digest, time);
            }
        }
        Ok(())
    }

    pub(super) fn holders(&self) -> Vec<String> {
        self.by_holder.keys().cloned().collect()
    }

    pub(super) fn holders_of(&self, digest: &Digest) -> Vec<String> {
        self.by_holder
            .iter()
            .filter(|(_, digests)| digests.contains(digest))
            .map(|(holder, _)| holder.clone())
            .collect()
    }

    /// Every image that somebody uses.
    pub(super) fn leased(&self) -> BTreeSet<&Digest> {
        self.by_holder.values().flatten().collect()
    }

    pub(super) fn last_used(&self, digest: &Digest) -> Option<jiff::Timestamp> {
        self.last_used.get(digest).copied()
    }

    /// The image was removed.
    pub(super) fn forget(&mut self, digest: &Digest) {
        self.last_used.remove(digest);
        let _ = std::fs::remove_file(self.used_directory().join(digest.hex()));
    }

    fn lease_path(&self, holder: &str, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{holder}~{}", digest.hex()))
    }

    fn add(&mut self, holder: &str, digest: &Digest) -> Result<(), ImageError> {
        self.touch(digest);
        if self.by_holder.get(holder).is_some_and(|digests| digests.contains(digest)) {
            return Ok(());
        }
        let path = self.lease_path(holder, digest);
        File::create(&path).map_err(|error| io_error("make", &path, error))?;
        self.by_holder.entry(holder.to_owned()).or_default().insert(digest.clone());
        Ok(())
    }

    fn end(&mut self, holder: &str) -> Result<(), ImageError> {
        let Some(digests) = self.by_holder.get(holder).cloned() else { return Ok(()) };
        for digest in &digests {
            let path = self.lease_path(holder, digest);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path, error));
                }
                _ => self.touch(digest),
            }
        }
        self.by_holder.remove(holder);
        Ok(())
    }

    /// Remembers that the image is used now. Losing that changes only which image is collected first.
    fn touch(&mut self, digest: &Digest) {
        self.last_used.insert(digest.clone(), jiff::Timestamp::now());
        let touched = File::create(self.used_directory().join(digest.hex()))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%digest, %error, "cannot note that an image was used");
        }
    }
}

impl Inner {
    pub(super) fn lease(&self, digest: &Digest, holder: &str) -> Result<Image, ImageError> {
        if !is_holder(holder) {
            return Err(ImageError::BadHolder { holder: holder.chars().take(80).collect() });
        }
        let mut state = self.state();
        let image = self
            .image(&state, digest)
            .ok_or_else(|| ImageError::NotFound { name: digest.to_string() })?;
        state.leases.add(holder, digest)?;
        Ok(image)
    }

    pub(super) fn release(&self, holder: &str) -> Result<(), ImageError> {
        self.state().leases.end(holder)
    }
}

/// Holders become file names.
fn is_holder(holder: &str) -> bool {
    (1..=MAX_HOLDER_BYTES).contains(&holder.len())
        && holder.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Names of a directory that are text.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| io_error("list", directory, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
