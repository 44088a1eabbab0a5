//! The host's end of a guest's channel, as far as these tests need it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use atoll_shim::engine::{Begun, StandardStreams};
use atoll_wire::frame::Decoder;
use atoll_wire::guest::{
    Exited, GuestMessage, Hello, HostMessage, PROTOCOL_VERSION, ProcessSpec, StartFailure,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode};

use crate::harness::{PATIENCE, Sandbox};

/// A guest that was greeted and booted.
pub(crate) struct Guest {
    pub(crate) begun: Begun,
    to_guest: File,
    from_guest: File,
    decoder: Decoder,
    next_stream: u32,
}

/// What a process did.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) exited: Option<Exited>,
    pub(crate) failure: Option<StartFailure>,
}

impl Guest {
    /// Begins a container whose plan says that the guest is its first process.
    pub(crate) fn begin(sandbox: &mut Sandbox, index: usize) -> Self {
        let path = |name: &str| sandbox.path().join(format!("{name}{index}"));
        let mut to_guest = fifo(&path("in"));
        let from_guest = fifo(&path("out"));
        let streams = StandardStreams {
            input: fifo_end(&path("in")),
            output: fifo_end(&path("out")),
            diagnostics: fifo_end(&path("out")),
        };
        // The guest finds them when it runs.
        let versions = vec![PROTOCOL_VERSION];
        send(&mut to_guest, 0, HostMessage::Hello(Hello { versions, epoch: 7 }));
        let boot = sandbox.engine.boot(index).unwrap();
        send(&mut to_guest, 0, HostMessage::Boot(boot));
        let begun = sandbox.begin_with(index, streams);
        Self { begun, to_guest, from_guest, decoder: Decoder::new(), next_stream: 1 }
    }

    /// Starts the main process.
    pub(crate) fn start(&mut self, spec: ProcessSpec) {
        self.send(0, HostMessage::Start(spec));
    }

    /// Runs a process beside it, to its end.
    pub(crate) fn exec(&mut self, spec: ProcessSpec) -> Ran {
        let stream = self.next_stream;
        self.next_stream += 1;
        self.send(stream, HostMessage::Exec(spec));
        let ran = self.follow(stream, |_| false);
        self.send(stream, HostMessage::ExitAck);
        ran
    }

    /// Follows a stream to its end, or until its output says enough.
    pub(crate) fn follow(&mut self, stream: u32, enough: impl Fn(&str) -> bool) -> Ran {
        let mut ran = Ran::default();
        loop {
            let Some((from, message)) = self.next_message() else { return ran };
            if from != stream {
                continue;
            }
            match message {
                GuestMessage::Stdout { data, .. } | GuestMessage::Stderr { data, .. } => {
                    let bytes = u32::try_from(data.len()).unwrap();
                    self.send(stream, HostMessage::Credit(bytes));
                    ran.output.push_str(&String::from_utf8_lossy(&data));
                    if enough(&ran.output) {
                        return ran;
                    }
                }
                GuestMessage::Exited(exited) => {
                    ran.exited = Some(exited);
                    return ran;
                }
                GuestMessage::StartFailed(failure) => {
                    ran.failure = Some(failure);
                    return ran;
                }
                GuestMessage::Refused(reason) => panic!("refused: {reason}"),
                _ => {}
            }
        }
    }

    /// The main process's exit is known: the guest ends, and the container with it.
    pub(crate) fn acknowledge(&mut self) {
        self.send(0, HostMessage::ExitAck);
    }

    pub(crate) fn send(&mut self, stream: u32, message: HostMessage) {
        send(&mut self.to_guest, stream, message);
    }

    /// `None` when the container has ended without another word.
    fn next_message(&mut self) -> Option<(u32, GuestMessage)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Some((frame.stream, GuestMessage::from_frame(frame).unwrap()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap();
            let mut ready = [
                PollFd::new(&self.from_guest, PollFlags::IN),
                PollFd::new(&self.begun.ended, PollFlags::IN),
            ];
            assert!(poll(&mut ready, Some(&timeout)).unwrap() > 0, "the guest says nothing");
            if !ready[0].revents().contains(PollFlags::IN) {
                return None;
            }
            let mut part = [0_u8; 65536];
            let read = rustix::io::read(&self.from_guest, &mut part).unwrap();
            self.decoder.push(&part[..read]);
        }
    }
}

fn send(to_guest: &mut File, stream: u32, message: HostMessage) {
    let mut bytes = Vec::new();
    message.into_frame(stream).unwrap().encode(&mut bytes).unwrap();
    to_guest.write_all(&bytes).unwrap();
}

fn fifo(path: &Path) -> File {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fifo_end(path).into()
}

fn fifo_end(path: &Path) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}
