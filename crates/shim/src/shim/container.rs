//! What a shim knows of one container.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use atoll_sys::process::ProcessIdentity;
use atoll_wire::guest::{Exited, StartFailure};
use atoll_wire::record::{ContainerExit, ContainerRecord, ProcessId};
use atoll_wire::shim::{ContainerPlan, ContainerState};
use rustix::event::PollFlags;

use super::{ContainerSource, Source};
use crate::engine::Begun;
use crate::log::LogWriter;
use crate::peer::Peer;
use crate::stream::{Held, Purpose, Stream};

/// The main process's stream.
pub(super) const MAIN: u32 = 0;

/// How the main process ended, as its clients hear it.
#[derive(Debug, Clone)]
pub(super) enum LastWord {
    Exited(Exited),
    StartFailed(StartFailure),
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) plan: ContainerPlan,
    pub(super) peer: Peer,
    pub(super) log: LogWriter,
    pub(super) streams: BTreeMap<u32, Stream>,
    /// Its first process, once it was begun.
    pub(super) init: Option<ProcessIdentity>,
    /// Readable when that has ended; `None` when nobody needs to know any more.
    pub(super) ended: Option<OwnedFd>,
    pub(super) started_at_unix_micros: Option<i64>,
    pub(super) started: bool,
    /// Its command may be started: nobody holds it, or it was asked for.
    pub(super) released: bool,
    pub(super) exit: Option<ContainerExit>,
    pub(super) last_word: Option<LastWord>,
    /// The exit is on disk and told.
    pub(super) recorded: bool,
    /// Why its guest, which answers, cannot be spoken with.
    pub(super) stranger: Option<String>,
    /// Bit n: a client sent signal n + 1.
    pub(super) signals_sent: u64,
    /// What subscribers were told about dropped output.
    pub(super) told_dropped_bytes: u64,
}

impl Container {
    pub(super) fn new(plan: ContainerPlan, peer: Peer, log: LogWriter) -> Self {
        let told_dropped_bytes = log.dropped_bytes();
        let released = !plan.held;
        Self {
            plan,
            peer,
            log,
            streams: BTreeMap::new(),
            init: None,
            ended: None,
            started_at_unix_micros: None,
            started: false,
            released,
            exit: None,
            last_word: None,
            recorded: false,
            stranger: None,
            signals_sent: 0,
            told_dropped_bytes,
        }
    }

    /// Its first process runs.
    pub(super) fn begun(&mut self, begun: Begun) {
        self.init = Some(begun.init);
        self.ended = Some(begun.ended);
    }

    /// Its command is to start, and has not.
    pub(super) fn is_beginning(&self) -> bool {
        self.released && !self.started && self.exit.is_none()
    }

    /// Prepares the main process's stream, before it is started.
    pub(super) fn add_main_stream(&mut self) {
        let mut main = Stream::new(Purpose::Main);
        if self.plan.await_attach {
            main.held = Some(Held::default());
        }
        self.streams.insert(MAIN, main);
    }

    /// Whether output still waits for its client.
    pub(super) fn holds_output(&self) -> bool {
        self.streams.get(&MAIN).is_some_and(|main| main.held.is_some())
    }

    /// Whether its peer has something to say for which no descriptor will become ready.
    pub(super) fn has_messages(&self) -> bool {
        self.exit.is_none() && self.peer.has_messages()
    }

    pub(super) fn sources(&self, at: usize) -> Vec<ContainerSource<'_>> {
        let mut sources = Vec::new();
        if self.exit.is_some() {
            return sources;
        }
        for (part, fd, interest) in self.peer.sources() {
            sources.push((Source::Peer(at, part), fd, interest));
        }
        if let Some(ended) = &self.ended {
            sources.push((Source::FirstProcess(at), ended.as_fd(), PollFlags::IN));
        }
        sources
    }

    pub(super) fn record(&self) -> Option<ContainerRecord> {
        let init = self.init.as_ref()?;
        Some(ContainerRecord {
            name: self.plan.name.clone(),
            init: process_id(init),
            started_at_unix_micros: self.started_at_unix_micros,
            exit: self.exit.clone(),
            released: self.plan.held && self.released,
        })
    }

    pub(super) fn state(&self) -> ContainerState {
        ContainerState {
            name: self.plan.name.clone(),
            started_at_unix_micros: self.started_at_unix_micros,
            host_pid: self.init.as_ref().map(|init| init.pid),
            exit: self.exit.clone().filter(|_| self.recorded),
            log_dropped_bytes: self.log.dropped_bytes(),
        }
    }

    /// Why nothing can be asked of it now, if so.
    pub(super) fn unavailable(&self) -> Option<String> {
        let name = &self.plan.name;
        if self.exit.is_some() {
            Some(format!("container {name} has ended"))
        } else if !self.peer.is_acknowledged() && self.started {
            Some(format!(
                "the guest of container {name} does not answer the shim that took it over"
            ))
        } else if !self.peer.is_acknowledged() {
            Some(format!("container {name} is still starting"))
        } else if !self.released {
            Some(format!("container {name} waits for those it depends on: nothing runs in it yet"))
        } else {
            self.stranger.clone()
        }
    }
}

/// A process as records name it.
pub(super) fn process_id(identity: &ProcessIdentity) -> ProcessId {
    ProcessId {
        pid: identity.pid,
        start_time_ticks: identity.start_time_ticks,
        boot_id: identity.boot_id.clone(),
    }
}
