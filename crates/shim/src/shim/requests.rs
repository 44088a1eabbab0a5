//! What clients ask.

use atoll_wire::frame::Frame;
use atoll_wire::guest::{HostMessage, MAX_STREAMS, SignalRequest};
use atoll_wire::shim::{REQUEST_KIND, ShimEvent, ShimReply, ShimRequest};

use super::container::{LastWord, MAIN};
use super::{Phase, Shim};
use crate::conversation::Role;
use crate::stream::{ConversationId, Purpose, Stream};

impl Shim {
    /// Acts on every whole frame that a client has sent.
    pub(super) fn serve(&mut self, id: ConversationId) {
        while let Some(one) = self.conversations.get_mut(&id) {
            if one.finished {
                return;
            }
            let Some(frame) = one.next_frame() else { return };
            let served = match one.role {
                Role::Stream { container, stream } => {
                    self.serve_stream(id, container, stream, frame)
                }
                Role::Requests | Role::Subscriber => self.serve_request(id, &frame),
            };
            match served {
                Served::Done => {}
                Served::Parked => return,
                Served::Rubbish => return self.end_conversation(id),
            }
        }
    }

    fn serve_request(&mut self, id: ConversationId, frame: &Frame) -> Served {
        if frame.kind != REQUEST_KIND {
            return Served::Rubbish;
        }
        match serde_json::from_slice(&frame.payload) {
            Ok(request) => self.act(id, request),
            // A newer server may ask what this shim does not know.
            Err(error) => {
                self.reply(id, &refused(format!("this shim does not know the request: {error}")));
            }
        }
        Served::Done
    }

    fn act(&mut self, id: ConversationId, request: ShimRequest) {
        match request {
            ShimRequest::Subscribe => self.subscribe(id),
            ShimRequest::Exec { container, process } => {
                self.open_stream(id, &container, Purpose::Process, HostMessage::Exec(process));
            }
            ShimRequest::Attach { container, from_start } => {
                self.attach(id, &container, from_start)
            }
            ShimRequest::Upload { container, transfer } => {
                self.open_stream(id, &container, Purpose::Transfer, HostMessage::Upload(transfer));
            }
            ShimRequest::Download { container, transfer } => {
                self.open_stream(
                    id,
                    &container,
                    Purpose::Transfer,
                    HostMessage::Download(transfer),
                );
            }
            ShimRequest::Processes { container } => {
                self.open_stream(id, &container, Purpose::Question, HostMessage::ListProcesses);
            }
            ShimRequest::Signal { container, signal } => {
                let reply =
                    self.signal(&container, signal).map_or_else(refused, |()| ShimReply::Ok);
                self.reply(id, &reply);
            }
            ShimRequest::Stop { grace_millis } => {
                self.reply(id, &ShimReply::Ok);
                if self.phase == Phase::Running {
                    self.stop(grace_millis);
                }
            }
            ShimRequest::StartContainer { container } => {
                let reply = self.start_held(&container).map_or_else(refused, |()| ShimReply::Ok);
                self.reply(id, &reply);
            }
            ShimRequest::EndBoost => {
                let reply = match self.end_boost() {
                    Ok(()) => ShimReply::Ok,
                    Err(error) => refused(error.to_string()),
                };
                self.reply(id, &reply);
            }
        }
    }

    fn reply(&mut self, id: ConversationId, reply: &ShimReply) {
        if let Some(one) = self.conversations.get_mut(&id) {
            one.reply(reply);
        }
    }

    fn subscribe(&mut self, id: ConversationId) {
        let state = self.state_reply();
        let over = matches!(self.phase, Phase::Over { .. });
        let silence = self.silence();
        let Some(one) = self.conversations.get_mut(&id) else { return };
        match silence {
            // It hears the state with those who wait for it already.
            Some(_) if self.tell_state_at.is_some() => {
                one.role = Role::Subscriber;
                return;
            }
            Some(why) => return one.refuse(why),
            None => {}
        }
        one.role = Role::Subscriber;
        one.reply(&state);
        if over {
            one.event(&match self.launch_failure.clone() {
                Some(message) => ShimEvent::LaunchFailed { message },
                None => ShimEvent::Ended,
            });
        }
    }

    /// The container of that name, if something can be asked of it.
    fn available(&self, name: &str) -> Result<usize, String> {
        let at = self.find(name)?;
        match self.containers[at].unavailable() {
            Some(why) => Err(why),
            None => Ok(at),
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, String> {
        self.containers
            .iter()
            .position(|container| container.plan.name == name)
            .ok_or_else(|| format!("the sandbox has no container {name:?}"))
    }

    fn open_stream(
        &mut self,
        id: ConversationId,
        name: &str,
        purpose: Purpose,
        message: HostMessage,
    ) {
        let opened = self.try_open_stream(id, name, purpose, message);
        let Some(one) = self.conversations.get_mut(&id) else { return };
        match opened {
            Ok(_) if purpose == Purpose::Question => {}
            Ok((container, stream)) => {
                one.role = Role::Stream { container, stream };
                one.reply(&ShimReply::Ok);
            }
            Err(why) => one.refuse(why),
        }
    }

    fn try_open_stream(
        &mut self,
        id: ConversationId,
        name: &str,
        purpose: Purpose,
        message: HostMessage,
    ) -> Result<(usize, u32), String> {
        let at = self.available(name)?;
        if self.containers[at].streams.len() >= MAX_STREAMS {
            return Err(format!(
                "container {name} has {MAX_STREAMS} processes and copies of clients already: wait for one to end"
            ));
        }
        let number = self.directory.next_stream().map_err(|error| error.to_string())?;
        let container = &mut self.containers[at];
        container.peer.send(number, message).map_err(|error| error.to_string())?;
        let mut stream = Stream::new(purpose);
        stream.add_taker(id, true);
        container.streams.insert(number, stream);
        Ok((at, number))
    }

    fn attach(&mut self, id: ConversationId, name: &str, from_start: bool) {
        let at = match self.find(name) {
            Ok(at) => at,
            Err(why) => return self.reply(id, &refused(why)),
        };
        let last_word = self.containers[at].last_word.clone();
        let held = match self.containers[at].streams.get_mut(&MAIN) {
            Some(main) => {
                let held = if from_start { main.held.take() } else { None };
                main.add_taker(id, held.is_some());
                held
            }
            // It has ended, and all its output was taken; or what became of it is not known.
            None if last_word.is_some() => None,
            None => {
                let why = self.containers[at]
                    .unavailable()
                    .unwrap_or_else(|| format!("container {name} is still starting"));
                return self.reply(id, &refused(why));
            }
        };
        let Some(one) = self.conversations.get_mut(&id) else { return };
        one.reply(&ShimReply::Ok);
        one.role = Role::Stream { container: at, stream: MAIN };
        for message in held.into_iter().flat_map(|held| held.messages) {
            if let Ok(frame) = message.into_frame(0) {
                one.send(&frame);
            }
        }
        if let Some(last_word) = last_word.filter(|_| self.containers[at].recorded) {
            self.end_attached(at, id, last_word);
        }
    }

    /// The main process has ended already: the client hears it after the output that was kept.
    fn end_attached(&mut self, at: usize, id: ConversationId, last_word: LastWord) {
        let message = match last_word {
            LastWord::Exited(exited) => atoll_wire::guest::GuestMessage::Exited(exited),
            LastWord::StartFailed(failure) => atoll_wire::guest::GuestMessage::StartFailed(failure),
        };
        let kept = self.containers[at].streams.get(&MAIN).is_some_and(|main| main.held.is_some());
        if let (Some(one), Ok(frame)) = (self.conversations.get_mut(&id), message.into_frame(0)) {
            one.send(&frame);
            one.finished = true;
        }
        if !kept {
            self.containers[at].streams.remove(&MAIN);
        }
    }

    fn signal(&mut self, name: &str, request: SignalRequest) -> Result<(), String> {
        let at = self.available(name)?;
        if !(1..=64).contains(&request.signal) {
            return Err(format!("{} is no signal: 1 to 64 are", request.signal));
        }
        let container = &mut self.containers[at];
        container.signals_sent |= 1 << (request.signal - 1);
        container.peer.send(MAIN, HostMessage::Signal(request)).map_err(|error| error.to_string())
    }

    /// What a client of a stream may send, with the stream's own number.
    fn serve_stream(&mut self, id: ConversationId, at: usize, number: u32, frame: Frame) -> Served {
        let parked = frame.clone();
        let Ok(message) = HostMessage::from_frame(frame) else { return Served::Rubbish };
        let container = &mut self.containers[at];
        let Some(stream) = container.streams.get_mut(&number) else { return Served::Done };
        match &message {
            HostMessage::Credit(bytes) => {
                stream.client_credit(id, *bytes);
                return Served::Done;
            }
            HostMessage::Stdin(data) if number == MAIN && !container.plan.process.stdin => {
                let bytes = u32::try_from(data.len()).unwrap_or(0);
                self.credit_client(id, bytes);
                return Served::Done;
            }
            HostMessage::Stdin(data) => {
                if !stream.send_input(id, data.len()) {
                    if let Some(one) = self.conversations.get_mut(&id) {
                        one.parked = Some(parked);
                    }
                    return Served::Parked;
                }
            }
            HostMessage::Signal(request) => {
                if !(1..=64).contains(&request.signal) {
                    return Served::Rubbish;
                }
                if number == MAIN || request.everyone {
                    container.signals_sent |= 1 << (request.signal - 1);
                }
            }
            HostMessage::StdinEnd | HostMessage::Resize(_) => {}
            _ => return Served::Rubbish,
        }
        // It came in a frame, so it fits into one.
        let _ = container.peer.send(number, message);
        Served::Done
    }

    /// A client is gone, or to go. Its process goes on without it; the guest decides by kind of stream what that means.
    pub(super) fn end_conversation(&mut self, id: ConversationId) {
        if self.conversations.remove(&id).is_none() {
            return;
        }
        for container in &mut self.containers {
            for (&number, stream) in &mut container.streams {
                let left = stream.remove_taker(id) && stream.takers.is_empty();
                if left && matches!(stream.purpose, Purpose::Process | Purpose::Transfer) {
                    let _ = container.peer.send(number, HostMessage::Detach);
                }
            }
        }
    }
}

/// How serving a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Done,
    /// It waits for room.
    Parked,
    /// It makes no sense: the conversation ends.
    Rubbish,
}

fn refused(message: String) -> ShimReply {
    ShimReply::Refused { message }
}
