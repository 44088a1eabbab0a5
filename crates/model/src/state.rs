//! A sandbox's state: which events lead where. One owner applies events in order; nobody else changes a state.
//!
//! ```text
//!            Scheduled           all containers started, gate open    all containers ended
//!  Pending ────────────► Scheduled ─────────────────────────► Running ────────────────────► Succeeded (all with 0)
//!     │                      │  LaunchFailed, all ended,         │  ▲                              or Failed (with a reason)
//!     └───── Failed ◄────────┴─ NeverReady ─── Lost ◄────────────┤  │ Seen
//!                                                    Unreachable ▼  │
//!                                                              Unknown
//!  any ── Delete ──► Deleting ──► (record gone)
//! ```
//!
//! A sandbox with probes or published ports has a gate besides, which opens once the probes pass and visitors are let in, and shuts and opens
//! again as the probes say. Ready is a sandbox that runs, all containers of it, with its gate open.
//!
//! INVARIANT: a container that has ended never runs again; Succeeded, Failed and Deleting are left only by Delete.

use crate::units::UnixMicros;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Accepted; nothing of it is on the host.
    Pending,
    /// Being made.
    Scheduled,
    /// All containers were started, at least one runs.
    Running,
    /// All containers ended with 0.
    Succeeded,
    /// It is over, and not well; the reason says why.
    Failed,
    /// It cannot be seen at the moment.
    Unknown,
    /// It is being removed.
    Deleting,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 7] = [
        Phase::Pending,
        Phase::Scheduled,
        Phase::Running,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Unknown,
        Phase::Deleting,
    ];

    /// The word in the API. SOURCE: sandboxd-o, section 3.2; Succeeded and Unknown are atoll's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Scheduled => "Scheduled",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Unknown => "Unknown",
            Phase::Deleting => "Deleting",
        }
    }

    /// The phase of that word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// Nothing runs any more, and nothing will.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Exit code 0.
    Completed,
    /// Another exit code, or a signal that nobody of atoll sent.
    Error,
    /// The memory limit.
    OutOfMemory,
    /// The workload's own pids limit.
    PidsLimit,
    /// The host's backstop for the isolating process's threads.
    HostPidsBackstop,
    /// Asked to stop, or killed, by a user or a deadline.
    Stopped,
    /// The command could not be started.
    StartFailed,
    /// atoll's guest was killed or broke.
    GuestDied,
    /// The isolating process broke.
    SentryDied,
    /// The host could not keep what the sandbox was promised, a limit for example, and it was ended.
    HostError,
    /// Nobody saw it.
    Unknown,
}

impl EndReason {
    /// All of them.
    pub const ALL: [EndReason; 11] = [
        EndReason::Completed,
        EndReason::Error,
        EndReason::OutOfMemory,
        EndReason::PidsLimit,
        EndReason::HostPidsBackstop,
        EndReason::Stopped,
        EndReason::StartFailed,
        EndReason::GuestDied,
        EndReason::SentryDied,
        EndReason::HostError,
        EndReason::Unknown,
    ];

    /// The word in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EndReason::Completed => "Completed",
            EndReason::Error => "Error",
            EndReason::OutOfMemory => "OutOfMemory",
            EndReason::PidsLimit => "PidsLimit",
            EndReason::HostPidsBackstop => "HostPidsBackstop",
            EndReason::Stopped => "Stopped",
            EndReason::StartFailed => "StartFailed",
            EndReason::GuestDied => "GuestDied",
            EndReason::SentryDied => "SentryDied",
            EndReason::HostError => "HostError",
            EndReason::Unknown => "Unknown",
        }
    }

    /// The reason of that word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<EndReason> {
        EndReason::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// Which end explains a sandbox best when several containers ended: what was done to one comes before what one did, and a stop
    /// (often the consequence of another's end) comes last.
    const fn weight(self) -> u8 {
        match self {
            EndReason::HostPidsBackstop | EndReason::SentryDied | EndReason::HostError => 6,
            EndReason::OutOfMemory | EndReason::PidsLimit => 5,
            EndReason::StartFailed => 4,
            EndReason::GuestDied => 3,
            EndReason::Error => 2,
            EndReason::Unknown | EndReason::Stopped => 1,
            EndReason::Completed => 0,
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Exit code, when known.
    pub code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Why.
    pub reason: EndReason,
    /// For people; may be empty.
    pub message: String,
    /// When, if anybody saw it.
    pub finished_at: Option<UnixMicros>,
}

impl End {
    /// An end that nobody saw.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self {
            code: None,
            signal: None,
            reason: EndReason::Unknown,
            message: message.into(),
            finished_at: None,
        }
    }

    /// All went well.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0) && matches!(self.reason, EndReason::Completed | EndReason::Stopped)
    }

    /// The number a shell would show, when known.
    #[must_use]
    pub fn shell_code(&self) -> Option<i32> {
        self.code.or_else(|| self.signal.map(|signal| signal.saturating_add(128)))
    }
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerPhase {
    /// Not started.
    Waiting,
    /// Its command was exec'ed.
    Running,
    /// It is over.
    Ended(End),
    /// It cannot be seen at the moment.
    Unknown,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// What it does.
    pub phase: ContainerPhase,
    /// When its command was exec'ed.
    pub started_at: Option<UnixMicros>,
    /// Bytes of output that rotation dropped or a crash lost.
    pub log_dropped_bytes: u64,
    /// Those that must be ready before its command starts.
    pub depends_on: Vec<String>,
    /// It has a readiness probe of its own.
    pub is_probed: bool,
    /// That probe has passed since it was started.
    pub has_passed: bool,
}

impl ContainerState {
    /// One that waits for its start, and for nobody else.
    #[must_use]
    pub fn waiting(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            phase: ContainerPhase::Waiting,
            started_at: None,
            log_dropped_bytes: 0,
            depends_on: Vec::new(),
            is_probed: false,
            has_passed: false,
        }
    }
}

/// Why it is not as it should be, or why it is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What decides, besides its containers, whether a sandbox is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Absent,
    /// It has never opened.
    Waiting,
    /// Probes pass, visitors are let in.
    Open,
    /// It was open, and is not at the moment.
    Shut,
}

/// A sandbox's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxState {
    /// Where it is in its life.
    pub phase: Phase,
    /// Why, where there is something to say.
    pub cause: Option<Cause>,
    /// In the order of the specification.
    pub containers: Vec<ContainerState>,
    /// Whether more than its containers decides if it is ready, and what.
    pub gate: Gate,
    /// All images are here.
    pub images_ready: bool,
    /// An earlier server began it.
    pub adopted: bool,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It cannot be begun here as things are.
    Unplaced(Cause),
    /// Work on it has begun.
    Scheduled,
    /// All images are here.
    ImagesReady,
    /// It could not be begun; nothing of it is left.
    LaunchFailed(Cause),
    /// A container's command was exec'ed.
    Started {
        /// Which.
        container: String,
        /// When.
        at: UnixMicros,
    },
    /// A container ended.
    Ended {
        /// Which.
        container: String,
        /// How.
        end: End,
    },
    /// A container's own readiness probe has passed.
    Passed {
        /// Which.
        container: String,
    },
    /// So many bytes of a container's output were dropped, in all.
    LogDropped {
        /// Which.
        container: String,
        /// The sum.
        bytes: u64,
    },
    /// Its probes pass, and visitors are let in.
    GateOpened,
    /// They do not pass any more, and nobody is let in.
    GateShut(Cause),
    /// Its probes have failed before they ever passed: it was ended.
    NeverReady(Cause),
    /// It can never become what it was to be: it was ended.
    GivenUp(Cause),
    /// It cannot be seen.
    Unreachable(String),
    /// It was seen (again): each container as it is.
    Seen {
        /// By name; those not named are waiting.
        containers: Vec<ContainerState>,
        /// An earlier server had begun it.
        adopted: bool,
    },
    /// Nothing of it runs, and nobody saw its end.
    Lost(Cause),
    /// It is to be removed.
    Delete(Cause),
}

impl Event {
    /// It means something only to a sandbox with a gate.
    const fn is_of_gate(&self) -> bool {
        matches!(self, Self::GateOpened | Self::GateShut(_) | Self::NeverReady(_))
    }
}

impl SandboxState {
    /// A sandbox that was just accepted.
    #[must_use]
    pub fn new<'a>(containers: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            phase: Phase::Pending,
            cause: None,
            containers: containers.into_iter().map(ContainerState::waiting).collect(),
            gate: Gate::Absent,
            images_ready: false,
            adopted: false,
        }
    }

    /// The same, with a gate that waits to be opened.
    #[must_use]
    pub fn gated(self) -> Self {
        Self { gate: Gate::Waiting, ..self }
    }

    /// Started, every container runs, and the gate, if there is one, is open.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running
            && self.all_run()
            && matches!(self.gate, Gate::Absent | Gate::Open)
    }

    /// Every container runs.
    #[must_use]
    pub fn all_run(&self) -> bool {
        self.containers.iter().all(|it| it.phase == ContainerPhase::Running)
    }

    /// Every container was started.
    #[must_use]
    pub fn all_started(&self) -> bool {
        self.containers.iter().all(ContainerState::is_started)
    }

    /// Applies an event. False: it changes nothing.
    pub fn apply(&mut self, event: Event) -> bool {
        let before = self.clone();
        match event {
            Event::Delete(cause) => {
                if self.phase != Phase::Deleting {
                    self.phase = Phase::Deleting;
                    self.cause = Some(cause);
                }
            }
            Event::LogDropped { container, bytes } => self.note_dropped(&container, bytes),
            // What became of its containers is told even of one that is being deleted; its phase stays.
            Event::Ended { container, end } => self.note_end(&container, end),
            _ if self.phase == Phase::Deleting || self.phase.is_over() => {}
            Event::Unplaced(cause) if self.phase == Phase::Pending => self.cause = Some(cause),
            Event::Unplaced(_) => {}
            Event::Scheduled if self.phase == Phase::Pending => {
                self.phase = Phase::Scheduled;
                self.cause = None;
            }
            Event::Scheduled => {}
            Event::ImagesReady => self.images_ready = true,
            Event::LaunchFailed(cause) => self.fail(cause),
            Event::Started { container, at } => self.note_start(&container, at),
            _ if self.gate == Gate::Absent && event.is_of_gate() => {}
            Event::GateOpened => self.open_gate(),
            Event::GateShut(cause) if self.gate == Gate::Open => {
                self.gate = Gate::Shut;
                self.cause = Some(cause);
            }
            Event::GateShut(_) => {}
            Event::Passed { container } => {
                if let Some(container) = self.container(&container) {
                    container.has_passed = true;
                }
            }
            Event::NeverReady(cause) | Event::GivenUp(cause) => {
                self.end_all(EndReason::Stopped, &cause.message);
                self.fail(cause);
            }
            Event::Unreachable(message) => self.lose_sight(message),
            Event::Seen { containers, adopted } => self.see(containers, adopted),
            Event::Lost(cause) => {
                self.end_all(EndReason::Unknown, &cause.message);
                self.fail(cause);
            }
        }
        *self != before
    }

    fn container(&mut self, name: &str) -> Option<&mut ContainerState> {
        self.containers.iter_mut().find(|it| it.name == name)
    }

    fn fail(&mut self, cause: Cause) {
        self.phase = Phase::Failed;
        self.cause = Some(cause);
    }

    fn note_dropped(&mut self, container: &str, bytes: u64) {
        if let Some(container) = self.container(container) {
            container.log_dropped_bytes = container.log_dropped_bytes.max(bytes);
        }
    }

    fn note_start(&mut self, container: &str, at: UnixMicros) {
        if let Some(container) = self.container(container) {
            container.started_at.get_or_insert(at);
            if !matches!(container.phase, ContainerPhase::Ended(_)) {
                container.phase = ContainerPhase::Running;
            }
        }
        self.settle();
    }

    fn note_end(&mut self, container: &str, end: End) {
        if let Some(container) = self.container(container)
            && !matches!(container.phase, ContainerPhase::Ended(_))
        {
            container.phase = ContainerPhase::Ended(end);
        }
        self.settle();
    }

    fn lose_sight(&mut self, message: String) {
        self.phase = Phase::Unknown;
        self.cause = Some(Cause { reason: "Unreachable".to_owned(), message });
        for container in &mut self.containers {
            if container.phase == ContainerPhase::Running {
                container.phase = ContainerPhase::Unknown;
            }
        }
    }

    fn see(&mut self, seen: Vec<ContainerState>, adopted: bool) {
        self.adopted |= adopted;
        if self.phase == Phase::Unknown {
            self.phase = Phase::Scheduled;
            self.cause = None;
        }
        for one in seen {
            if let Some(container) = self.container(&one.name)
                && !matches!(container.phase, ContainerPhase::Ended(_))
            {
                container.phase = one.phase;
                container.started_at = container.started_at.or(one.started_at);
                container.log_dropped_bytes =
                    container.log_dropped_bytes.max(one.log_dropped_bytes);
            }
        }
        self.settle();
    }

    fn open_gate(&mut self) {
        if self.gate == Gate::Shut {
            self.cause = None;
        }
        self.gate = Gate::Open;
        self.settle();
    }

    fn end_all(&mut self, reason: EndReason, message: &str) {
        for container in &mut self.containers {
            if !matches!(container.phase, ContainerPhase::Ended(_)) {
                let end = End { reason, ..End::unknown(message) };
                container.phase = ContainerPhase::Ended(end);
            }
        }
    }

    /// Follows from the containers' phases.
    fn settle(&mut self) {
        if self.phase == Phase::Deleting || self.phase.is_over() {
            return;
        }
        if self.containers.iter().all(|it| matches!(it.phase, ContainerPhase::Ended(_))) {
            return self.conclude();
        }
        if matches!(self.phase, Phase::Pending | Phase::Scheduled)
            && self.all_started()
            && self.gate != Gate::Waiting
        {
            self.phase = Phase::Running;
            self.images_ready = true;
            self.cause = None;
        }
    }

    fn conclude(&mut self) {
        let ends = self.containers.iter().filter_map(|it| match &it.phase {
            ContainerPhase::Ended(end) => Some((&it.name, end)),
            _ => None,
        });
        let failed = ends.filter(|(_, end)| !end.is_success());
        // The first of the heaviest: `max_by_key` would take the last.
        let worst = failed.reduce(|best, next| {
            if next.1.reason.weight() > best.1.reason.weight() { next } else { best }
        });
        match worst {
            None => {
                self.phase = Phase::Succeeded;
                self.cause = Some(Cause {
                    reason: EndReason::Completed.name().to_owned(),
                    message: String::new(),
                });
            }
            Some((name, end)) => {
                let cause = Cause {
                    reason: end.reason.name().to_owned(),
                    message: describe_end(name, end),
                };
                self.fail(cause);
            }
        }
    }
}

pub(crate) fn describe_end(container: &str, end: &End) -> String {
    let how = match (end.code, end.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "its exit code is not known".to_owned(),
    };
    if end.message.is_empty() {
        format!("container {container}: {how}")
    } else {
        format!("container {container}: {how}: {}", end.message)
    }
}

#[cfg(test)]
mod tests;
