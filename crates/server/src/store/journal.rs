//! What the store needs of a disk: load everything once, then commit groups of mutations, each group whole or not at all.

use super::StoreError;

/// A change on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Writes a record.
    Put {
        /// Its key.
        uid: String,
        /// Must be unique among the records.
        name: String,
        /// Its content.
        body: Vec<u8>,
    },
    /// Removes a record.
    Remove {
        /// Its key.
        uid: String,
    },
    /// Writes an item.
    PutItem {
        /// The name of its kind.
        kind: &'static str,
        /// Its key, with the kind.
        uid: String,
        /// Must be unique among the items of its kind.
        name: String,
        /// Its content.
        body: Vec<u8>,
    },
    /// Removes an item.
    RemoveItem {
        /// The name of its kind.
        kind: &'static str,
        /// Its key.
        uid: String,
    },
    /// Appends an event.
    Event {
        /// Its place in the order.
        version: u64,
        /// Its content.
        body: Vec<u8>,
    },
    /// Forgets events up to a version.
    ForgetEvents {
        /// The last that goes.
        through: u64,
    },
    /// Sets a record aside that cannot be read.
    Quarantine {
        /// Its key.
        uid: String,
        /// Why.
        reason: String,
    },
    /// Sets an item aside that cannot be read.
    QuarantineItem {
        /// The name of its kind.
        kind: String,
        /// Its key.
        uid: String,
        /// Why.
        reason: String,
    },
}

/// Everything on disk.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The last version ever committed.
    pub(crate) version: u64,
    /// Records by uid.
    pub(crate) records: Vec<(String, Vec<u8>)>,
    /// Items by the name of their kind and uid.
    pub(crate) items: Vec<(String, String, Vec<u8>)>,
    /// Events by version, ascending.
    pub(crate) events: Vec<(u64, Vec<u8>)>,
}

/// A durable journal of records.
pub(crate) trait Journal: Send {
    /// Reads everything.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes all of these, durably, and the version; or none of them.
    fn commit(&mut self, version: u64, mutations: &[Mutation]) -> Result<(), StoreError>;
}
