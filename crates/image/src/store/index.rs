//! Which images there are and what they are called: one file, replaced as a whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use atoll_model::image_reference::ImageReference;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{ImageError, io_error};

const FILE: &str = "index.json";

/// An image, complete on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) config: Arc<ImageConfig>,
    /// The configuration's blob.
    pub(crate) config_digest: Digest,
    /// Lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) imported_at: jiff::Timestamp,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Names its directory.
    pub(crate) chain: Digest,
    /// Bytes of its files.
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    images: BTreeMap<Digest, ImageRecord>,
    /// Canonical reference to manifest digest.
    references: BTreeMap<String, Digest>,
}

impl Index {
    /// Reads the index. One that makes no sense is set aside: images can be pulled again, sandboxes go on with theirs. Images whose
    /// layers are gone are dropped.
    pub(super) fn load(directory: &Path) -> Result<Self, ImageError> {
        let path = directory.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(io_error("read", &path, error)),
        };
        let mut index: Self = match serde_json::from_slice(&bytes) {
            Ok(index) => index,
            Err(error) => {
                let aside = directory.join("index.json.damaged");
                tracing::error!(path = %path.display(), aside = %aside.display(), %error, "the index of images is damaged and was set aside; pull or import images again");
                std::fs::rename(&path, &aside)
                    .map_err(|error| io_error("set aside", &path, error))?;
                return Ok(Self::default());
            }
        };
        let complete = |record: &ImageRecord| {
            record
                .layers
                .iter()
                .all(|layer| directory.join("layers").join(layer.chain.hex()).join("fs").is_dir())
        };
        index.images.retain(|digest, record| {
            let keep = complete(record);
            if !keep {
                tracing::warn!(%digest, "an image lost a layer on disk and is forgotten; pull or import it again");
            }
            keep
        });
        index.references.retain(|_, digest| index.images.contains_key(digest));
        Ok(index)
    }

    pub(super) fn save(&self, directory: &Path) -> Result<(), ImageError> {
        let path = directory.join(FILE);
        let bytes = serde_json::to_vec(self)
            .map_err(|error| io_error("write", &path, std::io::Error::other(error)))?;
        atomic_file::replace(&path, &bytes).map_err(|error| io_error("write", &path, error))
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&ImageRecord> {
        self.images.get(digest)
    }

    pub(super) fn digests(&self) -> Vec<Digest> {
        self.images.keys().cloned().collect()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (&Digest, &ImageRecord)> {
        self.images.iter()
    }

    /// The image of a reference: a digest in it decides alone, whatever its name.
    pub(super) fn find(&self, reference: &ImageReference) -> Option<Digest> {
        if let Some(text) = reference.digest() {
            let digest: Digest = text.parse().ok()?;
            if self.images.contains_key(&digest) {
                return Some(digest);
            }
            // The digest of an index, from which this machine's image was chosen.
            let by_index = reference.with_digest(text).ok()?;
            return self.references.get(&by_index.to_string()).cloned();
        }
        self.references.get(&reference.to_string()).cloned()
    }

    /// Familiar forms, ascending.
    pub(super) fn references_of(&self, digest: &Digest) -> Vec<String> {
        let mut names: Vec<String> = self
            .references
            .iter()
            .filter(|(_, named)| *named == digest)
            .map(|(name, _)| {
                name.parse()
                    .map_or_else(|_| name.clone(), |reference: ImageReference| reference.familiar())
            })
            .collect();
        names.sort();
        names
    }

    pub(super) fn insert(
        &mut self,
        digest: Digest,
        record: ImageRecord,
        references: &[ImageReference],
    ) {
        for reference in references {
            // name:tag@digest: the tag was not looked up, so it names nothing here.
            let name = match reference.digest().map(|digest| reference.with_digest(digest)) {
                Some(Ok(by_digest)) => by_digest.to_string(),
                _ => reference.to_string(),
            };
            self.references.insert(name, digest.clone());
        }
        self.images.entry(digest).or_insert(record);
    }

    pub(super) fn remove_reference(&mut self, reference: &ImageReference) {
        self.references.remove(&reference.to_string());
    }

    /// Removes an image and all its references.
    pub(super) fn remove(&mut self, digest: &Digest) {
        self.images.remove(digest);
        self.references.retain(|_, named| named != digest);
    }
}
