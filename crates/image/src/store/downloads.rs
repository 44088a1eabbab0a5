//! What bounds the downloads into a store: how many run at once, and one for each blob. It downloads nothing itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::digest::Digest;

/// Blobs downloaded at the same time, by all pulls together. SOURCE: dockerd's default of 3 for one pull, and one more.
const MAX_PARALLEL: usize = 4;

/// What all downloads of a store share.
pub(crate) struct Downloads {
    slots: Semaphore,
    /// One download of a blob at a time: the others find its file complete.
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self { slots: Semaphore::new(MAX_PARALLEL), locks: Mutex::default() }
    }
}

impl Downloads {
    /// A place among the downloads that run, until it is dropped; `None`: the store ends.
    pub(crate) async fn slot(&self) -> Option<SemaphorePermit<'_>> {
        self.slots.acquire().await.ok()
    }

    /// The lock of a blob: whoever waits for it finds the file complete.
    pub(crate) fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }
}
