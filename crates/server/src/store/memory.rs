//! What is read: objects, the last events, and the last changes for watchers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use atoll_wire::rest;

use super::format::Unreadable;
use super::item::{self, Item, ItemKind};
use super::journal::{Journal, Mutation};
use super::{BadRecord, Limits, StoreError, format};

/// The kind of the records that are no items.
pub(super) const SANDBOX: &str = "sandbox";

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// What changed.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Sandbox(Arc<rest::Sandbox>),
    Item(Item),
    Event(Arc<rest::Event>),
}

/// One change.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: ChangeKind,
    pub(crate) object: Object,
    /// Of the object as it is written: what it takes in memory is about as much.
    pub(crate) bytes: usize,
}

/// Everything in memory.
pub(crate) struct Memory {
    version: u64,
    limits: Limits,
    sandboxes: BTreeMap<String, Arc<rest::Sandbox>>,
    items: BTreeMap<(ItemKind, String), Item>,
    events: VecDeque<Arc<rest::Event>>,
    history: VecDeque<Change>,
    history_bytes: usize,
    /// Changes up to this one are no longer in `history`.
    forgotten: u64,
}

impl Memory {
    /// Reads everything; what cannot be read is set aside on disk and told.
    pub(crate) fn load(
        journal: &mut dyn Journal,
        limits: Limits,
    ) -> Result<(Self, Vec<BadRecord>), StoreError> {
        let loaded = journal.load()?;
        let mut memory = Self {
            version: loaded.version,
            limits,
            sandboxes: BTreeMap::new(),
            items: BTreeMap::new(),
            events: VecDeque::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            forgotten: loaded.version,
        };
        let mut bad = Vec::new();
        let mut set_aside = |kind: &str, uid: String, why: Unreadable| match why {
            Unreadable::Bad(reason) => {
                bad.push(BadRecord { kind: kind.to_owned(), uid, reason });
                Ok(())
            }
            Unreadable::Newer { found, known } => {
                let path = format!("the record {uid}").into();
                Err(StoreError::Newer { path, found, known })
            }
        };
        for (uid, body) in loaded.records {
            match format::decode(&uid, &body) {
                Ok(sandbox) => drop(memory.sandboxes.insert(sandbox.id.clone(), Arc::new(sandbox))),
                Err(why) => set_aside(SANDBOX, uid, why)?,
            }
        }
        for (kind, uid, body) in loaded.items {
            match item::decode(&kind, &uid, &body) {
                Ok(item) => {
                    drop(memory.items.insert((item.kind(), item.name().to_owned()), item));
                }
                Err(why) => set_aside(&kind, uid, why)?,
            }
        }
        // An event that cannot be read is no loss: it goes.
        let events = loaded.events.iter().filter_map(|(_, body)| serde_json::from_slice(body).ok());
        memory.events = events.map(Arc::new).collect();
        if !bad.is_empty() {
            let aside = |it: &BadRecord| {
                let (kind, uid, reason) = (it.kind.clone(), it.uid.clone(), it.reason.clone());
                match kind.as_str() {
                    SANDBOX => Mutation::Quarantine { uid, reason },
                    _ => Mutation::QuarantineItem { kind, uid, reason },
                }
            };
            journal.commit(memory.version, &bad.iter().map(aside).collect::<Vec<_>>())?;
        }
        Ok((memory, bad))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn sandbox(&self, name: &str) -> Option<Arc<rest::Sandbox>> {
        self.sandboxes.get(name).cloned()
    }

    /// In order of creation.
    pub(crate) fn sandboxes(&self) -> Vec<Arc<rest::Sandbox>> {
        let mut all: Vec<_> = self.sandboxes.values().cloned().collect();
        // Times are written with a fixed number of digits: text order is time order.
        all.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.id.cmp(&b.id)));
        all
    }

    pub(crate) fn item(&self, kind: ItemKind, name: &str) -> Option<Item> {
        self.items.get(&(kind, name.to_owned())).cloned()
    }

    /// In order of creation.
    pub(crate) fn items(&self, kind: ItemKind) -> Vec<Item> {
        let of_kind =
            self.items.range((kind, String::new())..).take_while(|(key, _)| key.0 == kind);
        let mut all: Vec<Item> = of_kind.map(|(_, item)| item.clone()).collect();
        all.sort_by(|a, b| (a.created_at(), a.name()).cmp(&(b.created_at(), b.name())));
        all
    }

    pub(crate) fn events(&self) -> Vec<Arc<rest::Event>> {
        self.events.iter().cloned().collect()
    }

    /// The version through which events go when so many are added.
    pub(crate) fn events_to_forget(&self, added: usize) -> Option<u64> {
        let surplus = (self.events.len() + added).checked_sub(self.limits.events)?;
        // A tenth at a time: not a delete with each write.
        let count = surplus.checked_sub(1)? + 1 + self.limits.events / 10;
        self.events
            .get(count.min(self.events.len()).checked_sub(1)?)
            .map(|event| event.resource_version)
    }

    /// Takes in what is on disk now.
    pub(crate) fn apply(
        &mut self,
        version: u64,
        changes: Vec<Change>,
        events_forgotten: Option<u64>,
    ) {
        self.version = version;
        for change in &changes {
            match (&change.object, change.kind) {
                (Object::Sandbox(sandbox), ChangeKind::Deleted) => {
                    drop(self.sandboxes.remove(&sandbox.id))
                }
                (Object::Sandbox(sandbox), _) => {
                    drop(self.sandboxes.insert(sandbox.id.clone(), Arc::clone(sandbox)))
                }
                (Object::Item(item), kind) => {
                    let key = (item.kind(), item.name().to_owned());
                    match kind {
                        ChangeKind::Deleted => drop(self.items.remove(&key)),
                        _ => drop(self.items.insert(key, item.clone())),
                    }
                }
                (Object::Event(event), _) => self.events.push_back(Arc::clone(event)),
            }
        }
        if let Some(through) = events_forgotten {
            while self.events.front().is_some_and(|event| event.resource_version <= through) {
                self.events.pop_front();
            }
        }
        self.history_bytes += changes.iter().map(|change| change.bytes).sum::<usize>();
        self.history.extend(changes);
        while self.history.len() > self.limits.history
            || self.history_bytes > self.limits.history_bytes
        {
            let Some(change) = self.history.pop_front() else { break };
            self.history_bytes -= change.bytes;
            self.forgotten = change.version;
        }
    }

    /// Changes after `version`, or `None` when some of them are no longer known.
    pub(crate) fn changes_after(&self, version: u64) -> Option<Vec<Change>> {
        if version < self.forgotten || version > self.version {
            return None;
        }
        let begin = self.history.partition_point(|change| change.version <= version);
        Some(self.history.range(begin..).cloned().collect())
    }
}
