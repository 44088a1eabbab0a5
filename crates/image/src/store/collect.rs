//! Removing images and what nobody needs any more.
//!
//! Deciding is a pure function ([`plan`]); removing renames a layer out of sight first, so that a crash leaves no half layer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use atoll_model::image_reference::ImageReference;

use super::leases::names;
use super::{Inner, State};
use crate::digest::Digest;
use crate::error::{ImageError, io_error};

/// Interrupted downloads older than this are not resumed any more (guess: a pull is tried again within a day).
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// When enough is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HighWater {
    /// The file system of the store may be used up to this many percent (100: nothing is removed but leftovers).
    DiskPercent(u8),
    /// The store's layers may have this many bytes (0: every unused image is removed).
    StoreBytes(u64),
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// References in familiar form and manifest digests.
    pub removed: Vec<String>,
    /// Bytes of the files of layers that went.
    pub freed_bytes: u64,
}

/// An image that may be removed.
struct Candidate {
    digest: Digest,
    last_used: jiff::Timestamp,
    named: bool,
}

/// In which order images would go: unnamed ones, then those not used for longest.
fn plan(mut candidates: Vec<Candidate>) -> Vec<Digest> {
    candidates
        .sort_by(|a, b| (a.named, a.last_used, &a.digest).cmp(&(b.named, b.last_used, &b.digest)));
    candidates.into_iter().map(|candidate| candidate.digest).collect()
}

impl Inner {
    pub(super) fn remove(&self, name: &str) -> Result<Collected, ImageError> {
        let digest = self.find(name)?;
        let has_other_names = self.state().index.references_of(&digest).len() > 1;
        if has_other_names
            && name.parse::<Digest>().is_err()
            && let Ok(reference) = name.parse::<ImageReference>()
        {
            let _writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.change_index(|index| index.remove_reference(&reference))?;
            return Ok(Collected { removed: vec![reference.familiar()], freed_bytes: 0 });
        }
        let mut collected = Collected::default();
        self.remove_image(&digest, name, &mut collected)?;
        collected.freed_bytes += self.remove_unneeded_layers()?;
        self.remove_unneeded_blobs()?;
        Ok(collected)
    }

    /// Unasked, before something new comes in. A failure is no reason not to try.
    pub(crate) fn make_room(&self) {
        let high_water = HighWater::DiskPercent(self.options.high_water_percent);
        // Below the mark nothing is touched: the next pull goes on from what a failed one left.
        let collected = match self.is_above(high_water) {
            Ok(true) => self.collect(high_water, self.options.kept_unused),
            Ok(false) => return,
            Err(error) => Err(error),
        };
        match collected {
            Ok(collected) if collected.removed.is_empty() => {}
            Ok(collected) => {
                tracing::info!(removed = ?collected.removed, freed_bytes = collected.freed_bytes, "the disk is nearly full: unused images were removed")
            }
            Err(error) => tracing::warn!(%error, "unused images could not be removed"),
        }
    }

    /// Spares images that were used or brought in within `kept_unused`.
    pub(super) fn collect(
        &self,
        high_water: HighWater,
        kept_unused: Duration,
    ) -> Result<Collected, ImageError> {
        let mut collected =
            Collected { freed_bytes: self.remove_unneeded_layers()?, ..Collected::default() };
        self.remove_old_partials()?;
        let order = plan(candidates(&self.state(), kept_unused));
        for digest in order {
            if !self.is_above(high_water)? {
                break;
            }
            match self.remove_image(&digest, &digest.to_string(), &mut collected) {
                // Somebody began to use it meanwhile.
                Err(ImageError::InUse { .. } | ImageError::NotFound { .. }) => {}
                other => other?,
            }
            collected.freed_bytes += self.remove_unneeded_layers()?;
        }
        self.remove_unneeded_blobs()?;
        Ok(collected)
    }

    /// Takes an image out of the index, unless somebody uses it. Its layers go with the next sweep.
    fn remove_image(
        &self,
        digest: &Digest,
        name: &str,
        collected: &mut Collected,
    ) -> Result<(), ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (before, next) = {
            let mut state = self.state();
            let holders = state.leases.holders_of(digest);
            if !holders.is_empty() {
                return Err(ImageError::InUse { name: name.chars().take(300).collect(), holders });
            }
            if state.index.get(digest).is_none() {
                return Err(ImageError::NotFound { name: name.chars().take(300).collect() });
            }
            collected.removed.extend(state.index.references_of(digest));
            collected.removed.push(digest.to_string());
            let before = state.index.clone();
            // In memory first: from here on nobody can lease it.
            state.index.remove(digest);
            (before, state.index.clone())
        };
        if let Err(error) = next.save(&self.directory) {
            self.state().index = before;
            return Err(error);
        }
        self.state().leases.forget(digest);
        Ok(())
    }

    /// After a failure: layers made in vain go.
    pub(crate) fn sweep(&self) {
        if let Err(error) = self.remove_unneeded_layers() {
            tracing::warn!(%error, "layers made in vain stay until images are collected");
        }
    }

    /// Removes layers that no image has and nobody is making. Gives the bytes of their files.
    fn remove_unneeded_layers(&self) -> Result<u64, ImageError> {
        let directory = self.directory.join("layers");
        let trash = self.staging_directory()?;
        let mut freed = 0;
        for name in names(&directory)? {
            let Ok(chain) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let state = self.state();
            if is_needed(&state, &chain) {
                continue;
            }
            let layer = directory.join(&name);
            freed += layer_bytes(&layer);
            // Under the lock: nobody can pin it in between.
            fs::rename(&layer, trash.path().join(&name))
                .map_err(|error| io_error("remove", &layer, error))?;
        }
        let path = trash.path().to_owned();
        trash.close().map_err(|error| io_error("remove", &path, error))?;
        Ok(freed)
    }

    fn remove_unneeded_blobs(&self) -> Result<(), ImageError> {
        // With the writer's lock no import is between writing its blobs and its place in the index.
        let _writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let needed: BTreeSet<String> = self
            .state()
            .index
            .records()
            .flat_map(|(digest, record)| {
                [digest.hex().to_owned(), record.config_digest.hex().to_owned()]
            })
            .collect();
        let directory = self.directory.join("blobs/sha256");
        for name in names(&directory)?.into_iter().filter(|name| !needed.contains(name)) {
            remove_file(&directory.join(name))?;
        }
        Ok(())
    }

    fn remove_old_partials(&self) -> Result<(), ImageError> {
        let directory = self.directory.join("partial");
        for name in names(&directory)? {
            let path = directory.join(name);
            let age = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > PARTIAL_KEPT) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn is_above(&self, high_water: HighWater) -> Result<bool, ImageError> {
        match high_water {
            HighWater::DiskPercent(percent) => {
                let stat = rustix::fs::statvfs(&self.directory).map_err(|error| {
                    io_error("ask for the free space of", &self.directory, error)
                })?;
                // As df counts: what is kept back for root is not there.
                let used = stat.f_blocks.saturating_sub(stat.f_bfree);
                let all = used.saturating_add(stat.f_bavail);
                Ok(u128::from(used) * 100 > u128::from(all) * u128::from(percent))
            }
            HighWater::StoreBytes(bytes) => {
                let directory = self.directory.join("layers");
                let sum: u64 =
                    names(&directory)?.iter().map(|name| layer_bytes(&directory.join(name))).sum();
                // An image without a byte of its own is unused all the same.
                Ok(bytes == 0 || sum > bytes)
            }
        }
    }
}

fn candidates(state: &State, kept_unused: Duration) -> Vec<Candidate> {
    let leased = state.leases.leased();
    let now = jiff::Timestamp::now();
    let free = state.index.records().filter(|(digest, _)| !leased.contains(digest));
    free.map(|(digest, record)| Candidate {
        digest: digest.clone(),
        last_used: state
            .leases
            .last_used(digest)
            .unwrap_or(record.imported_at)
            .max(record.imported_at),
        named: !state.index.references_of(digest).is_empty(),
    })
    .filter(|candidate| {
        Duration::try_from(now.duration_since(candidate.last_used)).unwrap_or_default()
            >= kept_unused
    })
    .collect()
}

fn is_needed(state: &State, chain: &Digest) -> bool {
    let lease_on_unknown =
        || state.leases.leased().into_iter().any(|digest| state.index.get(digest).is_none());
    state.pins.contains_key(chain)
        || state
            .index
            .records()
            .any(|(_, record)| record.layers.iter().any(|layer| layer.chain == *chain))
        || lease_on_unknown()
}

fn layer_bytes(layer: &Path) -> u64 {
    #[derive(serde::Deserialize)]
    struct Size {
        size_bytes: u64,
    }
    let bytes = fs::read(layer.join("layer.json")).unwrap_or_default();
    serde_json::from_slice::<Size>(&bytes).map_or(0, |size| size.size_bytes)
}

fn remove_file(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unnamed_go_first_and_then_the_longest_unused() {
        let candidate = |name: &str, used: i64, named| Candidate {
            digest: Digest::of(name.as_bytes()),
            last_used: jiff::Timestamp::from_second(used).unwrap(),
            named,
        };
        let order = plan(vec![
            candidate("new", 30, true),
            candidate("unnamed", 99, false),
            candidate("old", 10, true),
            candidate("middle", 20, true),
        ]);
        let expected: Vec<_> = ["unnamed", "old", "middle", "new"]
            .iter()
            .map(|name| Digest::of(name.as_bytes()))
            .collect();
        assert_eq!(order, expected);
    }
}
