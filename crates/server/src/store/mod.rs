//! The store: typed objects in memory as the read path, one writer that commits in groups, watches by resource version.
//!
//! ```text
//! commit(write) ──queue──► writer thread: checks, numbers, one transaction for all that wait ──► memory, history ──► watchers
//!                                                     │ journal (SQLite)                    └──► acknowledgement
//! ```
//!
//! INVARIANT: what was acknowledged, and what a reader or watcher sees, is on disk. Resource versions only grow, also over restarts.
//! The journal is a trait: the second implementation will be a distributed one.

mod format;
mod item;
mod journal;
mod memory;
mod sqlite;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use atoll_wire::rest;
use tokio::sync::{mpsc, oneshot};

pub(crate) use item::{Creation, Item, ItemKind};
use journal::Journal;
use memory::Memory;
pub(crate) use memory::{Change, ChangeKind, Object};
pub(crate) use watch::{Gone, Watch};
pub(crate) use writer::Finish;
use writer::{Job, Order, Writer};

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("{kind} {name:?} exists already; choose another id, or delete it first")]
    AlreadyExists {
        /// Of which kind.
        kind: &'static str,
        /// Which.
        name: String,
    },
    /// There is no such record (any more).
    #[error("{kind} {name:?} is not in the store")]
    NotFound {
        /// Of which kind.
        kind: &'static str,
        /// Which.
        name: String,
    },
    /// Written by a newer atoll.
    #[error("{} has version {found}, this atoll knows up to {known}: use the atoll that wrote it, or a newer one", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The database cannot be believed.
    #[error("{} is damaged: {message}; restore a backup, or move the directory away to begin with an empty store (what runs will then be removed)", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The disk failed or is full.
    #[error("the store at {} cannot {operation}: {message}", path.display())]
    Disk {
        /// As a verb.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// The server is ending.
    #[error("the store is closed: the server is ending")]
    Closed,
}

/// A change of one record.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// A new one; its name must be free.
    Create(rest::Sandbox),
    /// The same, with the item by which it is known when it is asked for again; both or neither.
    CreateOnce(rest::Sandbox, Arc<Creation>),
    /// A new state of one; its name and uid must be there.
    Update(rest::Sandbox),
    /// It goes.
    Delete {
        /// Its name.
        name: String,
        /// Its uid: another sandbox of that name stays.
        uid: String,
    },
    /// A new item; its name must be free among those of its kind.
    CreateItem(Item),
    /// A new state of one; its name and uid must be there.
    UpdateItem(Item),
    /// It goes.
    DeleteItem {
        /// Of which kind.
        kind: ItemKind,
        /// Its name.
        name: String,
        /// Its uid: another item of that name stays.
        uid: String,
    },
    /// No record changes: events only.
    EventsOnly,
}

/// An event to be recorded with a write.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    /// It tells of trouble.
    pub(crate) warning: bool,
    /// One word.
    pub(crate) reason: &'static str,
    /// `sandbox/NAME`.
    pub(crate) object: String,
    /// For people.
    pub(crate) message: String,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Changes that a watcher may be behind.
    pub(crate) history: usize,
    /// Bytes of these changes: large manifests are kept for fewer.
    pub(crate) history_bytes: usize,
    /// Events on disk.
    pub(crate) events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Guess: a watcher that is 8192 changes behind had better list again; 10000 events are a few megabytes.
        Self { history: 8192, history_bytes: 64 << 20, events: 10_000 }
    }
}

/// The store. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Store {
    memory: Arc<RwLock<Memory>>,
    orders: mpsc::Sender<Order>,
    versions: tokio::sync::watch::Receiver<u64>,
}

/// A record that could not be read at start and was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadRecord {
    /// `sandbox` or an item's.
    pub(crate) kind: String,
    pub(crate) uid: String,
    pub(crate) reason: String,
}

impl Store {
    /// Opens the store of a directory and begins its writer thread, which ends with the last clone.
    pub(crate) fn open(
        directory: &Path,
        limits: Limits,
    ) -> Result<(Self, Vec<BadRecord>), StoreError> {
        Self::over(Box::new(sqlite::SqliteJournal::open(directory)?), limits)
    }

    /// The same over any journal.
    fn over(
        mut journal: Box<dyn Journal>,
        limits: Limits,
    ) -> Result<(Self, Vec<BadRecord>), StoreError> {
        let (memory, bad) = Memory::load(&mut *journal, limits)?;
        let (versions_sender, versions) = tokio::sync::watch::channel(memory.version());
        let memory = Arc::new(RwLock::new(memory));
        // Guess: as many as fit into a few commits; more wait in their own tasks.
        let (orders, receiver) = mpsc::channel(1024);
        let writer = Writer::new(journal, Arc::clone(&memory), versions_sender);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(receiver))
            .map_err(|error| StoreError::Disk {
                operation: "begin its thread",
                path: "store".into(),
                message: error.to_string(),
            })?;
        Ok((Self { memory, orders, versions }, bad))
    }

    /// Commits a write and its events; what it returns is on disk. `None` for a delete, an item or events only.
    pub(crate) async fn commit(
        &self,
        write: Write,
        events: Vec<NewEvent>,
    ) -> Result<Option<Arc<rest::Sandbox>>, StoreError> {
        self.commit_and(write, events, None).await
    }

    /// The same; `finish` then amends the record in memory, before anybody sees it: for what is only known once it is on disk (how long
    /// that took). The amendment is on disk with the next write.
    pub(crate) async fn commit_and(
        &self,
        write: Write,
        events: Vec<NewEvent>,
        finish: Option<Finish>,
    ) -> Result<Option<Arc<rest::Sandbox>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { write, events, finish, reply };
        self.orders.send(Order::Write(Box::new(job))).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what waits and lets go of the files. Later writes fail.
    pub(crate) async fn close(&self) {
        let (closed, done) = oneshot::channel();
        if self.orders.send(Order::Close(closed)).await.is_ok() {
            done.await.ok();
        }
    }

    /// One sandbox, by name.
    pub(crate) fn sandbox(&self, name: &str) -> Option<Arc<rest::Sandbox>> {
        self.read(|memory| memory.sandbox(name))
    }

    /// All sandboxes in order of creation, and the version as of which this is complete.
    pub(crate) fn sandboxes(&self) -> (Vec<Arc<rest::Sandbox>>, u64) {
        self.read(|memory| (memory.sandboxes(), memory.version()))
    }

    /// One item, by name.
    pub(crate) fn item(&self, kind: ItemKind, name: &str) -> Option<Item> {
        self.read(|memory| memory.item(kind, name))
    }

    /// All items of a kind in order of creation, and the version as of which this is complete.
    pub(crate) fn items(&self, kind: ItemKind) -> (Vec<Item>, u64) {
        self.read(|memory| (memory.items(kind), memory.version()))
    }

    /// All events in order, and the version as of which this is complete.
    pub(crate) fn events(&self) -> (Vec<Arc<rest::Event>>, u64) {
        self.read(|memory| (memory.events(), memory.version()))
    }

    /// The last version.
    pub(crate) fn version(&self) -> u64 {
        self.read(Memory::version)
    }

    /// Changes after `version`.
    pub(crate) fn watch(&self, version: u64) -> Result<Watch, Gone> {
        Watch::new(Arc::clone(&self.memory), self.versions.clone(), version)
    }

    fn read<T>(&self, look: impl FnOnce(&Memory) -> T) -> T {
        look(&self.memory.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
