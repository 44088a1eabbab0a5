//! The one writer: takes all writes that wait, checks and numbers them, commits them together, then shows and acknowledges them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use atoll_wire::rest;
use tokio::sync::{mpsc, oneshot};

use super::journal::{Journal, Mutation};
use super::memory::{Change, ChangeKind, Memory, Object};
use super::{NewEvent, StoreError, Write, format};

/// Most writes of one commit: beyond it waiting costs more than syncing.
const MAX_GROUP: usize = 256;

type Reply = oneshot::Sender<Result<Option<Arc<rest::Sandbox>>, StoreError>>;

/// A write that waits.
pub(crate) struct Job {
    pub(super) write: Write,
    pub(super) events: Vec<NewEvent>,
    pub(super) reply: Reply,
}

/// The writer thread's state.
pub(crate) struct Writer {
    journal: Box<dyn Journal>,
    memory: Arc<RwLock<Memory>>,
    versions: tokio::sync::watch::Sender<u64>,
}

/// What one commit will do.
#[derive(Default)]
struct Group {
    version: u64,
    mutations: Vec<Mutation>,
    changes: Vec<Change>,
    replies: Vec<(Reply, Option<Arc<rest::Sandbox>>)>,
    events: usize,
    /// Records as this group leaves them; `None`: removed.
    staged: HashMap<String, Option<Arc<rest::Sandbox>>>,
}

impl Writer {
    pub(super) fn new(
        journal: Box<dyn Journal>,
        memory: Arc<RwLock<Memory>>,
        versions: tokio::sync::watch::Sender<u64>,
    ) -> Self {
        Self { journal, memory, versions }
    }

    /// Runs until nobody can send any more.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting = Vec::with_capacity(MAX_GROUP);
        while let Some(first) = jobs.blocking_recv() {
            waiting.push(first);
            while waiting.len() < MAX_GROUP {
                match jobs.try_recv() {
                    Ok(job) => waiting.push(job),
                    Err(_) => break,
                }
            }
            self.commit(waiting.drain(..));
        }
    }

    fn commit(&mut self, jobs: impl Iterator<Item = Job>) {
        let mut group = Group { version: self.read(Memory::version), ..Group::default() };
        for job in jobs {
            match self.stage(&mut group, job.write, job.events) {
                Ok(written) => group.replies.push((job.reply, written)),
                Err(error) => drop(job.reply.send(Err(error))),
            }
        }
        if group.changes.is_empty() {
            return group
                .replies
                .into_iter()
                .for_each(|(reply, written)| drop(reply.send(Ok(written))));
        }
        let forget = self.read(|memory| memory.events_to_forget(group.events));
        if let Some(through) = forget {
            group.mutations.push(Mutation::ForgetEvents { through });
        }
        match self.journal.commit(group.version, &group.mutations) {
            Ok(()) => {
                let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
                memory.apply(group.version, group.changes, forget);
                drop(memory);
                self.versions.send_replace(group.version);
                group
                    .replies
                    .into_iter()
                    .for_each(|(reply, written)| drop(reply.send(Ok(written))));
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it was kept");
                for (reply, _) in group.replies {
                    drop(reply.send(Err(copy(&error))));
                }
            }
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

    fn stage(
        &self,
        group: &mut Group,
        write: Write,
        events: Vec<NewEvent>,
    ) -> Result<Option<Arc<rest::Sandbox>>, StoreError> {
        let written = match write {
            Write::Create(sandbox) => {
                if self.current(group, &sandbox.id).is_some() {
                    return Err(StoreError::AlreadyExists { name: sandbox.id });
                }
                Some(put(group, sandbox, ChangeKind::Added)?)
            }
            Write::Update(sandbox) => {
                let current = self.current(group, &sandbox.id);
                if current.is_none_or(|current| current.uid != sandbox.uid) {
                    return Err(StoreError::NotFound { name: sandbox.id });
                }
                Some(put(group, sandbox, ChangeKind::Modified)?)
            }
            Write::Delete { name, uid } => {
                let current = self.current(group, &name).filter(|current| current.uid == uid);
                let mut last =
                    (*current.ok_or(StoreError::NotFound { name: name.clone() })?).clone();
                group.version += 1;
                last.resource_version = group.version;
                group.mutations.push(Mutation::Remove { uid });
                group.staged.insert(name, None);
                let object = Object::Sandbox(Arc::new(last));
                group.changes.push(Change {
                    version: group.version,
                    kind: ChangeKind::Deleted,
                    object,
                });
                None
            }
            Write::EventsOnly => None,
        };
        events.into_iter().for_each(|event| record(group, event));
        Ok(written)
    }
}

fn put(
    group: &mut Group,
    mut sandbox: rest::Sandbox,
    kind: ChangeKind,
) -> Result<Arc<rest::Sandbox>, StoreError> {
    let version = group.version + 1;
    sandbox.resource_version = version;
    sandbox.updated_at = crate::time::now_text();
    let body = format::encode(&sandbox).map_err(|message| StoreError::Disk {
        operation: "write a record",
        path: sandbox.id.clone().into(),
        message,
    })?;
    group.version = version;
    group.mutations.push(Mutation::Put {
        uid: sandbox.uid.clone(),
        name: sandbox.id.clone(),
        body,
    });
    let sandbox = Arc::new(sandbox);
    group.staged.insert(sandbox.id.clone(), Some(Arc::clone(&sandbox)));
    group.changes.push(Change { version, kind, object: Object::Sandbox(Arc::clone(&sandbox)) });
    Ok(sandbox)
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
    group.mutations.push(Mutation::Event { version: group.version, body });
    let object = Object::Event(Arc::new(event));
    group.changes.push(Change { version: group.version, kind: ChangeKind::Added, object });
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
