//! A simulated sandbox: its containers' main processes as tasks, and what its shim would know of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_wire::guest::{Exited, StartFailure};
use atoll_wire::record::{ContainerExit, EndRecord, ExitReason, RECORD_VERSION};
use atoll_wire::shim::{ContainerPlan, ContainerState, SandboxPlan, ShimEvent, ShimState};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{EventReceiver, ProcessOutput, RuntimeError};
use atoll_sys::clock::{monotonic_micros, unix_micros};

use super::log::{self, LogFile};
use super::output::{MainOutput, Output};
use super::program::{Control, Program, ProgramEnd};

/// Everything about one sandbox.
pub(super) struct SimSandbox {
    pub(super) plan: SandboxPlan,
    log_directory: Option<PathBuf>,
    pub(super) mains: Vec<Arc<MainOutput>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    containers: Vec<ContainerState>,
    /// From the beginning: who attaches early can already write. Gone when the command has ended.
    controls: Vec<Option<mpsc::UnboundedSender<Control>>>,
    /// Taken by the command.
    controlled: Vec<Option<mpsc::UnboundedReceiver<Control>>>,
    /// Exec'ed processes by container; they end with it.
    execs: Vec<(usize, mpsc::UnboundedSender<Control>)>,
    events: Option<mpsc::Sender<ShimEvent>>,
    shim_lost: bool,
    adopted: bool,
    stopping: bool,
    vanished: bool,
    end: Option<EndRecord>,
    files: HashMap<(usize, String), Bytes>,
}

/// What somebody finds who comes later.
pub(super) enum Found {
    Running(ShimState, EventReceiver),
    Over(EndRecord),
    /// It was killed unseen: its host knows what is said of it.
    Vanished,
}

impl SimSandbox {
    pub(super) fn new(plan: SandboxPlan, log_directory: Option<PathBuf>) -> Self {
        let (mut mains, mut containers) = (Vec::new(), Vec::new());
        for container in &plan.containers {
            let log = log_directory.as_ref().and_then(|directory| {
                LogFile::create(&log::path(directory, &plan.uid, &container.name)).ok()
            });
            mains.push(Arc::new(MainOutput::new(container.await_attach, log)));
            containers.push(ContainerState {
                name: container.name.clone(),
                started_at_unix_micros: None,
                host_pid: None,
                exit: None,
                log_dropped_bytes: 0,
            });
        }
        let channels = plan.containers.iter().map(|_| mpsc::unbounded_channel());
        let (controls, controlled) = channels.map(|(to, from)| (Some(to), Some(from))).unzip();
        let state = Mutex::new(State { containers, controls, controlled, ..State::default() });
        Self { plan, log_directory, mains, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enough for all events that can come: none is ever waited for.
    fn event_channel(&self) -> (mpsc::Sender<ShimEvent>, EventReceiver) {
        mpsc::channel(4 * self.plan.containers.len() + 4)
    }

    /// Events from the beginning.
    pub(super) fn subscribe(&self) -> EventReceiver {
        let (sender, receiver) = self.event_channel();
        self.state().events = Some(sender);
        receiver
    }

    /// A new shim takes over, or a new server comes: what was so far, and events from here on. The record, when it is over.
    pub(super) fn adopt(&self) -> Found {
        let (sender, receiver) = self.event_channel();
        let mut state = self.state();
        if state.vanished {
            return Found::Vanished;
        }
        if let Some(end) = &state.end {
            return Found::Over(end.clone());
        }
        state.adopted |= state.shim_lost;
        state.shim_lost = false;
        state.events = Some(sender);
        let snapshot = ShimState { containers: state.containers.clone(), adopted: state.adopted };
        Found::Running(snapshot, receiver)
    }

    pub(super) fn end(&self) -> Option<EndRecord> {
        self.state().end.clone()
    }

    pub(super) fn log_path(&self, container: &str) -> Option<PathBuf> {
        self.index(container).ok()?;
        Some(log::path(self.log_directory.as_ref()?, &self.plan.uid, container))
    }

    /// The index of a container.
    pub(super) fn index(&self, container: &str) -> Result<usize, RuntimeError> {
        self.plan
            .containers
            .iter()
            .position(|it| it.name == container)
            .ok_or_else(|| RuntimeError::NoContainer { container: container.to_owned() })
    }

    /// Whether a shim would answer at all.
    pub(super) fn reach(&self) -> Result<(), RuntimeError> {
        let state = self.state();
        if state.end.is_some() {
            return Err(RuntimeError::Ended { what: "the sandbox".into() });
        }
        if state.shim_lost || state.vanished {
            let message = "its shim was lost: adopt it".into();
            return Err(RuntimeError::Unreachable { uid: self.plan.uid.clone(), message });
        }
        Ok(())
    }

    /// The main process of a container, while it runs.
    pub(super) fn control(
        &self,
        index: usize,
    ) -> Result<mpsc::UnboundedSender<Control>, RuntimeError> {
        self.state().controls[index]
            .clone()
            .ok_or_else(|| RuntimeError::Ended { what: "the container's command".into() })
    }

    /// All processes of a container.
    pub(super) fn controls(&self, index: usize) -> Vec<mpsc::UnboundedSender<Control>> {
        let state = self.state();
        let execs = state.execs.iter().filter(|(of, _)| *of == index).map(|(_, it)| it.clone());
        state.controls[index].iter().cloned().chain(execs).collect()
    }

    pub(super) fn add_exec(&self, index: usize, control: mpsc::UnboundedSender<Control>) {
        let mut state = self.state();
        state.execs.retain(|(_, it)| !it.is_closed());
        state.execs.push((index, control));
    }

    pub(super) fn host_pid(&self, index: usize) -> Option<i32> {
        self.state().containers[index].host_pid
    }

    pub(super) fn put_file(&self, index: usize, path: &str, tar: Bytes) {
        self.state().files.insert((index, path.to_owned()), tar);
    }

    pub(super) fn file(&self, index: usize, path: &str) -> Option<Bytes> {
        self.state().files.get(&(index, path.to_owned())).cloned()
    }

    fn tell(state: &mut State, event: ShimEvent) {
        if let Some(events) = &state.events {
            // Full it cannot be; closed means that the server is gone.
            drop(events.try_send(event));
        }
    }

    /// Starts every container; events tell how far it is.
    pub(super) async fn begin(self: Arc<Self>, latency: Duration, failure: Option<String>) {
        let at_monotonic_micros = monotonic_micros();
        Self::tell(&mut self.state(), ShimEvent::Spawned { at_monotonic_micros });
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if let Some(message) = failure {
            return self.fail_launch(message);
        }
        for index in 0..self.plan.containers.len() {
            self.begin_container(index);
        }
    }

    fn fail_launch(&self, message: String) {
        let mut state = self.state();
        state.end = Some(EndRecord {
            version: RECORD_VERSION,
            ended_at_unix_micros: unix_micros(),
            containers: Vec::new(),
            launch_failure: Some(message.clone()),
            log_dropped_bytes: Vec::new(),
        });
        Self::tell(&mut state, ShimEvent::LaunchFailed { message });
        state.events = None;
    }

    fn begin_container(self: &Arc<Self>, index: usize) {
        let container = &self.plan.containers[index];
        let mut state = self.state();
        if state.vanished {
            return;
        }
        let (name, at) = (container.name.clone(), monotonic_micros());
        Self::tell(&mut state, ShimEvent::Isolated { container: name, at_monotonic_micros: at });
        let stopping = state.stopping;
        drop(state);
        if !container.held || stopping {
            self.start_command(index);
        }
    }

    /// The command of a held container; nothing where it was started or the sandbox is ending.
    pub(super) fn start_held(self: &Arc<Self>, index: usize) {
        if self.host_pid(index).is_none() && self.is_held(index) {
            self.start_command(index);
        }
    }

    /// Its command was not started yet because nobody asked for it.
    fn is_held(&self, index: usize) -> bool {
        let state = self.state();
        self.plan.containers[index].held
            && state.controlled[index].is_some()
            && state.containers[index].exit.is_none()
    }

    fn start_command(self: &Arc<Self>, index: usize) {
        static NEXT_PID: AtomicI32 = AtomicI32::new(2);
        let container = &self.plan.containers[index];
        let name = container.name.clone();
        let parsed = Program::parse(&container.process);
        let mut state = self.state();
        if state.vanished {
            return;
        }
        let program = match parsed {
            Ok(program) if !state.stopping => program,
            Ok(_) => {
                drop(state);
                return self.ended(index, stopped_before_start());
            }
            Err(failure) => {
                drop(state);
                return self.never_started(index, failure);
            }
        };
        let Some(controlled) = state.controlled[index].take() else { return };
        if !container.process.stdin
            && let Some(control) = &state.controls[index]
        {
            drop(control.send(Control::InputEnd));
        }
        let (host_pid, at_unix_micros) = (NEXT_PID.fetch_add(1, Ordering::Relaxed), unix_micros());
        state.containers[index].host_pid = Some(host_pid);
        state.containers[index].started_at_unix_micros = Some(at_unix_micros);
        let at_monotonic_micros = monotonic_micros();
        Self::tell(
            &mut state,
            ShimEvent::Started { container: name, host_pid, at_monotonic_micros, at_unix_micros },
        );
        drop(state);
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            let output = Output::Main(Arc::clone(&sandbox.mains[index]));
            output.tell(ProcessOutput::Started).await;
            let end = program.run(controlled, &output).await;
            // Recorded and told before the clients of its output hear of it, as a shim does.
            sandbox.ended(index, end);
            output.tell(ProcessOutput::Exited(end.exited)).await;
            sandbox.mains[index].close();
        });
    }

    fn never_started(self: &Arc<Self>, index: usize, failure: StartFailure) {
        let exit = ContainerExit {
            container: self.plan.containers[index].name.clone(),
            code: Some(failure.kind.exit_code()),
            signal: None,
            reason: ExitReason::StartFailed,
            message: failure.message.clone(),
            finished_at_unix_micros: Some(unix_micros()),
        };
        self.record(index, exit);
        let main = Arc::clone(&self.mains[index]);
        tokio::spawn(async move {
            Output::Main(Arc::clone(&main)).tell(ProcessOutput::StartFailed(failure)).await;
            main.close();
        });
    }

    fn ended(&self, index: usize, end: ProgramEnd) {
        let stopping = self.state().stopping;
        let exit = exit_of(&self.plan.containers[index], end, stopping);
        self.record(index, exit);
    }

    fn record(&self, index: usize, exit: ContainerExit) {
        let mut state = self.state();
        state.controls[index] = None;
        if state.vanished {
            return;
        }
        state.execs.retain(|(of, control)| {
            if *of == index {
                // A process that has ended does not listen.
                drop(control.send(Control::Fault(ExitReason::Stopped)));
            }
            *of != index
        });
        state.containers[index].exit = Some(exit.clone());
        Self::tell(&mut state, ShimEvent::Exited { exit });
        let exits: Option<Vec<ContainerExit>> =
            state.containers.iter().map(|container| container.exit.clone()).collect();
        let Some(containers) = exits else { return };
        state.end = Some(EndRecord {
            version: RECORD_VERSION,
            ended_at_unix_micros: unix_micros(),
            log_dropped_bytes: vec![0; containers.len()],
            containers,
            launch_failure: None,
        });
        Self::tell(&mut state, ShimEvent::Ended);
        state.events = None;
    }

    /// Stop signals now, SIGKILL later.
    pub(super) fn stop(self: &Arc<Self>, grace_millis: u64) {
        let signals: Vec<i32> = self.plan.containers.iter().map(|it| it.stop_signal).collect();
        self.state().stopping = true;
        for index in (0..signals.len()).filter(|index| self.is_held(*index)) {
            self.ended(index, stopped_before_start());
            self.mains[index].close();
        }
        if grace_millis == 0 {
            return self.signal_mains(&vec![9; signals.len()]);
        }
        self.signal_mains(&signals);
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(grace_millis)).await;
            sandbox.signal_mains(&vec![9; signals.len()]);
        });
    }

    fn signal_mains(&self, signals: &[i32]) {
        let state = self.state();
        for (control, signal) in state.controls.iter().zip(signals) {
            if let Some(control) = control {
                // A process that has ended does not listen.
                drop(control.send(Control::Signal(*signal)));
            }
        }
    }

    pub(super) fn fault(&self, container: &str, reason: ExitReason) {
        if let Ok(index) = self.index(container) {
            for control in self.controls(index) {
                // A process that has ended does not listen.
                drop(control.send(Control::Fault(reason)));
            }
        }
    }

    pub(super) fn lose_shim(&self) {
        let mut state = self.state();
        state.shim_lost = true;
        state.events = None;
    }

    /// Every process ends and nobody records it.
    pub(super) fn kill_unseen(&self) {
        let mut state = self.state();
        state.vanished = true;
        state.events = None;
        drop(state);
        for (container, main) in self.plan.containers.iter().zip(&self.mains) {
            self.fault(&container.name, ExitReason::Unknown);
            main.close();
        }
    }
}

const fn stopped_before_start() -> ProgramEnd {
    ProgramEnd {
        exited: Exited { code: None, signal: Some(9), pids_limit: false },
        cause: Some(ExitReason::Stopped),
    }
}

fn exit_of(container: &ContainerPlan, end: ProgramEnd, stopping: bool) -> ContainerExit {
    let reason = match (end.cause, end.exited.code) {
        (Some(cause), _) => cause,
        (None, _) if stopping => ExitReason::Stopped,
        (None, Some(0)) => ExitReason::Completed,
        (None, _) => ExitReason::Error,
    };
    let lost = matches!(reason, ExitReason::GuestDied | ExitReason::Unknown);
    ContainerExit {
        container: container.name.clone(),
        code: end.exited.code,
        signal: end.exited.signal.filter(|_| !lost),
        reason,
        message: String::new(),
        finished_at_unix_micros: Some(unix_micros()),
    }
}
