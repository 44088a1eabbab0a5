//! The simulated host: what outlives a server. Tests hold it, hand it to one [`super::SimRuntime`] after the other, and break it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_wire::record::ExitReason;

use super::sandbox::SimSandbox;

/// How long the simulated host takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimLatency {
    /// From the call of `launch` to its return.
    pub launch: Duration,
    /// From there to the start of the first container's command.
    pub start: Duration,
}

/// What goes wrong with a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimLaunchFault {
    /// `launch` fails because of the host.
    Host(String),
    /// `launch` fails because of the sandbox.
    Refused(String),
    /// `launch` succeeds; then the event `LaunchFailed` comes.
    Failed(String),
    /// `launch` succeeds; then nothing comes.
    Hangs,
}

/// A host in memory.
#[derive(Default)]
pub struct SimHost {
    state: Mutex<HostState>,
    log_directory: Option<PathBuf>,
}

#[derive(Default)]
struct HostState {
    latency: SimLatency,
    launch_faults: VecDeque<SimLaunchFault>,
    sandboxes: BTreeMap<String, Entry>,
}

#[derive(Clone)]
pub(super) enum Entry {
    Known(Arc<SimSandbox>),
    /// Nothing runs; the reason is all that is known.
    Gone(String),
    Corrupt(String),
}

impl SimHost {
    /// A host without latency, faults and logs.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A host whose containers' output is logged below `directory`.
    #[must_use]
    pub fn with_logs(directory: PathBuf) -> Arc<Self> {
        Arc::new(Self { log_directory: Some(directory), ..Self::default() })
    }

    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on.
    pub fn set_latency(&self, latency: SimLatency) {
        self.state().latency = latency;
    }

    /// The next launch meets this fault; faults given before come first.
    pub fn fail_next_launch(&self, fault: SimLaunchFault) {
        self.state().launch_faults.push_back(fault);
    }

    /// The shim dies: the events close, calls fail. Its sandbox goes on and can be adopted. False: no such sandbox.
    pub fn lose_shim(&self, uid: &str) -> bool {
        self.with(uid, SimSandbox::lose_shim)
    }

    /// Shim and all processes are killed at once, without a record: adoption says `Gone`.
    pub fn lose_sandbox(&self, uid: &str, reason: &str) -> bool {
        self.kill_as(uid, Entry::Gone(reason.to_owned()))
    }

    /// The sandbox's directory becomes unreadable, its processes are gone: adoption quarantines it.
    pub fn corrupt(&self, uid: &str, reason: &str) -> bool {
        self.kill_as(uid, Entry::Corrupt(reason.to_owned()))
    }

    /// A container ends for this reason: `OutOfMemory`, `GuestDied`, `PidsLimit`...
    pub fn end_container(&self, uid: &str, container: &str, reason: ExitReason) -> bool {
        self.with(uid, |sandbox| sandbox.fault(container, reason))
    }

    /// The host starts anew: nothing runs any more.
    pub fn reboot(&self) {
        let uids: Vec<String> = self.state().sandboxes.keys().cloned().collect();
        for uid in uids {
            self.lose_sandbox(&uid, "the host was started anew");
        }
    }

    /// The uids of sandboxes that have not ended.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let running = |entry: &Entry| matches!(entry, Entry::Known(it) if it.end().is_none());
        let state = self.state();
        state.sandboxes.iter().filter(|(_, it)| running(it)).map(|(uid, _)| uid.clone()).collect()
    }

    fn with(&self, uid: &str, action: impl FnOnce(&SimSandbox)) -> bool {
        match self.find(uid) {
            Some(Entry::Known(sandbox)) => {
                action(&sandbox);
                true
            }
            _ => false,
        }
    }

    /// What is known of it changes before anybody can see it end. False: nothing of it runs.
    fn kill_as(&self, uid: &str, entry: Entry) -> bool {
        let mut state = self.state();
        let Some(known) = state.sandboxes.get_mut(uid) else { return false };
        if !matches!(known, Entry::Known(_)) {
            return false;
        }
        let before = std::mem::replace(known, entry);
        drop(state);
        if let Entry::Known(sandbox) = before {
            sandbox.kill_unseen();
        }
        true
    }

    pub(super) fn latency(&self) -> SimLatency {
        self.state().latency
    }

    pub(super) fn next_fault(&self) -> Option<SimLaunchFault> {
        self.state().launch_faults.pop_front()
    }

    pub(super) fn log_directory(&self) -> Option<&PathBuf> {
        self.log_directory.as_ref()
    }

    pub(super) fn find(&self, uid: &str) -> Option<Entry> {
        self.state().sandboxes.get(uid).cloned()
    }

    /// False: the uid is taken.
    pub(super) fn add(&self, uid: &str, sandbox: Arc<SimSandbox>) -> bool {
        let mut state = self.state();
        if state.sandboxes.contains_key(uid) {
            return false;
        }
        state.sandboxes.insert(uid.to_owned(), Entry::Known(sandbox));
        true
    }

    pub(super) fn remove(&self, uid: &str) -> Option<Entry> {
        self.state().sandboxes.remove(uid)
    }

    pub(super) fn uids(&self) -> Vec<String> {
        self.state().sandboxes.keys().cloned().collect()
    }
}
