//! A sandbox's gate: what its probes say, and what follows for its published ports.
//!
//! ```text
//! containers started ──► their probes begin ──► all pass ──► visitors are let in ──► GateOpened: ready
//!                                                ▲  │ one does not, or a container ended
//!                                                └──┴──► GateShut, then visitors are let in no more
//! ```
//!
//! INVARIANT: a sandbox is shown as ready only while visitors are let in, and they are let in only while its probes pass.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::probe::{Check, Progress, Purpose, Verdict};
use atoll_model::spec::ReadinessProbe;
use atoll_model::state::{Event, Gate, Phase};
use atoll_model::timeline;
use atoll_sys::clock::monotonic_micros;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Live;
use super::persist::Urgency;
use super::probing::{self, Target};
use super::task::{Owner, cause};

/// Between attempts to let visitors in.
const PAUSE: Duration = Duration::from_secs(1);
/// Verdicts that wait for their owner.
const QUEUE: usize = 16;

/// What the gate's tasks tell.
pub(super) enum Told {
    /// A probe stands elsewhere now.
    Verdict { index: usize, verdict: Verdict, why: String },
    /// Visitors are let in, or no more; or that could not be.
    Published { is_open: bool, result: Result<(), String> },
}

/// Who watches a running sandbox's probes. Dropped, nobody does.
pub(super) struct Gatekeeper {
    verdicts: Vec<Verdict>,
    /// Why one of them does not pass.
    why: String,
    sender: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    /// Whether visitors are let in, once that is known.
    is_published: Option<bool>,
    /// Why that could not be changed the last time.
    failure: Option<String>,
    /// A change of that is under way.
    publishing: Option<AbortOnDropHandle<()>>,
    /// Of each probe that has begun.
    probes: Vec<Option<AbortOnDropHandle<()>>>,
}

impl Gatekeeper {
    fn of(probes: usize) -> Self {
        let (sender, told) = mpsc::channel(QUEUE);
        Self {
            verdicts: vec![Verdict::Starting; probes],
            why: String::new(),
            sender,
            told,
            is_published: None,
            failure: None,
            publishing: None,
            probes: std::iter::repeat_with(|| None).take(probes).collect(),
        }
    }

    fn passes(&self) -> bool {
        self.verdicts.iter().all(|verdict| *verdict == Verdict::Passing)
    }
}

/// What is told next; for ever, where nobody watches.
pub(super) async fn next_told(gatekeeper: &mut Option<Gatekeeper>) -> Told {
    match gatekeeper {
        Some(keeper) => match keeper.told.recv().await {
            Some(told) => told,
            // The keeper itself holds a sender.
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

impl Owner {
    /// Begins to watch what there is to watch, and makes true what the gate should be.
    pub(super) fn tend_gate(&mut self) {
        if self.state.gate == Gate::Absent {
            return;
        }
        let live = self.live.borrow().clone();
        let Some(live) = live else { return };
        let probes = self.subject.spec.probes.len();
        self.gatekeeper.get_or_insert_with(|| Gatekeeper::of(probes));
        for index in 0..probes {
            self.begin_probe(index, &live);
        }
        self.follow_gate();
    }

    /// A container's own probe begins with its command, the sandbox's with the last of them.
    fn begin_probe(&mut self, index: usize, live: &Arc<Live>) {
        let Some(probe) = self.subject.spec.probes.get(index) else { return };
        let container = probe.container.as_ref();
        let container = container
            .and_then(|name| self.state.containers.iter().find(|it| it.name == name.as_str()));
        let is_due = match container {
            Some(container) => container.is_started(),
            None => self.state.all_started(),
        };
        let target = self.target(live, probe);
        let Some(keeper) = self.gatekeeper.as_mut().filter(|_| is_due) else { return };
        let Some(task @ None) = keeper.probes.get_mut(index) else { return };
        let now = monotonic_micros();
        let resumed =
            |passing| Progress::resumed(probe.probe.clone(), Purpose::Readiness, passing, now);
        let progress = match self.state.gate {
            Gate::Open => resumed(true),
            Gate::Shut => resumed(false),
            Gate::Absent | Gate::Waiting if container.is_some_and(|it| it.has_passed) => {
                resumed(true)
            }
            Gate::Absent | Gate::Waiting => {
                Progress::begun(probe.probe.clone(), Purpose::Readiness, now)
            }
        };
        if let Some(verdict) = keeper.verdicts.get_mut(index) {
            *verdict = progress.verdict();
        }
        let run = probing::run(index, progress, target, keeper.sender.clone());
        *task = Some(AbortOnDropHandle::new(tokio::spawn(run)));
    }

    fn target(&self, live: &Arc<Live>, probe: &ReadinessProbe) -> Target {
        let process = match (&probe.probe.check, &probe.container) {
            (Check::Exec { command }, Some(name)) => {
                let mut containers = live.plan.containers.iter();
                containers.find(|it| it.name == name.as_str()).map(|container| {
                    let mut process = container.process.clone();
                    process.args.clone_from(command);
                    (process.stdin, process.terminal) = (false, None);
                    (container.name.clone(), process)
                })
            }
            _ => None,
        };
        Target {
            uid: self.subject.uid.to_string(),
            sandbox: Arc::clone(&live.sandbox),
            network: self.context.network.clone(),
            process,
        }
    }

    /// Takes in what a task of the gate tells.
    pub(super) fn take_told(&mut self, told: Told) {
        let Some(keeper) = &mut self.gatekeeper else { return };
        match told {
            Told::Verdict { index, verdict: Verdict::Failed, why } => {
                return self.give_up_waiting(index, &why);
            }
            Told::Verdict { index, verdict, why } => {
                if let Some(known) = keeper.verdicts.get_mut(index) {
                    *known = verdict;
                }
                keeper.why = why;
                if verdict == Verdict::Passing {
                    self.note_passed(index);
                }
            }
            Told::Published { is_open, result } => {
                keeper.publishing = None;
                match result {
                    Ok(()) => (keeper.is_published, keeper.failure) = (Some(is_open), None),
                    // Tried again until it can be; told once.
                    Err(message) if keeper.failure.as_ref() == Some(&message) => {}
                    Err(message) => {
                        keeper.failure = Some(message.clone());
                        self.tell(true, "PublishFailed", message);
                    }
                }
            }
        }
        self.follow_gate();
    }

    /// What depends on its container may start.
    fn note_passed(&mut self, index: usize) {
        let probe = self.subject.spec.probes.get(index);
        if let Some(container) = probe.and_then(|it| it.container.as_ref()) {
            self.apply(Event::Passed { container: container.to_string() }, Urgency::Now);
            self.tend_order();
        }
    }

    fn follow_gate(&mut self) {
        if !self.state.all_started() {
            return;
        }
        let Some(keeper) = &mut self.gatekeeper else { return };
        let is_over = self.state.phase == Phase::Deleting || self.state.phase.is_over();
        let should = keeper.passes() && self.state.all_run() && !is_over;
        let has_ports = !self.subject.spec.ports.is_empty();
        if has_ports && keeper.publishing.is_none() && keeper.is_published != Some(should) {
            let (tell, uid) = (keeper.sender.clone(), self.subject.uid.to_string());
            let network = self.context.network.clone();
            let publishing = async move {
                let published = match &network {
                    Some(network) => network.publish(&uid, should).await,
                    None => return,
                };
                let result = published.map_err(|error| with_causes(&error));
                if result.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
                // Its owner may have gone on without it.
                tell.send(Told::Published { is_open: should, result }).await.ok();
            };
            keeper.publishing = Some(AbortOnDropHandle::new(tokio::spawn(publishing)));
        }
        let is_open = should && (!has_ports || keeper.is_published == Some(true));
        if is_open && self.state.gate != Gate::Open {
            self.open_gate();
        } else if (!should || keeper.failure.is_some()) && self.state.gate == Gate::Open && !is_over
        {
            let why = match &keeper.failure {
                Some(failure) if should => format!("visitors cannot be let in: {failure}"),
                _ if keeper.passes() => "a container has ended".to_owned(),
                _ => format!("a readiness probe does not pass any more: {}", keeper.why),
            };
            self.tell(true, "NotReady", why.clone());
            self.apply(Event::GateShut(cause("NotReady", &why)), Urgency::Now);
        }
    }

    fn open_gate(&mut self) {
        let first = self.state.gate == Gate::Waiting;
        self.mark_now(timeline::Phase::Ready);
        self.apply(Event::GateOpened, Urgency::Now);
        if !first {
            return self.tell(false, "Ready", "its readiness probes pass again".to_owned());
        }
        let live = self.live.borrow().clone();
        if let Some(live) = live.filter(|_| !self.subject.spec.probes.is_empty()) {
            // It was boosted until it is ready. Its place is another's once its quota is back.
            let (context, uid) = (Arc::clone(&self.context), self.subject.uid);
            tokio::spawn(async move {
                match live.sandbox.end_boost().await {
                    Ok(()) => context.boosts().end(uid),
                    Err(error) => tracing::debug!(%error, "a boost ends by itself"),
                }
            });
        }
    }

    /// A probe that never passed has failed for good: it is ended.
    fn give_up_waiting(&mut self, index: usize, why: &str) {
        let Some(probe) = self.subject.spec.probes.get(index) else { return };
        let whose =
            probe.container.as_ref().map_or_else(String::new, |name| format!("container {name}: "));
        let tries = probe.probe.failure_threshold;
        let message = format!(
            "{whose}its readiness probe failed {tries} times in a row, the last time: {why}"
        );
        self.give_up(Event::NeverReady(cause("NeverReady", &message)));
    }
}
