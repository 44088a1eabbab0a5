//! What guests say.

use atoll_wire::frame::Frame;
use atoll_wire::guest::{GuestMessage, HostMessage, ProcessInfo, Started};
use atoll_wire::shim::{ShimEvent, ShimReply};

use super::Shim;
use super::container::MAIN;
use crate::conversation::Role;
use crate::directory::Durability;
use crate::end_reason::Seen;
use crate::log::Output;
use crate::stream::{ConversationId, Purpose};
use atoll_sys::clock;

/// Most bytes of a list of processes in a reply, which must fit into a frame.
const MAX_LIST_BYTES: usize = 60 * 1024;

impl Shim {
    /// Acts on every whole message that was read.
    pub(super) fn take_messages(&mut self, at: usize) {
        while self.containers[at].exit.is_none() {
            let Some((stream, message)) = self.containers[at].peer.next_message() else { break };
            self.take_message(at, stream, message);
        }
        self.note_dropped(at);
    }

    fn take_message(&mut self, at: usize, stream: u32, message: GuestMessage) {
        match message {
            GuestMessage::HelloAck(ack) => self.acknowledged(at, &ack),
            GuestMessage::Stdout { offset, data } => {
                self.output(at, stream, Output::Stdout, offset, data)
            }
            GuestMessage::Stderr { offset, data } => {
                self.output(at, stream, Output::Stderr, offset, data)
            }
            GuestMessage::Credit(bytes) => self.input_credit(at, stream, bytes),
            message if stream == MAIN => self.main_message(at, message),
            message => self.client_message(at, stream, message),
        }
    }

    fn main_message(&mut self, at: usize, message: GuestMessage) {
        match message {
            GuestMessage::Started(started) => self.main_started(at, started),
            GuestMessage::StartFailed(failure) => {
                self.end_container(at, Seen::StartFailed(failure));
            }
            GuestMessage::Exited(exited) => self.end_container(at, Seen::Command(exited)),
            GuestMessage::Refused(why) if !self.containers[at].started => {
                self.fail_launch(format!("the guest refused to start: {why}"));
            }
            _ => {}
        }
    }

    /// A container's command has been exec'ed.
    pub(super) fn main_started(&mut self, at: usize, _started: Started) {
        let container = &mut self.containers[at];
        if container.started {
            return;
        }
        container.started = true;
        let at_unix_micros = clock::unix_micros();
        container.started_at_unix_micros.get_or_insert(at_unix_micros);
        let event = ShimEvent::Started {
            container: container.plan.name.clone(),
            host_pid: container.init.as_ref().map_or(0, |init| init.pid),
            at_monotonic_micros: clock::monotonic_micros(),
            at_unix_micros,
        };
        self.tell(&event);
        self.note_beginnings();
        // The time is a nicety for who takes over: a full disk must not end the sandbox for it.
        let _ = self.write_shim_record(Durability::Process);
    }

    fn client_message(&mut self, at: usize, number: u32, message: GuestMessage) {
        let Some(stream) = self.containers[at].streams.get(&number) else { return };
        match (stream.purpose, message) {
            (Purpose::Question, GuestMessage::Processes(processes)) => {
                let takers: Vec<_> = stream.takers.clone();
                let processes = bounded(processes);
                for taker in takers {
                    if let Some(one) = self.conversations.get_mut(&taker.conversation) {
                        one.reply(&ShimReply::Processes { processes: processes.clone() });
                    }
                }
                self.containers[at].streams.remove(&number);
            }
            (Purpose::Process, message @ GuestMessage::Started(_)) => {
                self.forward(at, number, &message);
            }
            (Purpose::Process, message @ GuestMessage::Exited(_)) => {
                let _ = self.containers[at].peer.send(number, HostMessage::ExitAck);
                self.close_stream(at, number, message);
            }
            (
                _,
                message @ (GuestMessage::StartFailed(_)
                | GuestMessage::TransferDone(_)
                | GuestMessage::Refused(_)),
            ) => self.close_stream(at, number, message),
            _ => {}
        }
    }

    fn output(&mut self, at: usize, number: u32, output: Output, offset: u64, data: Vec<u8>) {
        let container = &mut self.containers[at];
        let Some(stream) = container.streams.get_mut(&number) else {
            // Before a guest that is taken over has said what runs, only the main process's output can be placed.
            if number == MAIN && self.adopted && !container.peer.is_acknowledged() {
                container.log.append_known(output, offset, &data);
            }
            return;
        };
        if !stream.receive(data.len()) {
            // A guest that breaks its windows is not atoll's guest any more.
            let _ = self.engine.kill(at);
            return;
        }
        let held = stream.held.is_some();
        if number == MAIN {
            container.log.append(output, offset, &data);
        }
        let message = match output {
            Output::Stdout => GuestMessage::Stdout { offset, data },
            Output::Stderr => GuestMessage::Stderr { offset, data },
        };
        if let Some(held) = container.streams.get_mut(&number).and_then(|one| one.held.as_mut()) {
            held.messages.push(message);
        } else if !held {
            self.forward(at, number, &message);
        }
    }

    /// Gives a message of a stream to all who take it.
    pub(super) fn forward(&mut self, at: usize, number: u32, message: &GuestMessage) {
        let Some(stream) = self.containers[at].streams.get(&number) else { return };
        if stream.takers.is_empty() {
            return;
        }
        let Ok(frame) = message.clone().into_frame(0) else { return };
        for taker in &stream.takers {
            if let Some(one) = self.conversations.get_mut(&taker.conversation) {
                one.send(&frame);
            }
        }
    }

    /// The last message of a stream: its clients' conversations end with it.
    pub(super) fn close_stream(&mut self, at: usize, number: u32, message: GuestMessage) {
        let question = self.containers[at]
            .streams
            .get(&number)
            .is_some_and(|stream| stream.purpose == Purpose::Question);
        if !question {
            self.forward(at, number, &message);
        }
        let Some(stream) = self.containers[at].streams.remove(&number) else { return };
        for taker in stream.takers {
            let Some(one) = self.conversations.get_mut(&taker.conversation) else { continue };
            if question {
                if let GuestMessage::Refused(why) = &message {
                    one.refuse(why.clone());
                }
            } else {
                one.finished = true;
            }
        }
    }

    fn input_credit(&mut self, at: usize, number: u32, bytes: u32) {
        let Some(stream) = self.containers[at].streams.get_mut(&number) else { return };
        for (id, part) in stream.guest_credit(bytes) {
            self.credit_client(id, part);
        }
    }

    /// Tells a client that it may send so much more input.
    pub(super) fn credit_client(&mut self, id: ConversationId, bytes: u32) {
        if let Some(one) = self.conversations.get_mut(&id)
            && matches!(one.role, Role::Stream { .. })
            && let Ok(frame) = GuestMessage::Credit(bytes).into_frame(0)
        {
            one.send(&Frame { stream: 0, ..frame });
        }
    }
}

/// As much of the list as fits into a reply.
fn bounded(mut processes: Vec<ProcessInfo>) -> Vec<ProcessInfo> {
    while serde_json::to_vec(&processes).map_or(0, |json| json.len()) > MAX_LIST_BYTES {
        processes.truncate(processes.len() / 2);
    }
    processes
}
