//! The seam between a shim's core and a way of isolating: engine `container` builds namespaces and cgroups itself, engine `gvisor`
//! drives runsc.
//!
//! An engine owns everything it makes on the host and removes it again. It never speaks with the guest, writes no log and no record:
//! that is the core's. Calls come from the shim's only thread, in this order, and are bounded in time:
//!
//! ```text
//! prepare ──► begin (each container, in order) ──► kill* / end_boost* ──► evidence (each container, once it has ended) ──► remove
//! adopt   ──────────────────────────────────────┘
//! ```

use std::os::fd::OwnedFd;

use atoll_sys::process::{Exit, ProcessIdentity};
use atoll_wire::guest::{Boot, ProcessSpec};
use atoll_wire::record::ShimRecord;

/// Why an engine could not do something: goes to the user as the reason of a failed launch.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {message}")]
pub struct EngineError {
    /// What was tried, as a verb with its object.
    pub operation: String,
    /// How it failed, and what to do where that is known.
    pub message: String,
}

impl EngineError {
    /// From anything that says why.
    pub fn new(operation: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self { operation: operation.into(), message: message.to_string() }
    }
}

/// What the server prepared for a sandbox and handed over as descriptors. An engine takes it whole and closes each as soon as it can.
///
/// An engine is made by its module's function `engine(&Launch, Resources) -> Result<Box<dyn Engine>, EngineError>`, which checks and
/// changes nothing on the host. For [`Engine::adopt`] there may be none of them: the network namespace then lives through its processes alone.
#[derive(Debug, Default)]
pub struct Resources {
    /// The prepared network namespace; `None` only when adopting.
    pub network_namespace: Option<OwnedFd>,
    /// A sysfs of that network namespace, mounted nowhere, read-only.
    pub sysfs: Option<OwnedFd>,
    /// The disks by container name, each a mount that stands nowhere.
    pub disks: Vec<(String, OwnedFd)>,
    /// The named volumes by the plan's name for them, each a mount that stands nowhere.
    pub volumes: Vec<(String, OwnedFd)>,
}

/// The descriptors of a container's first process. They block, and outputs are FIFOs opened for reading and writing, so that the
/// process never loses its last reader. The engine closes its copies once the process has them.
#[derive(Debug)]
pub struct StandardStreams {
    /// Descriptor 0: the guest's requests, or the image's own input (`init: image`).
    pub input: OwnedFd,
    /// Descriptor 1: the guest's answers, or the image's own output.
    pub output: OwnedFd,
    /// Descriptor 2: the guest's diagnostics, or the image's own errors.
    pub diagnostics: OwnedFd,
}

/// A container whose first process runs with all isolation and limits in force.
#[derive(Debug)]
pub struct Begun {
    /// Its first process as the host sees it (engine gvisor: the Sentry).
    pub init: ProcessIdentity,
    /// Becomes readable when the container has ended (a pidfd, where the container has a process of its own on the host).
    pub ended: OwnedFd,
}

/// What an engine knows about the end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndEvidence {
    /// How the first process ended, where it is a child that can be waited for. Not reaped yet.
    pub init_exit: Option<Exit>,
    /// The kernel killed something for the memory limit.
    pub out_of_memory: bool,
    /// The workload's own pids limit was hit.
    pub pids_limit: bool,
    /// The host's backstop for the threads of the isolating process was hit.
    pub host_pids_backstop: bool,
    /// The isolating process (Sentry) itself is gone.
    pub sentry_died: bool,
}

/// A way of isolating one sandbox.
pub trait Engine {
    /// Makes what the containers share: control group, namespaces, shared memory file systems.
    ///
    /// # Errors
    /// [`EngineError`]; the core then calls [`Engine::remove`].
    fn prepare(&mut self) -> Result<(), EngineError>;

    /// Starts the first process of the plan's container of that index.
    ///
    /// # Errors
    /// [`EngineError`]; the core then calls [`Engine::remove`].
    fn begin(&mut self, container: usize, streams: StandardStreams) -> Result<Begun, EngineError>;

    /// What the guest of that container is told before it starts anything (system call filter, limits that it enforces itself,
    /// hostname where the engine has not set it). Asked after [`Engine::prepare`], before or after [`Engine::begin`].
    ///
    /// # Errors
    /// [`EngineError`]; the core then calls [`Engine::remove`].
    fn boot(&mut self, container: usize) -> Result<Boot, EngineError>;

    /// Takes over, after the death of an earlier shim, what the record names and still runs: one entry a container of the plan.
    ///
    /// # Errors
    /// [`EngineError`] when the host's state makes no sense.
    fn adopt(&mut self, record: &ShimRecord) -> Result<Vec<Option<Begun>>, EngineError>;

    /// Starts a process from outside in a container with `init: image`, with these streams; gives its pidfd-like descriptor and pid.
    /// It is a child of the shim (directly, or through the subreaper), and the core reaps it.
    ///
    /// # Errors
    /// [`EngineError`].
    fn exec_from_outside(
        &mut self,
        container: usize,
        process: &ProcessSpec,
        streams: StandardStreams,
    ) -> Result<Begun, EngineError>;

    /// Ends every process of one container, at once.
    ///
    /// # Errors
    /// [`EngineError`]; killing what has ended is no error.
    fn kill(&mut self, container: usize) -> Result<(), EngineError>;

    /// Sends a signal to a container's first process (`init: image`, where there is no guest to ask).
    ///
    /// # Errors
    /// [`EngineError`].
    fn signal(&mut self, container: usize, signal: i32) -> Result<(), EngineError>;

    /// The CPU quota holds from now on.
    ///
    /// # Errors
    /// [`EngineError`].
    fn end_boost(&mut self) -> Result<(), EngineError>;

    /// What is known about why a container ended. Asked after the end was seen, or after the main process's exit was told.
    fn evidence(&mut self, container: usize) -> EndEvidence;

    /// Kills and removes everything that the engine made, whatever became of it. Idempotent. Reaps.
    ///
    /// # Errors
    /// [`EngineError`] that names what is left.
    fn remove(&mut self) -> Result<(), EngineError>;
}
