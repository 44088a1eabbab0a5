//! An owner's loop: commands, events, outcomes and deadlines come in; the state changes; the next piece of work begins.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::recovery::{self, Found, Plan, Recorded};
use atoll_model::state::{Cause, Event, Phase, SandboxState};
use atoll_model::timeline;
use atoll_runtime::{Adoption, EventReceiver, Runtime, Sandbox};
use atoll_wire::record::EndRecord;
use atoll_wire::shim::SandboxPlan;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::pace::Pace;
use super::persist::{Persist, Urgency};
use super::work::{self, After, Outcome, Work};
use super::{Command, Context, Live, Marks, Subject, status};
use crate::plan::PlannedImage;
use crate::store::{NewEvent, StoreError, Write};

/// How an owner begins.
pub(crate) enum Begin {
    /// The sandbox was just accepted.
    Fresh(Marks),
    /// An earlier server accepted it; the sender is dropped once it is known what became of it.
    Recovered(oneshot::Sender<()>),
}

/// After a stop's grace the shim kills; this much later the owner does.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// Longest wait for the disk when the server ends.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(15);
/// tokio's timers end after about two years: a deadline beyond is looked at again then.
const MOST_SLEEP: Duration = Duration::from_secs(86_400 * 365);

/// What follows when nothing is left on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destroying {
    /// The record goes.
    ForDeletion,
    /// It is begun from the start.
    BeforeBeginning,
    /// The record stays.
    ToKeepRecord,
}

/// One sandbox's owner.
pub(super) struct Owner {
    pub(super) context: Arc<Context>,
    pub(super) subject: Subject,
    pub(super) state: SandboxState,
    persist: Persist,
    commands: mpsc::Receiver<Command>,
    live: watch::Sender<Option<Arc<Live>>>,
    work: Option<Work>,
    destroying: Option<Destroying>,
    events: Option<EventReceiver>,
    plan: Option<Arc<SandboxPlan>>,
    /// While it is being created.
    marks: Option<Marks>,
    pace: Pace,
    expiry: Option<Instant>,
    attached: usize,
    detached_since: Instant,
    /// Deletion: not before this moment, unless it has ended by itself.
    kill_at: Option<Instant>,
    waiters: Vec<oneshot::Sender<Result<(), String>>>,
    recovered: Option<oneshot::Sender<()>>,
    /// Its record in memory says more than the one on disk: how long it took to get there.
    amended: bool,
}

impl Owner {
    pub(super) fn new(
        context: Arc<Context>,
        subject: Subject,
        commands: mpsc::Receiver<Command>,
        live: watch::Sender<Option<Arc<Live>>>,
    ) -> Self {
        let state = status::read(&subject.spec, &subject.record.status);
        let expire_at = subject.record.status.expire_at.as_deref().and_then(crate::time::parse);
        let left = expire_at
            .map(|at| u64::try_from(at.0.saturating_sub(crate::time::now().0)).unwrap_or(0));
        Self {
            context,
            state,
            persist: Persist::new(),
            commands,
            live,
            work: None,
            destroying: None,
            events: None,
            plan: None,
            marks: None,
            pace: Pace::new(LEAST_PAUSE, MOST_PAUSE),
            expiry: left
                .and_then(|micros| Instant::now().checked_add(Duration::from_micros(micros))),
            attached: 0,
            detached_since: Instant::now(),
            kill_at: None,
            waiters: Vec::new(),
            recovered: None,
            amended: false,
            subject,
        }
    }

    /// Runs until the record is gone.
    pub(super) async fn run(mut self, begin: Begin) {
        match begin {
            Begin::Fresh(marks) => {
                self.marks = Some(marks);
                self.work = Some(work::turn(&self.context));
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
            self.flush().await;
        }
        self.context.owners.remove(&self.subject.uid.to_string());
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
            outcome = next_outcome(&mut self.work) => {
                self.work = None;
                return self.take_outcome(outcome).await;
            }
            written = self.persist.done() => if let Some(written) = written {
                self.amended |= self.subject.record.status.timeline != written.status.timeline;
                self.subject.record.status.timeline.clone_from(&written.status.timeline);
            },
            () = tokio::time::sleep_until(wake_at) => {}
        }
        false
    }

    /// What is known now goes to disk before the server ends; what is not is found out again by the next one.
    async fn flush(&mut self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        if self.amended {
            self.persist.note(Urgency::Now);
        }
        while !self.persist.is_settled() {
            self.persist.hurry();
            self.write_if_due();
            if tokio::time::timeout_at(deadline, self.persist.done()).await.is_err() {
                return;
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
        let deadlines = [
            self.expiry,
            self.detach_deadline(),
            self.persist.wake_at(),
            self.kill_at.filter(|_| self.events.is_some()),
        ];
        let most = Instant::now() + MOST_SLEEP;
        deadlines.into_iter().flatten().fold(most, Instant::min)
    }

    /// `None` while somebody is attached, or where it does not matter.
    fn detach_deadline(&self) -> Option<Instant> {
        let seconds = self.subject.spec.detach_ttl_seconds.filter(|_| self.attached == 0)?;
        self.detached_since.checked_add(Duration::from_secs(seconds.into()))
    }

    fn begin_what_is_due(&mut self) {
        let now = Instant::now();
        if self.state.phase != Phase::Deleting {
            if self.expiry.is_some_and(|at| at <= now) {
                self.delete(0, cause("TtlExpired", "its time to live is over"));
            } else if self.detach_deadline().is_some_and(|at| at <= now) {
                self.delete(0, cause("Detached", "no client is attached any more"));
            }
        }
        if self.state.phase == Phase::Deleting {
            self.expiry = None;
            self.attached = usize::MAX;
        }
        self.write_if_due();
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
            self.phase_changed();
        }
    }

    fn phase_changed(&mut self) {
        match self.state.phase {
            Phase::Running => {
                self.tell(false, "Started", "all containers were started".to_owned());
                self.publish_timeline();
            }
            Phase::Succeeded | Phase::Failed => {
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

    fn mark_now(&mut self, phase: timeline::Phase) {
        if let Some(marks) = &mut self.marks {
            marks.end_now(phase);
        }
    }

    /// Nothing runs that could be spoken to.
    pub(super) fn let_go(&mut self) {
        self.events = None;
        self.live.send_replace(None);
    }

    /// Images are needed no longer.
    fn release(&self) {
        let (context, uid) = (Arc::clone(&self.context), self.subject.uid.to_string());
        tokio::spawn(async move {
            if let Err(error) = context.images.release(&uid).await {
                tracing::warn!(%error, uid, "images could not be released; the next start does it");
            }
        });
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

    fn destroy(&mut self, purpose: Destroying) {
        self.destroying = Some(purpose);
        self.work = Some(work::destroy(&self.context, &self.subject));
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Delete { grace_millis, cause, done } => {
                self.waiters.extend(done);
                self.delete(grace_millis, cause);
            }
            Command::Stop { grace_millis, reply } => self.stop(grace_millis, reply),
            Command::Attached => self.attached = self.attached.saturating_add(1),
            Command::Detached => {
                self.attached = self.attached.saturating_sub(1);
                self.detached_since = Instant::now();
            }
        }
    }

    fn delete(&mut self, grace_millis: u64, cause: Cause) {
        if self.state.phase != Phase::Deleting {
            self.tell(
                false,
                "Deleting",
                if cause.message.is_empty() { cause.reason.clone() } else { cause.message.clone() },
            );
        }
        self.apply(Event::Delete(cause), Urgency::Now);
        if self.destroying != Some(Destroying::ForDeletion) {
            // Whatever was under way is given up: a launch that is dropped leaves nothing, and all else is done again.
            self.work = None;
            self.destroying = None;
        }
        let grace = Duration::from_millis(grace_millis);
        let live = self.live.borrow().clone();
        match live {
            Some(live) if grace_millis > 0 && self.events.is_some() => {
                let at = Instant::now() + grace + STOP_MARGIN;
                self.kill_at = Some(self.kill_at.map_or(at, |known| known.min(at)));
                tokio::spawn(async move {
                    if let Err(error) = live.sandbox.stop(grace_millis).await {
                        tracing::debug!(%error, "a stop before a deletion was refused; it is killed");
                    }
                });
            }
            _ => self.kill_at = Some(Instant::now()),
        }
    }

    fn stop(&mut self, grace_millis: u64, reply: oneshot::Sender<Result<(), String>>) {
        let live = self.live.borrow().clone();
        let answer = match (self.state.phase, live) {
            (Phase::Succeeded | Phase::Failed, _) => Ok(()),
            (Phase::Deleting, _) => Err("it is being deleted".to_owned()),
            (_, Some(live)) => {
                tokio::spawn(async move {
                    let stopped = live.sandbox.stop(grace_millis).await;
                    // Whoever asked may be gone.
                    reply.send(stopped.map_err(|error| work::chain(&error))).ok();
                });
                return;
            }
            (Phase::Pending | Phase::Scheduled, None) => {
                self.work = None;
                self.apply(
                    Event::LaunchFailed(cause("Stopped", "it was stopped before it ran")),
                    Urgency::Now,
                );
                self.destroy(Destroying::ToKeepRecord);
                Ok(())
            }
            (Phase::Running | Phase::Unknown, None) => {
                Err("it cannot be reached at the moment; try again, or delete it".to_owned())
            }
        };
        reply.send(answer).ok();
    }

    async fn take_outcome(&mut self, outcome: Outcome) -> bool {
        match outcome {
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
            Outcome::Images(Err(cause)) => self.apply(Event::LaunchFailed(cause), Urgency::Now),
            Outcome::Launched(Ok((sandbox, events))) => {
                self.mark_now(timeline::Phase::Prepare);
                self.follow(sandbox, events);
            }
            Outcome::Launched(Err(cause)) => self.apply(Event::LaunchFailed(cause), Urgency::Now),
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
        let planned = work::make_plan(&self.subject, &self.subject.spec, images);
        match (planned, self.runtime()) {
            (Ok(plan), Some(runtime)) => {
                self.plan = Some(Arc::new(plan.clone()));
                self.work = Some(work::launch(runtime, plan, permit));
            }
            (Err(cause), _) => self.apply(Event::LaunchFailed(cause), Urgency::Now),
            (Ok(_), None) => {
                let message = self.class_missing();
                self.apply(Event::LaunchFailed(cause("ClassMissing", &message)), Urgency::Now);
            }
        }
    }

    fn set_digests(&mut self, digests: impl Iterator<Item = String>) {
        status::show(&self.state, &mut self.subject.record.status);
        for (container, digest) in self.subject.record.status.containers.iter_mut().zip(digests) {
            container.image_digest = Some(digest);
        }
    }

    fn digests(&self) -> Vec<String> {
        let containers = &self.subject.record.status.containers;
        containers.iter().map(|it| it.image_digest.clone().unwrap_or_default()).collect()
    }

    fn follow(&mut self, sandbox: Arc<dyn Sandbox>, events: EventReceiver) {
        self.events = Some(events);
        self.pace = Pace::new(LEAST_PAUSE, MOST_PAUSE);
        if let Some(plan) = self.plan.clone() {
            let digests = self.digests();
            self.live.send_replace(Some(Arc::new(Live { sandbox, plan, digests })));
        }
    }

    async fn take_adoption(&mut self, adopted: Result<Adoption, String>) {
        let found = match adopted {
            Ok(Adoption::Running(sandbox, state, events)) => {
                let containers = status::seen(&state);
                if recovery::plan(self.state.phase, Found::Running(containers.clone()))
                    == Plan::Follow
                {
                    if self.plan.is_none() {
                        self.plan = Some(Arc::new(
                            work::plan_again(&self.context, &self.subject, &self.digests()).await,
                        ));
                    }
                    self.tell(false, "Adopted", "it went on while nobody looked".to_owned());
                    self.follow(sandbox, events);
                    self.apply(Event::Seen { containers, adopted: true }, Urgency::Now);
                    return;
                }
                Found::Running(containers)
            }
            Ok(Adoption::Ended(record)) => Found::Ended(recorded(&record)),
            Ok(Adoption::Gone { reason }) => Found::Gone(reason),
            Ok(Adoption::Quarantined { directory, reason }) => Found::Quarantined(format!(
                "{reason}; its directory was set aside at {}",
                directory.display()
            )),
            Err(message) => Found::Unreachable(message),
        };
        self.carry_out(found);
    }

    fn carry_out(&mut self, found: Found) {
        match recovery::plan(self.state.phase, found) {
            // Running ones were followed already; kept records and deletions need nothing here.
            Plan::Follow | Plan::Keep | Plan::FinishDelete => {}
            Plan::Begin => self.destroy(Destroying::BeforeBeginning),
            Plan::RecordEnd(record) => self.record_end(record),
            Plan::RecordLoss(cause) => {
                if cause.reason == "Quarantined" {
                    self.tell(true, "Quarantined", cause.message.clone());
                }
                self.apply(Event::Lost(cause), Urgency::Now);
            }
            Plan::LookAgain(message) => {
                self.apply(Event::Unreachable(message), Urgency::Now);
                self.work = Some(work::pause(self.pace.pause(), After::Adopt));
            }
            Plan::RemoveRemains => {
                self.tell(
                    true,
                    "Killed",
                    "something of it still ran although it was over".to_owned(),
                );
                self.destroy(Destroying::ToKeepRecord);
            }
        }
    }

    fn record_end(&mut self, record: Recorded) {
        for (container, end, bytes) in record.containers {
            self.apply(Event::LogDropped { container: container.clone(), bytes }, Urgency::Now);
            if let Some(at) = end.finished_at {
                tracing::debug!(container, at = at.0, "it ended while no server ran");
            }
            self.apply(Event::Ended { container, end }, Urgency::Now);
        }
        let left_over = match record.launch_failure {
            Some(message) => {
                Event::LaunchFailed(Cause { reason: "StartFailed".to_owned(), message })
            }
            None => Event::Lost(cause("Lost", "its record does not tell of every container")),
        };
        self.apply(left_over, Urgency::Now);
    }

    async fn take_destroyed(&mut self, result: Result<(), String>) -> bool {
        let Some(purpose) = self.destroying else { return false };
        if let Err(message) = result {
            self.tell(true, "DestroyFailed", message.clone());
            for waiter in self.waiters.drain(..) {
                waiter.send(Err(message.clone())).ok();
            }
            if self.state.cause.as_ref().is_none_or(|cause| cause.message != message) {
                self.state.cause = Some(Cause { reason: "DestroyFailed".to_owned(), message });
                self.persist.note(Urgency::Now);
            }
            self.work = Some(work::pause(self.pace.pause(), After::Destroy));
            return false;
        }
        self.destroying = None;
        match purpose {
            Destroying::ForDeletion => {
                self.forget().await;
                return true;
            }
            Destroying::BeforeBeginning => {
                self.marks = Some(Marks::begin());
                self.work = Some(work::turn(&self.context));
            }
            Destroying::ToKeepRecord => {}
        }
        false
    }

    /// Removes the record; goes on trying while the disk does not take it.
    async fn forget(&mut self) {
        let (name, uid) = (self.subject.name.to_string(), self.subject.uid.to_string());
        loop {
            let why = self.state.cause.as_ref().map_or("", |cause| cause.reason.as_str());
            let event = NewEvent {
                warning: false,
                reason: "Deleted",
                object: format!("sandbox/{name}"),
                message: why.to_owned(),
            };
            let write = Write::Delete { name: name.clone(), uid: uid.clone() };
            match self.context.store.commit(write, vec![event]).await {
                Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Closed) => break,
                Err(_) if self.context.ending.is_cancelled() => break,
                Err(error) => {
                    tracing::error!(%error, name, "a deletion could not be written; it is tried again");
                    tokio::time::sleep(self.pace.pause()).await;
                }
            }
        }
        for waiter in self.waiters.drain(..) {
            waiter.send(Ok(())).ok();
        }
    }
}

fn cause(reason: &str, message: &str) -> Cause {
    Cause { reason: reason.to_owned(), message: message.to_owned() }
}

fn recorded(record: &EndRecord) -> Recorded {
    let dropped = record.log_dropped_bytes.iter().copied().chain(std::iter::repeat(0));
    let containers = record.containers.iter().zip(dropped);
    Recorded {
        containers: containers
            .map(|(exit, bytes)| (exit.container.clone(), status::end_of(exit), bytes))
            .collect(),
        launch_failure: record.launch_failure.clone(),
    }
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
