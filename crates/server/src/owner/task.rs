//! An owner's loop: commands, events, outcomes and deadlines come in; the state changes; the next piece of work begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::recovery::Found;
use atoll_model::spec::unfulfilled;
use atoll_model::state::{Cause, Event, Phase, SandboxState};
use atoll_model::timeline;
use atoll_runtime::{EventReceiver, Runtime, Sandbox};
use atoll_wire::rest;
use atoll_wire::shim::SandboxPlan;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::gate::{Gatekeeper, next_told};
use super::pace::Pace;
use super::persist::{Persist, Urgency};
use super::work::{self, After, Outcome, Removal, Work};
use super::{Command, Context, Live, Marks, Subject, status};
use crate::plan::{NamedVolumes, PlannedImage};
use crate::store::NewEvent;
use crate::time;

/// How an owner begins.
pub(crate) enum Begin {
    /// The sandbox was just accepted.
    Fresh(Marks),
    /// An earlier server accepted it; the sender is dropped once it is known what became of it.
    Recovered(oneshot::Sender<()>),
}

/// Longest wait for the disk when the server ends.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(15);
/// tokio's timers end after about two years: a deadline beyond is looked at again then.
const MOST_SLEEP: Duration = Duration::from_secs(86_400 * 365);

/// What follows when nothing is left on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destroying {
    /// The record goes.
    ForDeletion,
    /// It is begun from the start.
    BeforeBeginning,
    /// The record stays, and the directory with the logs.
    ToKeepRecord,
}

/// Tells others of a sandbox that can be spoken to.
type LiveSender = watch::Sender<Option<Arc<Live>>>;

/// One sandbox's owner.
pub(super) struct Owner {
    pub(super) context: Arc<Context>,
    pub(super) subject: Subject,
    pub(super) state: SandboxState,
    pub(super) persist: Persist,
    commands: mpsc::Receiver<Command>,
    pub(super) live: LiveSender,
    unread: LiveSender,
    pub(super) work: Option<Work>,
    pub(super) destroying: Option<Destroying>,
    pub(super) events: Option<EventReceiver>,
    /// While it runs and has a gate.
    pub(super) gatekeeper: Option<Gatekeeper>,
    /// Held containers that were asked for, by name.
    pub(super) starting: BTreeMap<String, AbortOnDropHandle<()>>,
    pub(super) plan: Option<Arc<SandboxPlan>>,
    /// Uids of the named volumes that it has.
    named_volumes: NamedVolumes,
    /// While it is being created.
    pub(super) marks: Option<Marks>,
    pub(super) pace: Pace,
    expiry: Option<Instant>,
    attached: usize,
    detached_since: Instant,
    /// Deletion: not before this moment, unless it has ended by itself.
    pub(super) kill_at: Option<Instant>,
    pub(super) waiters: Vec<oneshot::Sender<Result<(), String>>>,
    /// Who waits for what is known to be on disk.
    settled: Vec<oneshot::Sender<Result<(), String>>>,
    recovered: Option<oneshot::Sender<()>>,
    /// Its record in memory says more than the one on disk: how long it took to get there.
    amended: bool,
}

/// Until its time of day to go: never longer than a whole time to live, should the wall clock have been set back since that was noted.
fn time_left(subject: &mut Subject) -> Option<Duration> {
    let status = &mut subject.record.status;
    let expire_at = status.expire_at.as_deref().and_then(time::parse)?;
    let now = time::now();
    let left = Duration::from_micros(u64::try_from(expire_at.0.saturating_sub(now.0)).unwrap_or(0));
    let most = subject.spec.ttl_seconds.map_or(left, Duration::from_secs);
    if left <= most {
        return Some(left);
    }
    status.expire_at = Some(time::text(time::after(now, most)));
    Some(most)
}

impl Owner {
    pub(super) fn new(
        context: Arc<Context>,
        mut subject: Subject,
        commands: mpsc::Receiver<Command>,
        (live, unread): (LiveSender, LiveSender),
    ) -> Self {
        let state = status::read(&subject.spec, &subject.record.status);
        let left = time_left(&mut subject);
        Self {
            context,
            state,
            persist: Persist::new(),
            commands,
            live,
            unread,
            work: None,
            destroying: None,
            events: None,
            gatekeeper: None,
            starting: BTreeMap::new(),
            plan: None,
            named_volumes: NamedVolumes::new(),
            marks: None,
            pace: Pace::new(LEAST_PAUSE, MOST_PAUSE),
            expiry: left.and_then(|left| Instant::now().checked_add(left)),
            attached: 0,
            detached_since: Instant::now(),
            kill_at: None,
            waiters: Vec::new(),
            settled: Vec::new(),
            recovered: None,
            amended: false,
            subject,
        }
    }

    /// Runs until the record is gone.
    pub(super) async fn run(mut self, begin: Begin) {
        match begin {
            Begin::Fresh(marks) => {
                self.begin(marks);
            }
            Begin::Recovered(recovered) => {
                self.recovered = Some(recovered);
                self.adopt();
            }
        }
        let ending = self.context.ending.clone();
        while !ending.is_cancelled() {
            if self.step().await {
                break;
            }
        }
        if ending.is_cancelled() {
            // What runs goes on, and keeps its volumes.
            self.flush().await;
        } else {
            self.context.volumes.release(self.subject.uid);
        }
        self.context.owners.remove(&self.subject.uid.to_string());
    }

    /// Begins from the start, where this node is one that it may run on.
    pub(super) fn begin(&mut self, marks: Marks) {
        let selector = &self.subject.spec.node_selector;
        if let Some(missing) = unfulfilled(selector, &self.context.node_labels) {
            let message = format!(
                "no node has the label {missing} that its node_selector asks for: start the server with --node-label {missing}, or delete it"
            );
            self.tell(true, "NoNode", message.clone());
            return self.apply(Event::Unplaced(cause("NoNode", &message)), Urgency::Now);
        }
        self.marks = Some(marks);
        self.begin_with_volumes();
    }

    /// Goes on where its named volumes can be had, and else waits until there are more.
    fn begin_with_volumes(&mut self) {
        // Before they are asked for: what is offered in between is heard of.
        let offers = self.context.volumes.offers();
        let (name, spec) = (self.subject.name.as_str(), &self.subject.spec);
        match self.context.volumes.bind(self.subject.uid, name, spec) {
            Ok(bound) => {
                self.named_volumes = bound;
                self.work = Some(work::turn(&self.context));
            }
            Err(missing) => {
                let message = format!(
                    "there is no volume {missing:?}, which it asks for: create it, or delete the sandbox"
                );
                let cause = cause("NoVolume", &message);
                if self.state.cause.as_ref() != Some(&cause) {
                    self.tell(true, "NoVolume", message);
                    self.apply(Event::Unplaced(cause), Urgency::Now);
                }
                self.work = Some(work::offer(offers));
            }
        }
    }

    /// One thing that happens. True: the record is gone.
    async fn step(&mut self) -> bool {
        self.begin_what_is_due();
        let wake_at = self.wake_at();
        let ending = self.context.ending.clone();
        tokio::select! {
            biased;
            () = ending.cancelled() => {}
            command = self.commands.recv() => match command {
                Some(command) => self.take_command(command),
                // The registry holds a sender for as long as this runs.
                None => return true,
            },
            event = next_event(&mut self.events) => self.take_event(event),
            told = next_told(&mut self.gatekeeper) => self.take_told(told),
            outcome = next_outcome(&mut self.work) => {
                self.work = None;
                return self.take_outcome(outcome).await;
            }
            written = self.persist.done() => self.take_written(written),
            () = tokio::time::sleep_until(wake_at) => {}
        }
        false
    }

    fn take_written(&mut self, written: Result<Option<Arc<rest::Sandbox>>, String>) {
        match written {
            Ok(Some(written)) => {
                let timeline = &written.status.timeline;
                self.amended |= self.subject.record.status.timeline != *timeline;
                self.subject.record.status.timeline.clone_from(timeline);
            }
            Ok(None) => {}
            // It goes on trying; whoever waits for a deletion need not.
            Err(message) => {
                for waiter in self.waiters.drain(..).chain(self.settled.drain(..)) {
                    waiter.send(Err(message.clone())).ok();
                }
            }
        }
    }

    fn set_ttl(&mut self, seconds: Option<u64>, done: oneshot::Sender<Result<(), String>>) {
        if self.state.phase == Phase::Deleting {
            done.send(Err("it is being deleted".to_owned())).ok();
            return;
        }
        let left = seconds.map(Duration::from_secs);
        self.expiry = left.and_then(|left| Instant::now().checked_add(left));
        self.subject.record.status.expire_at =
            left.map(|left| time::text(time::after(time::now(), left)));
        self.subject.record.spec.ttl_seconds =
            seconds.and_then(|it| i64::try_from(it).ok()).unwrap_or(0);
        self.settled.push(done);
        self.persist.note(Urgency::Now);
    }

    /// What is known now goes to disk before the server ends; what is not is found out again by the next one.
    async fn flush(&mut self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        loop {
            if self.persist.is_settled() {
                if !std::mem::take(&mut self.amended) {
                    return;
                }
                self.persist.note(Urgency::Now);
            }
            self.persist.hurry();
            self.write_if_due();
            match tokio::time::timeout_at(deadline, self.persist.done()).await {
                Ok(written) => self.take_written(written),
                Err(_) => return,
            }
        }
    }

    fn write_if_due(&mut self) {
        let (subject, state) = (&mut self.subject, &self.state);
        self.persist.begin_if_due(&self.context.store, || {
            status::show(state, &mut subject.record.status);
            subject.record.clone()
        });
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        // One that has passed is acted on as soon as the record is on disk, which wakes by itself.
        let kill_at = self.kill_at.filter(|at| *at > now && self.events.is_some());
        let deadlines =
            [self.expiry_deadline(), self.detach_deadline(), self.persist.wake_at(), kill_at];
        deadlines.into_iter().flatten().fold(now + MOST_SLEEP, Instant::min)
    }

    fn expiry_deadline(&self) -> Option<Instant> {
        self.expiry.filter(|_| self.state.phase != Phase::Deleting)
    }

    /// `None` while somebody is attached, or where it does not matter.
    fn detach_deadline(&self) -> Option<Instant> {
        if self.attached > 0 || self.state.phase == Phase::Deleting {
            return None;
        }
        let seconds = self.subject.spec.detach_ttl_seconds?;
        self.detached_since.checked_add(Duration::from_secs(seconds.into()))
    }

    fn begin_what_is_due(&mut self) {
        let now = Instant::now();
        if self.expiry_deadline().is_some_and(|at| at <= now) {
            self.delete(0, cause("TtlExpired", "its time to live is over"));
        } else if self.detach_deadline().is_some_and(|at| at <= now) {
            self.delete(0, cause("Detached", "no client is attached any more"));
        }
        self.write_if_due();
        if self.persist.is_settled() {
            for waiter in self.settled.drain(..) {
                // Whoever asked may be gone.
                waiter.send(Ok(())).ok();
            }
        }
        let ended = self.events.is_none() || self.kill_at.is_none_or(|at| at <= now);
        if self.state.phase == Phase::Deleting
            && self.persist.is_settled()
            && ended
            && self.work.is_none()
        {
            self.let_go();
            self.destroy(Destroying::ForDeletion);
        }
        let adopting = self.work.is_some()
            && self.destroying.is_none()
            && self.events.is_none()
            && self.pace_is_fresh();
        if self.persist.is_settled() && !adopting {
            self.recovered = None;
        }
    }

    /// Nothing was looked for in vain yet.
    fn pace_is_fresh(&self) -> bool {
        self.recovered.is_some() && self.state.phase != Phase::Unknown && self.marks.is_none()
    }

    /// Applies an event and notes what follows from a change.
    pub(super) fn apply(&mut self, event: Event, urgency: Urgency) {
        let before = self.state.phase;
        if !self.state.apply(event) {
            return;
        }
        self.persist.note(urgency);
        if self.state.phase != before {
            self.phase_changed(before);
        }
    }

    fn phase_changed(&mut self, before: Phase) {
        match self.state.phase {
            // It ran before, and went on.
            Phase::Running if before == Phase::Unknown => {}
            Phase::Running => {
                self.tell(false, "Started", "all containers were started".to_owned());
                self.publish_timeline();
            }
            Phase::Succeeded | Phase::Failed => {
                self.context.boosts().end(self.subject.uid);
                let Cause { reason, message } =
                    self.state.cause.clone().unwrap_or_else(|| cause("Unknown", ""));
                self.context.metrics.ended(&reason);
                if self.state.phase == Phase::Failed {
                    let text =
                        if message.is_empty() { reason } else { format!("{reason}: {message}") };
                    if let Some(marks) = self.marks.take() {
                        self.subject.record.status.timeline = Some(marks.shown());
                        self.trace(&marks, Some(&text));
                    }
                    self.tell(true, "Failed", text);
                }
                self.release_network();
                self.release();
            }
            _ => {}
        }
    }

    fn publish_timeline(&mut self) {
        let Some(mut marks) = self.marks.take() else { return };
        self.subject.record.status.timeline = Some(marks.shown());
        let (context, name, class) =
            (Arc::clone(&self.context), self.subject.name.to_string(), self.subject.class);
        self.persist.finish_with(Box::new(move |sandbox| {
            marks.end_now(timeline::Phase::Publish);
            sandbox.status.timeline = Some(marks.shown());
            let timeline = marks.timeline();
            context.metrics.running(&timeline);
            context.traces.creation(&name, class.name(), &timeline, None);
        }));
    }

    fn trace(&self, marks: &Marks, error: Option<&str>) {
        self.context.traces.creation(
            self.subject.name.as_str(),
            self.subject.class.name(),
            &marks.timeline(),
            error,
        );
    }

    pub(super) fn tell(&mut self, warning: bool, reason: &'static str, message: String) {
        let object = format!("sandbox/{}", self.subject.name);
        self.persist.event(NewEvent { warning, reason, object, message });
        self.persist.note(Urgency::Soon);
    }

    pub(super) fn mark(&mut self, phase: timeline::Phase, at: u64) {
        if let Some(marks) = &mut self.marks {
            marks.end_at(phase, at);
        }
    }

    pub(super) fn mark_now(&mut self, phase: timeline::Phase) {
        if let Some(marks) = &mut self.marks {
            marks.end_now(phase);
        }
    }

    /// Nothing runs that could be spoken to.
    pub(super) fn let_go(&mut self) {
        self.context.boosts().end(self.subject.uid);
        self.events = None;
        self.gatekeeper = None;
        self.starting.clear();
        self.live.send_replace(None);
    }

    /// Its shim has ended it. Where the log could not hold all that was kept for a client, the shim is asked once more by who comes.
    pub(super) fn let_go_of_ended(&mut self) {
        let mut specs = self.subject.spec.containers.iter();
        let is_short = |spec: &atoll_model::spec::Container| {
            let mut containers = self.state.containers.iter();
            spec.await_attach
                && containers.any(|it| it.name == spec.name.as_str() && it.log_dropped_bytes > 0)
        };
        if specs.any(is_short) {
            self.unread.send_replace(self.live.borrow().clone());
        }
        self.let_go();
    }

    fn runtime(&self) -> Option<Arc<dyn Runtime>> {
        self.context.runtimes.get(&self.subject.class).cloned()
    }

    fn class_missing(&self) -> String {
        let why = self.context.missing.iter().find(|(class, _)| *class == self.subject.class);
        format!(
            "class {} cannot be had on this node: {}",
            self.subject.class.name(),
            why.map_or("it is not set up", |(_, why)| why)
        )
    }

    /// Begins to look for what runs of it.
    pub(super) fn adopt(&mut self) {
        self.work = Some(match self.runtime() {
            Some(runtime) => work::adopt(runtime, self.subject.uid.to_string()),
            None => {
                let message = self.class_missing();
                Box::pin(async move { Outcome::ClassMissing(message) })
            }
        });
    }

    pub(super) fn destroy(&mut self, purpose: Destroying) {
        self.destroying = Some(purpose);
        self.context.boosts().end(self.subject.uid);
        let removal = match purpose {
            Destroying::ForDeletion | Destroying::BeforeBeginning => Removal::All,
            Destroying::ToKeepRecord => Removal::AllButDirectory,
        };
        self.work = Some(work::destroy(&self.context, &self.subject, removal));
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Delete { grace_millis, cause, done } => {
                self.waiters.extend(done);
                self.delete(grace_millis, cause);
            }
            Command::SetTtl { seconds, done } => self.set_ttl(seconds, done),
            Command::Stop { grace_millis, reply } => self.stop(grace_millis, reply),
            Command::Attached => self.attached = self.attached.saturating_add(1),
            Command::Detached => {
                self.attached = self.attached.saturating_sub(1);
                self.detached_since = Instant::now();
            }
        }
    }

    async fn take_outcome(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::VolumeOffered => self.begin_with_volumes(),
            Outcome::Turn(permit) => {
                self.mark_now(timeline::Phase::Queue);
                self.subject.record.status.node_name = Some(self.context.node_name.clone());
                self.apply(Event::Scheduled, Urgency::Soon);
                self.work = Some(work::images(&self.context, &self.subject, permit));
            }
            Outcome::Images(Ok((images, permit))) => {
                self.mark_now(timeline::Phase::Image);
                self.apply(Event::ImagesReady, Urgency::Soon);
                self.launch(&images, permit);
            }
            Outcome::Images(Err(cause)) => self.fail_launch(cause),
            Outcome::Launched(Ok((sandbox, events))) => {
                let now = atoll_sys::clock::monotonic_micros();
                let prepared_at = sandbox.prepared_at_monotonic_micros().unwrap_or(now);
                self.mark(timeline::Phase::Prepare, prepared_at);
                self.follow(sandbox, events);
            }
            Outcome::Launched(Err(cause)) => self.fail_launch(cause),
            Outcome::Adopted(adopted) => self.take_adoption(adopted).await,
            Outcome::ClassMissing(message) => self.carry_out(Found::ClassMissing(message)),
            Outcome::Destroyed(result) => return self.take_destroyed(result).await,
            Outcome::Paused(After::Adopt) => self.adopt(),
            Outcome::Paused(After::Destroy) => {
                if let Some(purpose) = self.destroying {
                    self.destroy(purpose);
                }
            }
        }
        false
    }

    fn launch(&mut self, images: &[PlannedImage], permit: tokio::sync::OwnedSemaphorePermit) {
        self.set_digests(images.iter().map(|it| it.image.digest.clone()));
        let planned =
            work::make_plan(&self.subject, &self.subject.spec, images, &self.named_volumes);
        match (planned, self.runtime()) {
            (Ok(mut plan), Some(runtime)) => {
                let now = atoll_sys::clock::monotonic_micros();
                let uid = self.subject.uid;
                plan.ports = crate::ports::plans(&self.subject.record.status.assigned_ports);
                plan.boost_millis = self.context.boosts().grant(uid, plan.boost_millis, now);
                self.plan = Some(Arc::new(plan.clone()));
                self.work = Some(work::launch(runtime, plan, permit));
            }
            (Err(cause), _) => self.fail_launch(cause),
            (Ok(_), None) => {
                let message = self.class_missing();
                self.fail_launch(cause("ClassMissing", &message));
            }
        }
    }

    fn set_digests(&mut self, digests: impl Iterator<Item = String>) {
        status::show(&self.state, &mut self.subject.record.status);
        for (container, digest) in self.subject.record.status.containers.iter_mut().zip(digests) {
            container.image_digest = Some(digest);
        }
    }

    pub(super) fn digests(&self) -> Vec<String> {
        let containers = &self.subject.record.status.containers;
        containers.iter().map(|it| it.image_digest.clone().unwrap_or_default()).collect()
    }

    pub(super) fn follow(&mut self, sandbox: Arc<dyn Sandbox>, events: EventReceiver) {
        self.events = Some(events);
        self.pace = Pace::new(LEAST_PAUSE, MOST_PAUSE);
        self.subject.record.status.ip = sandbox.network().map(|place| place.ipv4.to_string());
        if let Some(plan) = self.plan.clone() {
            let digests = self.digests();
            self.live.send_replace(Some(Arc::new(Live { sandbox, plan, digests })));
        }
    }
}

pub(super) fn cause(reason: &str, message: &str) -> Cause {
    Cause { reason: reason.to_owned(), message: message.to_owned() }
}

async fn next_event(events: &mut Option<EventReceiver>) -> Option<atoll_wire::shim::ShimEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_outcome(work: &mut Option<Work>) -> Outcome {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
