//! Ends: of a container, of the sandbox. The order is the point: on disk first, then told, then acknowledged, killed, removed.

use std::time::Duration;

use atoll_sys::process::Exit;
use atoll_wire::guest::{Exited, GuestMessage, HostMessage, SignalRequest, TransferOutcome};
use atoll_wire::record::{EndRecord, RECORD_VERSION};
use atoll_wire::shim::ShimEvent;

use super::container::{Container, LastWord, MAIN};
use super::{DROPPED_EVENT_INTERVAL, Phase, Shim};
use crate::directory::Durability;
use crate::end_reason::{Observation, Seen, decide};
use crate::peer::Peer;
use crate::stream::Purpose;
use atoll_sys::clock;

/// How soon what failed (a full disk, a busy mount) is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// SOURCE: signal(7).
const SIGKILL: i32 = 9;

impl Shim {
    /// The first process of a container is gone: what it said before may still be in its FIFO.
    pub(super) fn first_process_gone(&mut self, at: usize) {
        if matches!(self.containers[at].peer, Peer::Outside(_)) {
            return self.image_gone(at);
        }
        while self.containers[at].exit.is_none()
            && self.containers[at].peer.read_rest(&mut self.scratch)
        {
            self.take_messages(at);
        }
        // A guest that never answered this shim may have ended before it came, and told somebody who is gone.
        let answered = !self.adopted || self.containers[at].peer.is_acknowledged();
        let seen = if answered { Seen::FirstProcessGone } else { Seen::Nobody };
        self.end_container(at, seen);
    }

    /// A container has ended, or its main process has, which is the same. Everything else in it goes with it.
    pub(super) fn end_container(&mut self, at: usize, seen: Seen) {
        if self.containers[at].exit.is_some() {
            return;
        }
        let evidence = self.engine.evidence(at);
        let container = &mut self.containers[at];
        container.log.finish();
        container.ended = None;
        container.last_word = match &seen {
            Seen::Command(exited) => Some(LastWord::Exited(*exited)),
            Seen::StartFailed(failure) => Some(LastWord::StartFailed(failure.clone())),
            Seen::FirstProcessGone => Some(LastWord::Exited(killed(evidence.init_exit))),
            Seen::Nobody => None,
        };
        let observation = Observation {
            seen,
            evidence,
            stop_asked: self.stop_asked,
            host_failure: self.host_failure.clone(),
            signals_sent: container.signals_sent,
            last_words: container.peer.last_words(&mut self.scratch),
        };
        container.exit = Some(decide(&container.plan.name, &observation, clock::unix_micros()));
        self.settle();
    }

    /// Brings to disk, tells and cleans whatever is due; what fails is tried again later.
    pub(super) fn settle(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let over = self.launch_failure.is_some()
            || self.containers.iter().all(|container| container.exit.is_some());
        let settled = match &self.launch_failure {
            Some(message) => self.settle_failure(&message.clone()),
            None => self.settle_exits(over) && (!over || self.settle_end()),
        };
        if !settled {
            self.retry_at = Some(clock::monotonic() + RETRY);
        } else if over {
            self.be_over();
        }
    }

    fn settle_failure(&mut self, message: &str) -> bool {
        self.end_other_streams();
        if self.engine.remove().is_err() {
            return false;
        }
        if self.write_end(Some(message.into())).is_err() {
            return false;
        }
        self.tell(&ShimEvent::LaunchFailed { message: message.into() });
        true
    }

    fn settle_exits(&mut self, over: bool) -> bool {
        let due: Vec<usize> = (0..self.containers.len())
            .filter(|&at| self.containers[at].exit.is_some() && !self.containers[at].recorded)
            .collect();
        if due.is_empty() {
            return true;
        }
        let written =
            if over { self.write_end(None) } else { self.write_shim_record(Durability::Disk) };
        if written.is_err() {
            return false;
        }
        for at in due {
            self.tell_dropped();
            self.containers[at].recorded = true;
            if let Some(exit) = self.containers[at].exit.clone() {
                self.tell(&ShimEvent::Exited { exit });
            }
            self.say_last_word(at);
            let container = &mut self.containers[at];
            let _ = container.peer.send(MAIN, HostMessage::ExitAck);
            // What cannot be killed now is killed when the sandbox is removed.
            let _ = self.engine.kill(at);
        }
        true
    }

    fn settle_end(&mut self) -> bool {
        if self.engine.remove().is_err() {
            return false;
        }
        self.tell(&ShimEvent::Ended);
        true
    }

    fn write_end(
        &self,
        launch_failure: Option<String>,
    ) -> Result<(), crate::directory::DirectoryError> {
        let ended: Vec<&Container> =
            self.containers.iter().filter(|container| container.exit.is_some()).collect();
        let record = EndRecord {
            version: RECORD_VERSION,
            ended_at_unix_micros: clock::unix_micros(),
            containers: ended.iter().filter_map(|container| container.exit.clone()).collect(),
            launch_failure,
            log_dropped_bytes: ended
                .iter()
                .map(|container| container.log.dropped_bytes())
                .collect(),
        };
        self.directory.write("end.json", &record, Durability::Disk)
    }

    /// Clients of a container's streams hear the end: of the main process as it was, of others by the kill that follows.
    fn say_last_word(&mut self, at: usize) {
        let last_word = self.containers[at].last_word.clone();
        let streams: Vec<u32> = self.containers[at].streams.keys().copied().collect();
        for number in streams {
            let Some(stream) = self.containers[at].streams.get(&number) else { continue };
            if stream.held.is_some() {
                continue;
            }
            let message = match (stream.purpose, &last_word) {
                (Purpose::Main, Some(LastWord::Exited(exited))) => GuestMessage::Exited(*exited),
                (Purpose::Main, Some(LastWord::StartFailed(failure))) => {
                    GuestMessage::StartFailed(failure.clone())
                }
                (Purpose::Transfer, _) => GuestMessage::TransferDone(TransferOutcome {
                    error: Some("the container has ended".into()),
                }),
                (Purpose::Question, _) => GuestMessage::Refused("the container has ended".into()),
                (Purpose::Process | Purpose::Main, _) => GuestMessage::Exited(killed(None)),
            };
            self.close_stream(at, number, message);
        }
    }

    fn end_other_streams(&mut self) {
        for at in 0..self.containers.len() {
            self.say_last_word(at);
        }
    }

    /// Asks everything to end, and sees to it that it does.
    pub(super) fn stop(&mut self, grace_millis: u64) {
        self.stop_asked = true;
        if grace_millis == 0 {
            return self.kill_all();
        }
        for at in 0..self.containers.len() {
            let signal = self.containers[at].plan.stop_signal;
            if !self.containers[at].released && self.containers[at].exit.is_none() {
                // Nothing of the user's runs in it. What cannot be killed now is killed when the others had their time.
                let _ = self.engine.kill(at);
            } else if self.containers[at].exit.is_none() {
                let request = SignalRequest { signal, everyone: false };
                let _ = self.containers[at].peer.send(MAIN, HostMessage::Signal(request));
            }
        }
        let kill_at =
            clock::monotonic() + Duration::from_millis(grace_millis.min(MAX_GRACE_MILLIS));
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
    }

    /// Kills every container that has not ended. Their ends are then seen like any other.
    pub(super) fn kill_all(&mut self) {
        self.stop_asked = true;
        self.kill_at = None;
        for at in 0..self.containers.len() {
            if self.containers[at].exit.is_none() && self.engine.kill(at).is_err() {
                self.kill_at = Some(clock::monotonic() + RETRY);
            }
        }
    }

    /// Tells of dropped output, at most once a second and container.
    pub(super) fn tell_dropped(&mut self) {
        self.tell_dropped_at = None;
        let mut events = Vec::new();
        for container in &mut self.containers {
            let dropped_bytes = container.log.dropped_bytes();
            if dropped_bytes != container.told_dropped_bytes {
                container.told_dropped_bytes = dropped_bytes;
                let container = container.plan.name.clone();
                events.push(ShimEvent::LogDropped { container, dropped_bytes });
            }
        }
        for event in events {
            self.tell(&event);
        }
    }

    /// Remembers to tell of dropped output.
    pub(super) fn note_dropped(&mut self, at: usize) {
        let container = &self.containers[at];
        if container.log.dropped_bytes() != container.told_dropped_bytes {
            self.tell_dropped_at.get_or_insert_with(|| clock::monotonic() + DROPPED_EVENT_INTERVAL);
        }
    }
}

/// A year: more is no grace, and would overflow clocks.
const MAX_GRACE_MILLIS: u64 = 365 * 24 * 3600 * 1000;

/// How a process ended that was killed with its container.
fn killed(init_exit: Option<Exit>) -> Exited {
    let signal = match init_exit {
        Some(Exit::Signal(signal)) => signal,
        _ => SIGKILL,
    };
    Exited { code: None, signal: Some(signal), pids_limit: false }
}
