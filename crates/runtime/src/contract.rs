//! The contract between server and classes: call order, what each method promises, what may fail.
//!
//! ```text
//! launch(plan) ──► events: Spawned, Isolated, Started per container ──► Exited per container ──► Ended
//!      │                    └─► exec / attach / upload / download / signal while it runs
//!      └─► Err: nothing is left of it            stop(grace) ──► Exited(Stopped) ──► Ended
//! adopt(uid) after a restart: Running (same events from now on) | Ended(record) | Gone
//! clear(uid): the same as destroy, but for the directory with its records and logs
//! destroy(uid): idempotent, at any time, ends with nothing left on the host, directory included
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_wire::guest::{
    Exited, ProcessInfo, ProcessSpec, SignalRequest, StartFailure, TerminalSize, TransferRequest,
};
use atoll_wire::record::EndRecord;
use atoll_wire::shim::{DiskBackend, NetworkPlacement, SandboxPlan, ShimEvent, ShimState};
use bytes::Bytes;
use tokio::sync::mpsc;

/// A way of isolating. In order of strength for untrusted code, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuntimeClass {
    /// No isolation: a model of a node, for tests and scale.
    Sim,
    /// Shared kernel.
    Container,
    /// User-space kernel.
    Gvisor,
}

impl RuntimeClass {
    /// The name in specs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Container => "container",
            Self::Gvisor => "gvisor",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sim, Self::Container, Self::Gvisor].into_iter().find(|class| class.name() == name)
    }
}

/// Where limits hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitsScope {
    /// For each container.
    Container,
    /// For the sandbox, as the sum of its containers' limits.
    Sandbox,
}

/// What a class declares about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassTraits {
    /// Where limits hold.
    pub limits_scope: LimitsScope,
    /// `init: image` works.
    pub image_init: bool,
    /// How it isolates on this host, for people: `user namespace 1000000+65536, cgroup v1, seccomp`.
    pub detail: String,
}

/// Why a runtime could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The host or its configuration is not up to it: nothing about the sandbox is wrong.
    #[error("{message}")]
    Host {
        /// What is missing and what to do.
        message: String,
    },
    /// The sandbox could not be begun; nothing of it is left but its directory's logs and records.
    #[error("the sandbox could not be started: {message}")]
    Launch {
        /// What could not be done, and why.
        message: String,
    },
    /// No such container in the sandbox.
    #[error("the sandbox has no container {container:?}")]
    NoContainer {
        /// The name asked for.
        container: String,
    },
    /// The sandbox, or the container, has ended.
    #[error("{what} has ended")]
    Ended {
        /// What has.
        what: String,
    },
    /// The shim cannot be reached: the truth is not known at the moment.
    #[error("the shim of sandbox {uid} does not answer: {message}")]
    Unreachable {
        /// Which sandbox.
        uid: String,
        /// What was tried and how it failed.
        message: String,
    },
    /// The shim or the guest refused the request.
    #[error("refused: {message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// This class does not have it.
    #[error("class {class} has no {what}")]
    Unsupported {
        /// The class.
        class: &'static str,
        /// What was asked.
        what: &'static str,
    },
    /// A system call or file operation on the host failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// What happens to a sandbox, in order; closed after `Ended` or `LaunchFailed`. Closed without either: the shim was lost, ask
/// [`Runtime::adopt`].
pub type EventReceiver = mpsc::Receiver<ShimEvent>;

/// A class on this host.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Which class.
    fn class(&self) -> RuntimeClass;

    /// What it declares.
    fn traits(&self) -> ClassTraits;

    /// Prepares what a sandbox of this shape would take from pools, so that its launch is fast. A hint: may do nothing.
    async fn prewarm(&self, disk_bytes: u64);

    /// Begins a sandbox and returns as soon as its shim has it: everything else comes as events. The layers of the plan must stay
    /// leased until the sandbox is destroyed. When the future is dropped or fails, nothing is left of it.
    async fn launch(
        &self,
        plan: SandboxPlan,
    ) -> Result<(Arc<dyn Sandbox>, EventReceiver), RuntimeError>;

    /// Finds a sandbox that an earlier server began. Events begin with what has not been told by the returned state.
    async fn adopt(&self, uid: &str) -> Result<Adoption, RuntimeError>;

    /// Uids of everything on this host that is this instance's: directories, cgroups, processes, whether known or not.
    async fn inventory(&self) -> Result<Vec<String>, RuntimeError>;

    /// Kills what is left of a sandbox and removes all of it from the host but its directory: records and logs stay until it is destroyed.
    /// Idempotent; an unknown uid is fine.
    async fn clear(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Kills what is left of a sandbox and removes all of it, its directory too. Idempotent; an unknown uid is fine.
    async fn destroy(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Ends pools and spawners; running sandboxes stay.
    async fn shutdown(&self);
}

/// What became of a sandbox since an earlier server saw it.
pub enum Adoption {
    /// It runs, under its shim or a new one.
    Running(Arc<dyn Sandbox>, ShimState, EventReceiver),
    /// It is over; this is what was recorded.
    Ended(EndRecord),
    /// Nothing runs and nothing was recorded: it was killed with its shim, or the host was started anew.
    Gone {
        /// What the evidence says, for people.
        reason: String,
    },
    /// Its directory cannot be believed; it was set aside whole.
    Quarantined {
        /// Where it lies now.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a container's disk holds, and may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// What bounds it.
    pub backend: DiskBackend,
    /// Bytes that its files may take. An image's is less than was asked for: its file system keeps some for itself.
    pub limit_bytes: u64,
    /// Bytes that its files take; with btrfs as of the file system's last commit.
    pub used_bytes: u64,
}

/// A running sandbox. All methods may be called at the same time.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// Its uid.
    fn uid(&self) -> &str;

    /// When everything was prepared and the spawner was asked, CLOCK_MONOTONIC in microseconds: the end of phase `prepare`. `None`
    /// for an adopted sandbox.
    fn prepared_at_monotonic_micros(&self) -> Option<u64> {
        None
    }

    /// Where it is in the instance's network; `None`: it has loopback only.
    fn network(&self) -> Option<NetworkPlacement> {
        None
    }

    /// Where its logs lie ([`atoll_wire::log`]); `None`: it keeps none.
    fn log_path(&self, container: &str) -> Option<PathBuf>;

    /// What a container's disk holds at the moment. `None`: it has none of its own, or it cannot be seen.
    async fn disk(&self, _container: &str) -> Result<Option<DiskUsage>, RuntimeError> {
        Ok(None)
    }

    /// Starts a process in a container.
    async fn exec(
        &self,
        container: &str,
        process: ProcessSpec,
    ) -> Result<ProcessStream, RuntimeError>;

    /// Input and output of the main process; with `from_start` all of it, see [`ShimRequest::Attach`](atoll_wire::shim::ShimRequest).
    async fn attach(
        &self,
        container: &str,
        from_start: bool,
    ) -> Result<ProcessStream, RuntimeError>;

    /// A tar into a container: its bytes go in as input, ended by [`ProcessInput::StdinEnd`]; ends with [`ProcessOutput::TransferDone`].
    async fn upload(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError>;

    /// A tar out of a container: comes as `Stdout`, ends with [`ProcessOutput::TransferDone`].
    async fn download(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError>;

    /// What runs in a container.
    async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, RuntimeError>;

    /// Signals the main process, or everyone.
    async fn signal(&self, container: &str, signal: SignalRequest) -> Result<(), RuntimeError>;

    /// Stop signals, then SIGKILL after `grace_millis`. The end is an event.
    async fn stop(&self, grace_millis: u64) -> Result<(), RuntimeError>;

    /// The CPU quota holds from now on.
    async fn end_boost(&self) -> Result<(), RuntimeError>;

    /// Starts the command of a container that its plan holds. Asked again for one that was started it does nothing.
    async fn start_container(&self, container: &str) -> Result<(), RuntimeError>;
}

/// A process's input and output. Dropping it detaches; an exec'ed process then loses its terminal or goes on.
pub struct ProcessStream {
    /// What goes in.
    pub input: mpsc::Sender<ProcessInput>,
    /// What comes out, bounded: who does not read slows the process, nobody else. Ends after the last variant.
    pub output: mpsc::Receiver<ProcessOutput>,
}

/// What can be told to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessInput {
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// Its standard input ends.
    StdinEnd,
    /// Its terminal changed.
    Resize(TerminalSize),
    /// A signal.
    Signal(SignalRequest),
}

/// What a process tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessOutput {
    /// It runs.
    Started,
    /// It could not be started. The last.
    StartFailed(StartFailure),
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended, and all of its output was told. The last.
    Exited(Exited),
    /// A transfer ended; with an error or all well. The last.
    TransferDone(Option<String>),
    /// The connection to it was lost. The last.
    Lost(String),
}
