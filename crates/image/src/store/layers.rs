//! Layers on disk: made once in a staging directory, then given their name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Inner, LayerRecord};
use crate::atomic_file::{self, sync_directory};
use crate::digest::Digest;
use crate::error::{ImageError, io_error};
use crate::unpack::{
    Mode, Outcome, Request, Staged, UnpackError, Unpacked, finish_layer, own_pid, wrong_answer,
};

/// A layer to be made.
pub(crate) struct LayerJob<'a> {
    /// The archive, read from its start.
    pub(crate) archive: File,
    /// What people know it by.
    pub(crate) label: String,
    /// What it must contain; `None`: whatever it does.
    pub(crate) diff_id: Option<&'a Digest>,
    /// Chains of the layers below, lowest first.
    pub(crate) below: &'a [LayerRecord],
}

/// Beside a layer's tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LayerFile {
    diff_id: Digest,
    size_bytes: u64,
    archive_bytes: u64,
    entries: u64,
    skipped_devices: u64,
    skipped_xattrs: u64,
}

/// Keeps layers from being collected until their image is in the index.
pub(crate) struct Pins {
    store: Arc<Inner>,
    chains: Vec<Digest>,
}

impl Pins {
    pub(crate) fn new(store: &Arc<Inner>) -> Self {
        Self { store: Arc::clone(store), chains: Vec::new() }
    }

    /// Takes over what other pins of the same store keep.
    pub(crate) fn extend(&mut self, mut other: Self) {
        self.chains.append(&mut other.chains);
    }

    pub(crate) fn add(&mut self, chain: &Digest) {
        *self.store.state().pins.entry(chain.clone()).or_default() += 1;
        self.chains.push(chain.clone());
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for chain in &self.chains {
            if let Some(count) = state.pins.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(chain);
                }
            }
        }
    }
}

impl Inner {
    pub(crate) fn layer_directory(&self, chain: &Digest) -> PathBuf {
        self.directory.join("layers").join(chain.hex())
    }

    pub(crate) fn layer_tree(&self, chain: &Digest) -> PathBuf {
        self.layer_directory(chain).join("fs")
    }

    /// The layer of this chain, if it is here. Pinned by it is what is found.
    pub(crate) fn find_layer(&self, chain: &Digest, pins: &mut Pins) -> Option<LayerRecord> {
        // Pinned first: what is seen after that stays.
        pins.add(chain);
        let file = self.layer_directory(chain).join("layer.json");
        let layer: LayerFile = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        Some(LayerRecord { chain: chain.clone(), size_bytes: layer.size_bytes })
    }

    /// Unpacks a layer whose content is known by its diff id, unless it is here; says whether it was.
    pub(crate) fn ensure_layer(
        &self,
        job: LayerJob<'_>,
        diff_id: &Digest,
        pins: &mut Pins,
    ) -> Result<(LayerRecord, bool), ImageError> {
        let chain = Digest::chain(job.below.last().map(|layer| &layer.chain), diff_id);
        self.unpacking.run(&chain, || match self.find_layer(&chain, pins) {
            Some(layer) => Ok((layer, true)),
            None => self.make_layer(job, pins).map(|(layer, _)| (layer, false)),
        })
    }

    /// Unpacks a layer. Gives its record, diff id and the size of the plain archive.
    pub(crate) fn make_layer(
        &self,
        job: LayerJob<'_>,
        pins: &mut Pins,
    ) -> Result<(LayerRecord, (Digest, u64)), ImageError> {
        let label = job.label.clone();
        let failed = |source| ImageError::Unpack { layer: label.clone(), source };
        let staging = self.staging_directory()?;
        let tree = staging.path().join("fs");
        fs::create_dir(&tree).map_err(|error| io_error("make", &tree, error))?;
        let mode =
            Mode::Layer { lowest: job.below.is_empty(), require_end_mark: job.diff_id.is_none() };
        let unpacked = match self.run_helper(job.archive, &tree, mode).map_err(failed)? {
            Outcome::Unpacked(unpacked) => unpacked,
            Outcome::Failed(error) => return Err(failed(error)),
            Outcome::Staged(_) | Outcome::Probed(_) => return Err(failed(wrong_answer())),
        };
        let Some(diff_id) = unpacked.diff_id.clone() else { return Err(failed(wrong_answer())) };
        if let Some(expected) = job.diff_id.filter(|expected| **expected != diff_id) {
            return Err(ImageError::DigestMismatch {
                what: format!("the content of layer {}", job.label),
                expected: expected.clone(),
                actual: diff_id,
            });
        }
        if unpacked.skipped_devices > 0 {
            tracing::info!(
                layer = job.label,
                count = unpacked.skipped_devices,
                "device nodes of a layer were left out"
            );
        }
        let below: Vec<PathBuf> =
            job.below.iter().rev().map(|layer| self.layer_tree(&layer.chain)).collect();
        finish_layer(&tree, &unpacked, &below)
            .map_err(|error| io_error("complete", &tree, error))?;
        let chain = Digest::chain(job.below.last().map(|layer| &layer.chain), &diff_id);
        pins.add(&chain);
        self.name_layer(staging, &chain, &diff_id, &unpacked)?;
        let layer = LayerRecord { chain, size_bytes: unpacked.content_bytes };
        Ok((layer, (diff_id, unpacked.archive_bytes)))
    }

    /// Gives a finished layer its name; another one of the same content that was faster stays.
    fn name_layer(
        &self,
        staging: tempfile::TempDir,
        chain: &Digest,
        diff_id: &Digest,
        unpacked: &Unpacked,
    ) -> Result<(), ImageError> {
        let file = LayerFile {
            diff_id: diff_id.clone(),
            size_bytes: unpacked.content_bytes,
            archive_bytes: unpacked.archive_bytes,
            entries: unpacked.entries,
            skipped_devices: unpacked.skipped_devices,
            skipped_xattrs: unpacked.skipped_xattrs,
        };
        let path = staging.path().join("layer.json");
        let bytes = serde_json::to_vec(&file)
            .map_err(|error| io_error("write", &path, std::io::Error::other(error)))?;
        atomic_file::replace(&path, &bytes).map_err(|error| io_error("write", &path, error))?;
        let directory = self.layer_directory(chain);
        match fs::rename(staging.path(), &directory) {
            Ok(()) => {
                let _ = staging.keep();
                let parent = self.directory.join("layers");
                sync_directory(&parent).map_err(|error| io_error("sync", &parent, error))
            }
            Err(_) if directory.join("fs").is_dir() => Ok(()),
            Err(error) => Err(io_error("rename to", &directory, error)),
        }
    }

    /// Takes the files of an image archive out of it, into `directory`.
    pub(crate) fn stage(
        &self,
        archive: &Path,
        label: &str,
        directory: &Path,
    ) -> Result<Staged, ImageError> {
        let failed = |source| ImageError::Unpack { layer: label.to_owned(), source };
        let file = File::open(archive).map_err(|error| io_error("open", archive, error))?;
        match self.run_helper(file, directory, Mode::Stage).map_err(failed)? {
            Outcome::Staged(staged) => Ok(staged),
            Outcome::Failed(error) => Err(failed(error)),
            Outcome::Unpacked(_) | Outcome::Probed(_) => Err(failed(wrong_answer())),
        }
    }

    fn run_helper(&self, file: File, directory: &Path, mode: Mode) -> Result<Outcome, UnpackError> {
        let request = Request { mode, limits: self.limits(), parent_pid: own_pid() };
        Ok(self.options.helper.run(file, directory, &request)?)
    }
}
