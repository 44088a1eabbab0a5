//! One sandbox's shim: its state, and the loop in which everything happens.
//!
//! Owns the sandbox's directory (by a lock), its engine, the channels to its guests and the conversations with clients. One thread, no
//! blocking call but those of the engine. Must never end while something of the sandbox runs, and never tell what is not on disk yet.

mod answers;
mod begin;
mod container;
mod ending;
mod needs;
mod requests;
mod takeover;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use atoll_wire::guest::{GuestMessage, HostMessage};
use atoll_wire::shim::{Launch, ShimEvent, SpawnRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::conversation::{Conversation, Role};
use crate::directory::Directory;
use crate::engine::{Engine, EngineError};
use crate::peer::Part;
use crate::spawner::{Given, MakeEngine};
use crate::stream::{ConversationId, TAKEN_WITHIN};
use atoll_sys::clock;
use container::Container;

/// Most connections at a time. One process has 1024 descriptors by default; a server needs one and one per exec.
const MAX_CONVERSATIONS: usize = 512;
/// Bytes that are read at a time: a whole FIFO's worth.
const SCRATCH_BYTES: usize = 64 * 1024;
/// How often the CPU quota is tried to be put in force before the sandbox is ended instead.
const END_BOOST_ATTEMPTS: u32 = 5;
/// Between these.
const END_BOOST_PAUSE: Duration = Duration::from_millis(500);
/// How long output that nobody came for is kept after the end, and answers that nobody takes.
const LINGER: Duration = Duration::from_secs(15);
/// How long connections wait when they cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often, at most, dropped output is told of.
const DROPPED_EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Containers run, or have ended without all of it being on disk and cleaned.
    Running,
    /// Everything is over and told; clients may take what they are owed until then.
    Over { until: Duration },
}

/// The shim.
struct Shim {
    directory: Directory,
    launch: Launch,
    engine: Box<dyn Engine>,
    listener: Option<OwnedFd>,
    containers: Vec<Container>,
    conversations: BTreeMap<ConversationId, Conversation>,
    next_conversation: ConversationId,
    scratch: Vec<u8>,
    phase: Phase,
    adopted: bool,
    stop_asked: bool,
    /// When what has not ended by then is killed.
    kill_at: Option<Duration>,
    /// When the CPU quota comes into force.
    end_boost_at: Option<Duration>,
    /// When a guest must have answered for its sandbox to have begun.
    begun_by: Option<Duration>,
    /// When dropped output is told of next.
    tell_dropped_at: Option<Duration>,
    /// When a record or a removal that failed is tried again.
    retry_at: Option<Duration>,
    /// When subscribers of a takeover hear the state, or that a guest is silent.
    tell_state_at: Option<Duration>,
    /// They have heard it.
    state_told: bool,
    /// When a client that takes nothing is left behind.
    stuck_at: Option<Duration>,
    /// When connections are accepted again that nobody could take for want of descriptors.
    accept_at: Option<Duration>,
    /// Why it could not be begun.
    launch_failure: Option<String>,
    /// How often the CPU quota could not be put in force.
    end_boost_failures: u32,
    /// Why it was ended although nobody asked for that: what it was promised, or the host, could not be kept.
    host_failure: Option<String>,
}

/// Something to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener,
    Conversation(ConversationId),
    Peer(usize, Part),
    FirstProcess(usize),
}

/// Runs a sandbox from its beginning, or from where another shim left it, to its end.
pub(crate) fn main(request: &SpawnRequest, given: Given, make_engine: MakeEngine) -> i32 {
    begin::detach();
    match begin::begin(request, given, make_engine) {
        Some(mut shim) => {
            shim.run();
            0
        }
        None => 1,
    }
}

impl Shim {
    fn run(&mut self) {
        while !self.is_done() {
            for (source, ready) in self.wait() {
                self.handle(source, ready);
            }
            self.act_on_time();
            loop {
                self.fulfil_needs();
                self.move_streams();
                if !self.containers.iter().any(Container::has_messages) {
                    break;
                }
            }
            self.sweep();
        }
    }

    fn is_done(&self) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Over { until } => {
                let mut waiting = self.conversations.values().filter(|one| one.waiting_bytes() > 0);
                // Who takes output may be slow (a pager, a full pipe): it ends when it hangs up, not at a moment of ours.
                if waiting.any(|one| matches!(one.role, Role::Stream { .. })) {
                    return false;
                }
                let owed = self.containers.iter().any(Container::holds_output)
                    || self.conversations.values().any(|one| one.waiting_bytes() > 0);
                !owed || clock::monotonic() >= until
            }
        }
    }

    /// Waits until something is ready or a deadline has come.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        {
            let mut add = |source: Source, fd, interest: PollFlags| {
                sources.push(source);
                fds.push(PollFd::from_borrowed_fd(fd, interest));
            };
            if let Some(listener) = self.listener.as_ref().filter(|_| self.accept_at.is_none()) {
                add(Source::Listener, listener.as_fd(), PollFlags::IN);
            }
            for (&id, one) in &self.conversations {
                let congested = match one.role {
                    Role::Stream { container, .. } => {
                        self.containers[container].peer.is_congested()
                    }
                    _ => false,
                };
                add(Source::Conversation(id), one.fd(), one.interest(congested));
            }
            for (at, container) in self.containers.iter().enumerate() {
                for (source, fd, interest) in container.sources(at) {
                    add(source, fd, interest);
                }
            }
        }
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_sub(clock::monotonic());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // Interrupted: deadlines are looked at and everything is waited for again.
            return Vec::new();
        }
        let ready = fds.iter().map(PollFd::revents);
        sources.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty()).collect()
    }

    fn next_deadline(&self) -> Option<Duration> {
        let over = match self.phase {
            // One that has passed is waited for no longer, only who still takes output.
            Phase::Over { until } if until > clock::monotonic() => Some(until),
            Phase::Over { .. } | Phase::Running => None,
        };
        [
            over,
            self.kill_at,
            self.end_boost_at,
            self.begun_by,
            self.tell_dropped_at,
            self.retry_at,
            self.tell_state_at,
            self.stuck_at,
            self.accept_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn handle(&mut self, source: Source, ready: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Conversation(id) => self.conversation_ready(id, ready),
            Source::Peer(at, part) => {
                self.containers[at].peer.ready(part, &mut self.scratch);
                self.take_messages(at);
            }
            Source::FirstProcess(at) => self.first_process_gone(at),
        }
    }

    fn act_on_time(&mut self) {
        let now = clock::monotonic();
        let due = |deadline: &mut Option<Duration>| deadline.take_if(|at| *at <= now).is_some();
        if due(&mut self.end_boost_at) {
            // Tried again, or told as the reason of the end.
            let _ = self.end_boost();
        }
        if due(&mut self.kill_at) {
            self.kill_all();
        }
        if due(&mut self.begun_by) {
            self.give_up_beginning();
        }
        if due(&mut self.tell_dropped_at) {
            self.tell_dropped();
        }
        if due(&mut self.tell_state_at) {
            self.tell_state_or_silence();
        }
        let _ = due(&mut self.accept_at);
        if due(&mut self.retry_at) {
            self.settle();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let socket = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(_) => {
                self.accept_at = Some(clock::monotonic() + ACCEPT_PAUSE);
                return;
            }
        };
        if self.conversations.len() >= MAX_CONVERSATIONS {
            // Who connected longest ago and never asked for anything lasting makes room.
            let idle = self.conversations.iter().find(|(_, one)| one.role == Role::Requests);
            let Some(id) = idle.map(|(&id, _)| id) else { return };
            self.end_conversation(id);
        }
        self.add_conversation(socket, Role::Requests);
    }

    fn add_conversation(&mut self, socket: OwnedFd, role: Role) {
        if let Ok(conversation) = Conversation::new(socket, role) {
            self.conversations.insert(self.next_conversation, conversation);
            self.next_conversation += 1;
        }
    }

    fn conversation_ready(&mut self, id: ConversationId, ready: PollFlags) {
        let Some(one) = self.conversations.get_mut(&id) else { return };
        if ready.contains(PollFlags::OUT) {
            one.flush();
        }
        if ready.contains(PollFlags::IN) {
            if !one.read(&mut self.scratch) {
                return self.end_conversation(id);
            }
            self.serve(id);
        } else if ready.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            self.end_conversation(id);
        }
    }

    /// Who looks on at a main process and takes nothing is told where the rest is, and holds nobody up any more.
    fn leave_behind(&mut self) {
        let now = clock::monotonic();
        let conversations = &self.conversations;
        let waiting = |id| conversations.get(&id).map_or(0, Conversation::waiting_bytes);
        let mut stuck = Vec::new();
        self.stuck_at = None;
        for container in self.containers.iter_mut().filter(|one| one.exit.is_none()) {
            let Some(main) = container.streams.get_mut(&container::MAIN) else { continue };
            let (dropped, next) = main.drop_stuck(now, waiting);
            stuck.extend(dropped);
            self.stuck_at = self.stuck_at.into_iter().chain(next).min();
        }
        let why = format!(
            "nothing of the output was taken for {} s: the command goes on without this client, its log has the rest",
            TAKEN_WITHIN.as_secs()
        );
        for id in stuck {
            let Ok(frame) = GuestMessage::Refused(why.clone()).into_frame(0) else { continue };
            if let Some(one) = self.conversations.get_mut(&id) {
                one.send(&frame);
                one.finished = true;
            }
        }
    }

    /// Gives guests the credit that has become due, and lets input go on that had no room.
    fn move_streams(&mut self) {
        self.leave_behind();
        let conversations = &self.conversations;
        let waiting = |id| conversations.get(&id).map_or(0, Conversation::waiting_bytes);
        for container in &mut self.containers {
            for (&number, stream) in &mut container.streams {
                let due = stream.credit_due(waiting);
                if due > 0 && container.exit.is_none() {
                    let _ = container.peer.send(number, HostMessage::Credit(due));
                }
            }
        }
        let parked: Vec<_> = self
            .conversations
            .iter()
            .filter(|(_, one)| one.parked.is_some())
            .map(|(&id, _)| id)
            .collect();
        for id in parked {
            self.serve(id);
        }
    }

    /// Ends conversations that are over.
    fn sweep(&mut self) {
        let over: Vec<_> =
            self.conversations.iter().filter(|(_, one)| one.is_over()).map(|(&id, _)| id).collect();
        for id in over {
            self.end_conversation(id);
        }
    }

    /// Tells every subscriber. After a takeover the state comes first: what happens before it is known is part of it.
    fn tell(&mut self, event: &ShimEvent) {
        if self.adopted && !self.state_told {
            match event {
                ShimEvent::Spawned { .. } => {}
                ShimEvent::Ended | ShimEvent::LaunchFailed { .. } => self.tell_state(),
                _ => return,
            }
        }
        for one in self.conversations.values_mut() {
            if one.role == Role::Subscriber {
                one.event(event);
            }
        }
    }

    /// Puts the CPU quota in force. A quota that cannot be set would let one sandbox take more than its share: it is tried again for a
    /// while, and what cannot be limited then does not run, and says so.
    fn end_boost(&mut self) -> Result<(), EngineError> {
        self.end_boost_at = None;
        let Err(error) = self.engine.end_boost() else {
            self.end_boost_failures = 0;
            return Ok(());
        };
        self.end_boost_failures += 1;
        if self.end_boost_failures < END_BOOST_ATTEMPTS {
            self.end_boost_at = Some(clock::monotonic() + END_BOOST_PAUSE);
        } else if !self.stop_asked {
            self.host_failure = Some(format!("it could not be limited after its start: {error}"));
            self.kill_all();
        }
        Err(error)
    }
}

/// What a container adds to the sources of the loop.
type ContainerSource<'a> = (Source, BorrowedFd<'a>, PollFlags);
