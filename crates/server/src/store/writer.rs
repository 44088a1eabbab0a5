//! The one writer: takes all writes that wait, checks and numbers them, commits them together, then shows and acknowledges them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use atoll_wire::rest;
use tokio::sync::{mpsc, oneshot};

use super::item::{self, Item, ItemKind};
use super::journal::{Journal, Mutation};
use super::memory::{Change, ChangeKind, Memory, Object, SANDBOX};
use super::{NewEvent, StoreError, Write, format};

/// Most writes of one commit: beyond it waiting costs more than syncing.
const MAX_GROUP: usize = 256;

type Reply = oneshot::Sender<Result<Option<Arc<rest::Sandbox>>, StoreError>>;

/// What the writer is asked.
pub(crate) enum Order {
    /// A write.
    Write(Box<Job>),
    /// Let go of the journal, then say so.
    Close(oneshot::Sender<()>),
}

/// A write that waits.
pub(crate) struct Job {
    pub(super) write: Write,
    pub(super) events: Vec<NewEvent>,
    /// Run on the written record when it is on disk, before anybody sees it.
    pub(super) finish: Option<Finish>,
    pub(super) reply: Reply,
}

/// See [`Store::commit_and`](super::Store::commit_and).
pub(crate) type Finish = Box<dyn FnOnce(&mut rest::Sandbox) + Send>;

/// The writer thread's state.
pub(crate) struct Writer {
    journal: Box<dyn Journal>,
    memory: Arc<RwLock<Memory>>,
    versions: tokio::sync::watch::Sender<u64>,
}

/// Who waits for a commit, and what was written for whom (its place among the changes).
struct Answer {
    reply: Reply,
    written: Option<usize>,
    finish: Option<Finish>,
}

/// What one commit will do.
#[derive(Default)]
struct Group {
    version: u64,
    mutations: Vec<Mutation>,
    changes: Vec<Change>,
    answers: Vec<Answer>,
    events: usize,
    /// Records as this group leaves them; `None`: removed.
    staged: HashMap<String, Option<Arc<rest::Sandbox>>>,
    /// The same of items.
    staged_items: HashMap<(ItemKind, String), Option<Item>>,
}

impl Writer {
    pub(super) fn new(
        journal: Box<dyn Journal>,
        memory: Arc<RwLock<Memory>>,
        versions: tokio::sync::watch::Sender<u64>,
    ) -> Self {
        Self { journal, memory, versions }
    }

    /// Runs until it is told to close, or nobody can send any more.
    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut waiting = Vec::with_capacity(MAX_GROUP);
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = orders.blocking_recv() else { return };
            let mut next = Some(first);
            while let Some(order) = next {
                match order {
                    Order::Write(job) => waiting.push(*job),
                    Order::Close(closed) => closing = Some(closed),
                }
                let full = waiting.len() == MAX_GROUP || closing.is_some();
                next = if full { None } else { orders.try_recv().ok() };
            }
            self.commit(waiting.drain(..));
        }
        drop(self);
        if let Some(closed) = closing {
            // Whoever asked may be gone.
            closed.send(()).ok();
        }
    }

    fn commit(&mut self, jobs: impl Iterator<Item = Job>) {
        let mut group = Group { version: self.read(Memory::version), ..Group::default() };
        for Job { write, events, finish, reply } in jobs {
            match self.stage(&mut group, write, events) {
                Ok(written) => group.answers.push(Answer { reply, written, finish }),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        let forget = self.read(|memory| memory.events_to_forget(group.events));
        if let Some(through) = forget {
            group.mutations.push(Mutation::ForgetEvents { through });
        }
        if group.changes.is_empty() {
            return group.answers.into_iter().for_each(|it| drop(it.reply.send(Ok(None))));
        }
        match self.journal.commit(group.version, &group.mutations) {
            Ok(()) => self.show(group, forget),
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it was kept");
                for answer in group.answers {
                    drop(answer.reply.send(Err(copy(&error))));
                }
            }
        }
    }

    fn show(&self, mut group: Group, forget: Option<u64>) {
        let mut replies = Vec::with_capacity(group.answers.len());
        for Answer { reply, written, finish } in group.answers {
            let change = written.and_then(|index| group.changes.get_mut(index));
            let sandbox = change.and_then(|change| match &mut change.object {
                Object::Sandbox(sandbox) => Some(sandbox),
                Object::Item(_) | Object::Event(_) => None,
            });
            let shown = sandbox.map(|sandbox| {
                if let Some(finish) = finish {
                    finish(Arc::make_mut(sandbox));
                }
                Arc::clone(sandbox)
            });
            replies.push((reply, shown));
        }
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.apply(group.version, group.changes, forget);
        drop(memory);
        self.versions.send_replace(group.version);
        for (reply, shown) in replies {
            drop(reply.send(Ok(shown)));
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Memory) -> T) -> T {
        look(&self.memory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self, group: &Group, name: &str) -> Option<Arc<rest::Sandbox>> {
        match group.staged.get(name) {
            Some(staged) => staged.clone(),
            None => self.read(|memory| memory.sandbox(name)),
        }
    }

    fn current_item(&self, group: &Group, kind: ItemKind, name: &str) -> Option<Item> {
        match group.staged_items.get(&(kind, name.to_owned())) {
            Some(staged) => staged.clone(),
            None => self.read(|memory| memory.item(kind, name)),
        }
    }

    /// The item of this name that is the one with this uid.
    fn current_item_of(
        &self,
        group: &Group,
        kind: ItemKind,
        name: &str,
        uid: &str,
    ) -> Result<Item, StoreError> {
        let current = self.current_item(group, kind, name).filter(|current| current.uid() == uid);
        current.ok_or_else(|| StoreError::NotFound { kind: kind.name(), name: name.to_owned() })
    }

    fn stage(
        &self,
        group: &mut Group,
        write: Write,
        events: Vec<NewEvent>,
    ) -> Result<Option<usize>, StoreError> {
        let written = match write {
            Write::CreateOnce(sandbox, creation) => {
                let item = Item::Creation(creation);
                if self.current_item(group, item.kind(), item.name()).is_some() {
                    let (kind, name) = (item.kind().name(), item.name().to_owned());
                    return Err(StoreError::AlreadyExists { kind, name });
                }
                if self.current(group, &sandbox.id).is_some() {
                    return Err(StoreError::AlreadyExists { kind: SANDBOX, name: sandbox.id });
                }
                let written = put(group, sandbox, ChangeKind::Added)?;
                put_item(group, item, ChangeKind::Added)?;
                Some(written)
            }
            Write::Create(sandbox) => {
                if self.current(group, &sandbox.id).is_some() {
                    return Err(StoreError::AlreadyExists { kind: SANDBOX, name: sandbox.id });
                }
                Some(put(group, sandbox, ChangeKind::Added)?)
            }
            Write::Update(sandbox) => {
                let current = self.current(group, &sandbox.id);
                if current.is_none_or(|current| current.uid != sandbox.uid) {
                    return Err(StoreError::NotFound { kind: SANDBOX, name: sandbox.id });
                }
                Some(put(group, sandbox, ChangeKind::Modified)?)
            }
            Write::Delete { name, uid } => {
                let current = self.current(group, &name).filter(|current| current.uid == uid);
                let missing = || StoreError::NotFound { kind: SANDBOX, name: name.clone() };
                let mut last = (*current.ok_or_else(missing)?).clone();
                group.version += 1;
                last.resource_version = group.version;
                let bytes = format::encode(&last).map_or(0, |body| body.len());
                group.mutations.push(Mutation::Remove { uid });
                group.staged.insert(name, None);
                let object = Object::Sandbox(Arc::new(last));
                group.changes.push(Change {
                    version: group.version,
                    kind: ChangeKind::Deleted,
                    object,
                    bytes,
                });
                None
            }
            Write::CreateItem(item) => {
                if self.current_item(group, item.kind(), item.name()).is_some() {
                    let (kind, name) = (item.kind().name(), item.name().to_owned());
                    return Err(StoreError::AlreadyExists { kind, name });
                }
                put_item(group, item, ChangeKind::Added)?;
                None
            }
            Write::UpdateItem(item) => {
                self.current_item_of(group, item.kind(), item.name(), item.uid())?;
                put_item(group, item, ChangeKind::Modified)?;
                None
            }
            Write::DeleteItem { kind, name, uid } => {
                let last = self.current_item_of(group, kind, &name, &uid)?;
                remove_item(group, last);
                None
            }
            Write::EventsOnly => None,
        };
        events.into_iter().for_each(|event| record(group, event));
        Ok(written)
    }
}

/// Stages a record and says which change it is.
fn put(
    group: &mut Group,
    mut sandbox: rest::Sandbox,
    kind: ChangeKind,
) -> Result<usize, StoreError> {
    let version = group.version + 1;
    sandbox.resource_version = version;
    sandbox.updated_at = crate::time::now_text();
    let body = format::encode(&sandbox).map_err(|message| StoreError::Disk {
        operation: "write a record",
        path: sandbox.id.clone().into(),
        message,
    })?;
    let bytes = body.len();
    group.version = version;
    group.mutations.push(Mutation::Put {
        uid: sandbox.uid.clone(),
        name: sandbox.id.clone(),
        body,
    });
    let sandbox = Arc::new(sandbox);
    group.staged.insert(sandbox.id.clone(), Some(Arc::clone(&sandbox)));
    group.changes.push(Change { version, kind, object: Object::Sandbox(sandbox), bytes });
    Ok(group.changes.len() - 1)
}

fn put_item(group: &mut Group, mut item: Item, kind: ChangeKind) -> Result<(), StoreError> {
    let version = group.version + 1;
    item.number(version, crate::time::now_text());
    let body = item::encode(&item).map_err(|message| StoreError::Disk {
        operation: "write a record",
        path: item.name().into(),
        message,
    })?;
    let bytes = body.len();
    group.version = version;
    let (item_kind, name) = (item.kind(), item.name().to_owned());
    let uid = item.uid().to_owned();
    let put = Mutation::PutItem { kind: item_kind.name(), uid, name: name.clone(), body };
    group.mutations.push(put);
    group.staged_items.insert((item_kind, name), Some(item.clone()));
    group.changes.push(Change { version, kind, object: Object::Item(item), bytes });
    Ok(())
}

fn remove_item(group: &mut Group, mut last: Item) {
    group.version += 1;
    let version = group.version;
    last.number(version, crate::time::now_text());
    let (kind, uid) = (last.kind(), last.uid().to_owned());
    group.mutations.push(Mutation::RemoveItem { kind: kind.name(), uid });
    group.staged_items.insert((kind, last.name().to_owned()), None);
    let bytes = item::encode(&last).map_or(0, |body| body.len());
    let (kind, object) = (ChangeKind::Deleted, Object::Item(last));
    group.changes.push(Change { version, kind, object, bytes });
}

fn record(group: &mut Group, event: NewEvent) {
    group.version += 1;
    let event = rest::Event {
        time: crate::time::now_text(),
        resource_version: group.version,
        kind: if event.warning { "Warning" } else { "Normal" }.to_owned(),
        reason: event.reason.to_owned(),
        object: event.object,
        message: event.message,
    };
    // Plain strings and numbers: there is nothing that could not be written.
    let body = serde_json::to_vec(&event).unwrap_or_default();
    let bytes = body.len();
    group.mutations.push(Mutation::Event { version: group.version, body });
    let object = Object::Event(Arc::new(event));
    group.changes.push(Change { version: group.version, kind: ChangeKind::Added, object, bytes });
    group.events += 1;
}

/// The same failure for everybody whose write was in the group.
fn copy(error: &StoreError) -> StoreError {
    match error {
        StoreError::Disk { operation, path, message } => {
            StoreError::Disk { operation, path: path.clone(), message: message.clone() }
        }
        other => StoreError::Disk {
            operation: "commit",
            path: "store".into(),
            message: other.to_string(),
        },
    }
}
