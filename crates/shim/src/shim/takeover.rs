//! Taking over a sandbox whose shim was killed.
//!
//! What the earlier shim wrote down may be damaged or missing: then less is known, and what is not known is reported as unknown. What the
//! guests still know (they keep an exit until it is acknowledged) is asked of them.

use std::time::Duration;

use atoll_sys::process::ProcessIdentity;
use atoll_wire::guest::{HelloAck, HostMessage, PROTOCOL_VERSION, Started};
use atoll_wire::record::{ContainerRecord, EndRecord, ShimRecord};
use atoll_wire::shim::Init;

use super::Shim;
use super::container::MAIN;
use crate::conversation::Role;
use crate::directory::{DirectoryError, Durability};
use crate::end_reason::Seen;
use crate::log::Output;
use crate::peer::Peer;
use crate::stream::{Purpose, Stream};
use atoll_sys::clock;

/// How long a takeover waits for guests to answer before it says that it does not know their state. They answer in milliseconds: one that
/// does not is stopped, or shares its CPU with thousands.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most characters shown of what a guest says its build is.
const BUILD_CHARS: usize = 40;

impl Shim {
    /// Finds out what still runs and goes on with it.
    ///
    /// # Errors
    /// Why it cannot be taken over. Nothing was ended: what runs may be healthy, and whoever asked decides about it.
    pub(super) fn take_over(&mut self) -> Result<(), String> {
        let said = |error: DirectoryError| error.to_string();
        if let Ok(Some(end)) = self.directory.read::<EndRecord>("end.json") {
            self.take_over_end(end);
            return Ok(());
        }
        let record = self.directory.read::<ShimRecord>("shim.json").map_err(said)?;
        self.open_files(true).map_err(said)?;
        let Some(record) = record else {
            // It died before anything of the user ran: adopt() finds what is there to be removed.
            let _ = self.engine.adopt(&empty_record());
            self.fail_launch("its shim ended while the sandbox was starting".into());
            return Ok(());
        };
        let begun = self.engine.adopt(&record).map_err(|error| error.to_string())?;
        let boost = self.launch.plan.boost_millis;
        self.end_boost_at = (boost > 0).then(clock::monotonic);
        self.tell_state_at = Some(clock::monotonic() + STATE_TIMEOUT);
        let mut gone = Vec::new();
        for (at, begun) in begun.into_iter().enumerate().take(self.containers.len()) {
            let container = &mut self.containers[at];
            let name = &container.plan.name;
            if let Some(known) = record.containers.iter().find(|one| one.name == *name) {
                container.started_at_unix_micros = known.started_at_unix_micros;
                container.started = known.started_at_unix_micros.is_some();
                container.released |= known.released;
                container.init = Some(identity(known));
                if let Some(exit) = &known.exit {
                    container.exit = Some(exit.clone());
                    container.recorded = true;
                    continue;
                }
            }
            match begun {
                Some(begun) => container.begun(begun),
                None => gone.push(at),
            }
            if container.plan.init == Init::Image {
                self.resume_image(at);
            }
        }
        // What can be asked is asked in the loop; what cannot is over.
        let _ = self.write_shim_record(Durability::Process);
        for at in gone {
            self.read_rest(at);
            self.end_container(at, Seen::Nobody);
        }
        self.settle();
        self.tell_state_when_known();
        Ok(())
    }

    /// Everything was over already; what the earlier shim did not get to remove is removed.
    fn take_over_end(&mut self, end: EndRecord) {
        let _ = self.open_files(true);
        let record = self.directory.read::<ShimRecord>("shim.json").ok().flatten();
        let _ = self.engine.adopt(&record.unwrap_or_else(empty_record));
        for container in &mut self.containers {
            container.exit =
                end.containers.iter().find(|one| one.container == container.plan.name).cloned();
            container.recorded = true;
        }
        self.launch_failure = end.launch_failure;
        self.tell_state();
        self.settle();
    }

    /// Output that a guest wrote before it died without a shim: what of it cannot be placed with certainty is not used.
    fn read_rest(&mut self, at: usize) {
        while self.containers[at].peer.read_rest(&mut self.scratch) {
            self.take_messages(at);
        }
    }

    /// A guest has answered.
    pub(super) fn acknowledged(&mut self, at: usize, ack: &HelloAck) {
        if ack.version != PROTOCOL_VERSION {
            let build: String =
                ack.build.chars().filter(|c| !c.is_control()).take(BUILD_CHARS).collect();
            let message = format!(
                "the guest of atoll {build} speaks none of the versions of its protocol that this shim knows ({PROTOCOL_VERSION})"
            );
            if self.adopted {
                // It runs, and cannot be spoken with: it is left alone, who asks something of it is told, and its end will be seen.
                self.containers[at].stranger = Some(message);
                return self.tell_state_when_known();
            }
            return self.fail_launch(message);
        }
        if self.adopted {
            self.resume(at, ack);
            self.tell_state_when_known();
        }
    }

    /// Goes on from what a guest says about its streams.
    fn resume(&mut self, at: usize, ack: &HelloAck) {
        if !ack.booted || !ack.streams.iter().any(|stream| stream.stream == MAIN) {
            return self.finish_beginning(at, ack.booted);
        }
        let container = &mut self.containers[at];
        let mut exited = None;
        let mut started = None;
        for state in &ack.streams {
            if state.stream == MAIN {
                for (output, sent) in [
                    (Output::Stdout, state.stdout_sent_bytes),
                    (Output::Stderr, state.stderr_sent_bytes),
                ] {
                    let lost = sent.saturating_sub(container.log.taken_bytes(output));
                    container.log.lose(output, lost);
                }
                container.log.finish();
                container.streams.insert(MAIN, Stream::taken_over(Purpose::Main));
                exited = state.exited;
                started = state.pid.map(|pid| Started { pid });
            } else if state.exited.is_some() {
                let _ = container.peer.send(state.stream, HostMessage::ExitAck);
            } else {
                container.streams.insert(state.stream, Stream::taken_over(Purpose::Process));
                let _ = container.peer.send(state.stream, HostMessage::Detach);
            }
        }
        if let Some(started) = started {
            self.main_started(at, started);
        }
        if let Some(exited) = exited {
            self.end_container(at, Seen::Command(exited));
        }
    }

    /// What its process wrote and nobody read is still in its FIFOs, and goes on in the log where that ends.
    fn resume_image(&mut self, at: usize) {
        let container = &mut self.containers[at];
        let [stdout, stderr] =
            [Output::Stdout, Output::Stderr].map(|one| container.log.taken_bytes(one));
        if let Peer::Outside(outside) = &mut container.peer {
            outside.go_on_from(stdout, stderr);
        }
        container.streams.insert(MAIN, Stream::new(Purpose::Main));
        let pid = container.init.as_ref().map_or(0, |init| init.pid);
        self.main_started(at, Started { pid });
    }

    /// The earlier shim died between the start of the guest and the start of the command.
    fn finish_beginning(&mut self, at: usize, booted: bool) {
        if !booted {
            match self.engine.boot(at) {
                Ok(boot) => {
                    let _ = self.containers[at].peer.send(MAIN, HostMessage::Boot(boot));
                }
                Err(error) => return self.fail_launch(error.to_string()),
            }
        }
        if !self.containers[at].released {
            return;
        }
        if let Err(error) = self.start_command(at) {
            self.fail_launch(error);
        }
    }

    /// Tells subscribers of a takeover the state as soon as every guest has answered or ended.
    fn tell_state_when_known(&mut self) {
        if self.silence().is_none() {
            self.tell_state();
        }
    }

    /// Why the state is not known after a takeover, if so: a guest has neither answered nor ended.
    pub(super) fn silence(&self) -> Option<String> {
        let silent = self
            .containers
            .iter()
            .find(|one| one.exit.is_none() && !one.peer.is_acknowledged())
            .filter(|_| self.adopted && !self.state_told)?;
        Some(format!(
            "the guest of container {} does not answer the shim that took it over: whether its command runs is not known",
            silent.plan.name
        ))
    }

    /// The guests have had their time. Nothing is guessed for one that is silent: who waits hears so and may ask again.
    pub(super) fn tell_state_or_silence(&mut self) {
        let Some(why) = self.silence() else { return self.tell_state() };
        for one in self.conversations.values_mut().filter(|one| one.role == Role::Subscriber) {
            one.refuse(why.clone());
            one.finished = true;
        }
    }

    /// Tells subscribers the state, once.
    pub(super) fn tell_state(&mut self) {
        if !self.adopted || self.state_told {
            return;
        }
        self.state_told = true;
        self.tell_state_at = None;
        let state = self.state_reply();
        for one in self.conversations.values_mut() {
            if one.role == Role::Subscriber {
                one.reply(&state);
            }
        }
    }
}

fn identity(record: &ContainerRecord) -> ProcessIdentity {
    ProcessIdentity {
        pid: record.init.pid,
        start_time_ticks: record.init.start_time_ticks,
        boot_id: record.init.boot_id.clone(),
    }
}

fn empty_record() -> ShimRecord {
    ShimRecord {
        version: atoll_wire::record::RECORD_VERSION,
        shim: atoll_wire::record::ProcessId { pid: 0, start_time_ticks: 0, boot_id: String::new() },
        containers: Vec::new(),
    }
}
