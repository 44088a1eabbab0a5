//! Following the store from a version on.

use std::sync::{Arc, PoisonError, RwLock};

use super::memory::{Change, Memory};

/// The version asked for is no longer (or never was) in the history: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "resource version {version} is no longer kept, or is not of this store; list again and watch from there"
)]
pub(crate) struct Gone {
    pub(crate) version: u64,
}

/// A reader's place in the history.
pub(crate) struct Watch {
    memory: Arc<RwLock<Memory>>,
    versions: tokio::sync::watch::Receiver<u64>,
    seen: u64,
}

impl Watch {
    pub(super) fn new(
        memory: Arc<RwLock<Memory>>,
        versions: tokio::sync::watch::Receiver<u64>,
        version: u64,
    ) -> Result<Self, Gone> {
        let watch = Self { memory, versions, seen: version };
        watch.changes().map(|_| watch)
    }

    fn changes(&self) -> Result<Vec<Change>, Gone> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.changes_after(self.seen).ok_or(Gone { version: self.seen })
    }

    /// The version up to which everything was seen.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The next changes, at least one; `None` once the store is closed. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Change>>, Gone> {
        loop {
            // Marked as seen before looking: a change in between wakes us again.
            self.versions.borrow_and_update();
            let changes = self.changes()?;
            if let Some(last) = changes.last() {
                self.seen = last.version;
                return Ok(Some(changes));
            }
            if self.versions.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
