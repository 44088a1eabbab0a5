//! One owner per sandbox: a task that alone changes its state, fed by a queue, and the registry through which others reach it.
//!
//! ```text
//! commands (API) ─┐
//! shim's events  ─┤► owner task ──► state (model) ──► store ──► watchers, API
//! deadlines      ─┤        └──► one piece of work at a time: queue, images, launch, adopt, destroy (dropped when it is superseded)
//! work's outcome ─┘
//! ```
//!
//! An owner lives from creation (or restart) until the record is gone. It never blocks on a client, and never on the store while its
//! sandbox could end.

mod adoption;
mod gate;
mod live;
mod marks;
pub(crate) mod order;
mod pace;
mod persist;
mod probing;
mod removal;
mod shim_events;
mod status;
mod task;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use atoll_model::boost::Boosts;
use atoll_model::ids::{SandboxName, SandboxUid};
use atoll_model::spec::{Class, SandboxSpec};
use atoll_runtime::{Runtime, SandboxNetwork};
use atoll_wire::rest;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::images::ImageSource;
use crate::metrics::Metrics;
use crate::ports::PortBook;
use crate::store::Store;
use crate::traces::Traces;
use crate::volumes::Volumes;

pub(crate) use live::Live;
pub(crate) use marks::Marks;
pub(crate) use task::Begin;

/// What all owners share.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) runtimes: HashMap<Class, Arc<dyn Runtime>>,
    /// Why a class cannot be had.
    pub(crate) missing: Vec<(Class, String)>,
    /// The instance's network, also where new sandboxes are not offered it.
    pub(crate) network: Option<Arc<dyn SandboxNetwork>>,
    pub(crate) ports: PortBook,
    pub(crate) volumes: Volumes,
    pub(crate) node_name: String,
    pub(crate) node_labels: BTreeMap<String, String>,
    pub(crate) launches: Arc<Semaphore>,
    pub(crate) boosts: Mutex<Boosts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traces: Traces,
    /// Below it lie the directories of sandboxes, named by uid.
    pub(crate) sandboxes_directory: std::path::PathBuf,
    pub(crate) owners: Owners,
    /// All owners' tasks.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server ends: owners then stop, sandboxes go on.
    pub(crate) ending: CancellationToken,
}

impl Context {
    fn boosts(&self) -> MutexGuard<'_, Boosts> {
        self.boosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What others ask of an owner.
pub(crate) enum Command {
    /// Remove it; `done` hears when nothing is left, or why that takes longer.
    Delete {
        grace_millis: u64,
        cause: atoll_model::state::Cause,
        done: Option<oneshot::Sender<Result<(), String>>>,
    },
    /// It is deleted so many seconds from now, or never; `done` hears when that is on disk, or why it cannot be.
    SetTtl { seconds: Option<u64>, done: oneshot::Sender<Result<(), String>> },
    /// End what runs; the record stays.
    Stop { grace_millis: u64, reply: oneshot::Sender<Result<(), String>> },
    /// A client attached.
    Attached,
    /// A client that was attached is gone.
    Detached,
}

/// How others reach an owner.
#[derive(Clone)]
pub(crate) struct OwnerHandle {
    commands: mpsc::Sender<Command>,
    live: watch::Receiver<Option<Arc<Live>>>,
    unread: watch::Receiver<Option<Arc<Live>>>,
    pub(crate) spec: Arc<SandboxSpec>,
}

/// The owner has ended: the sandbox is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerGone;

impl OwnerHandle {
    /// Hands over a command.
    pub(crate) async fn send(&self, command: Command) -> Result<(), OwnerGone> {
        self.commands.send(command).await.map_err(|_| OwnerGone)
    }

    /// The same without waiting; for use in a drop. A full queue loses it: the deadline it would have moved is then too early or late.
    pub(crate) fn try_send(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            tracing::warn!("an owner's queue is full; a detach was not told");
        }
    }

    /// What runs, if it does at the moment.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.live.borrow().clone()
    }

    /// A sandbox that has ended and whose shim may still keep output that its log has not.
    pub(crate) fn unread(&self) -> Option<Arc<Live>> {
        self.unread.borrow().clone()
    }

    /// Follows what runs.
    pub(crate) fn watch_live(&self) -> watch::Receiver<Option<Arc<Live>>> {
        self.live.clone()
    }
}

/// All owners, by uid: a name may be used again while the owner of its last bearer ends.
#[derive(Clone, Default)]
pub(crate) struct Owners(Arc<RwLock<HashMap<String, OwnerHandle>>>);

impl Owners {
    /// The owner of a record.
    pub(crate) fn of(&self, sandbox: &rest::Sandbox) -> Option<OwnerHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox.uid).cloned()
    }

    fn insert(&self, uid: String, handle: OwnerHandle) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(uid, handle);
    }

    fn remove(&self, uid: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Begins the owner of a record that is in the store.
pub(crate) fn begin(context: &Arc<Context>, subject: Subject, begin: Begin) {
    // Commands are few: an API call each, and they are taken at once.
    let (commands, receiver) = mpsc::channel(256);
    let (live_sender, live) = watch::channel(None);
    let (unread_sender, unread) = watch::channel(None);
    let handle = OwnerHandle { commands, live, unread, spec: Arc::clone(&subject.spec) };
    context.owners.insert(subject.uid.to_string(), handle);
    let handles = (live_sender, unread_sender);
    let owner = task::Owner::new(Arc::clone(context), subject, receiver, handles);
    context.tasks.spawn(owner.run(begin));
}

/// Which sandbox an owner owns.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) name: SandboxName,
    pub(crate) uid: SandboxUid,
    pub(crate) class: Class,
    pub(crate) spec: Arc<SandboxSpec>,
    /// As the store has it.
    pub(crate) record: rest::Sandbox,
}
