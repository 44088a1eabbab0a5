//! The channel to one guest: two FIFOs, a decoder, and what waits to be written.
//!
//! Believes nothing but output until the guest has answered this shim's own Hello: before that, a shim that takes over may be reading
//! in the middle of bytes that the workload chose.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use atoll_wire::frame::{Decoder, resync_padding};
use atoll_wire::guest::{GuestMessage, Hello, HostMessage, MessageError, PROTOCOL_VERSION};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::Part;
use super::diagnostics::Diagnostics;
use crate::directory::{DirectoryError, FifoEnd, make_fifo, open_fifo};
use crate::engine::StandardStreams;
use crate::out_buffer::OutBuffer;

/// Bytes for a guest that may wait before its clients are not read any more.
const MAX_WAITING_BYTES: usize = 256 * 1024;

/// Reads of diagnostics at an end: each takes a whole FIFO's worth.
const MOST_READS: usize = 4;

/// The files' names in a container's directory.
const REQUESTS: &str = "guest.in";
const ANSWERS: &str = "guest.out";
const DIAGNOSTICS: &str = "guest.err";

const ANSWERS_PART: Part = 0;
const REQUESTS_PART: Part = 1;
const DIAGNOSTICS_PART: Part = 2;

/// The host's end.
#[derive(Debug)]
pub(crate) struct Channel {
    requests: OwnedFd,
    answers: OwnedFd,
    diagnostics: Diagnostics,
    out: OutBuffer,
    decoder: Decoder,
    epoch: u64,
    acknowledged: bool,
}

impl Channel {
    /// Makes the FIFOs where there are none, opens them and says Hello.
    pub(super) fn open(directory: &Path, taking_over: bool) -> Result<Self, DirectoryError> {
        let [requests, answers, diagnostics] =
            [REQUESTS, ANSWERS, DIAGNOSTICS].map(|name| directory.join(name));
        make_fifo(&requests)?;
        make_fifo(&answers)?;
        make_fifo(&diagnostics)?;
        let mut channel = Self {
            requests: open_fifo(&requests, FifoEnd::Ours)?,
            answers: open_fifo(&answers, FifoEnd::Ours)?,
            diagnostics: Diagnostics::new(open_fifo(&diagnostics, FifoEnd::Ours)?),
            out: OutBuffer::default(),
            decoder: Decoder::new(),
            epoch: unguessable()?,
            acknowledged: false,
        };
        if taking_over {
            channel.out.push_bytes(&resync_padding());
        }
        let hello = Hello { versions: vec![PROTOCOL_VERSION], epoch: channel.epoch };
        // A Hello of this size always fits into a frame.
        let _ = channel.send(0, HostMessage::Hello(hello));
        Ok(channel)
    }

    /// The guest's ends, for its start.
    pub(super) fn guest_streams(directory: &Path) -> Result<StandardStreams, DirectoryError> {
        Ok(StandardStreams {
            input: open_fifo(&directory.join(REQUESTS), FifoEnd::Theirs)?,
            output: open_fifo(&directory.join(ANSWERS), FifoEnd::Theirs)?,
            diagnostics: open_fifo(&directory.join(DIAGNOSTICS), FifoEnd::Theirs)?,
        })
    }

    /// Puts a message in line and writes what the guest's FIFO takes.
    ///
    /// # Errors
    /// The message does not fit into a frame: nothing was sent.
    pub(super) fn send(&mut self, stream: u32, message: HostMessage) -> Result<(), MessageError> {
        let kind_error = |source| MessageError::TooLarge { kind: 0, source };
        self.out.push(&message.into_frame(stream)?).map_err(kind_error)?;
        self.flush();
        Ok(())
    }

    /// Writes what the guest's FIFO takes now.
    fn flush(&mut self) {
        // A FIFO of which this process holds both ends has no other error than being full.
        let _ = self.out.write_to(self.requests.as_fd());
    }

    /// Whether so much waits for the guest that its clients must.
    pub(super) fn is_congested(&self) -> bool {
        self.out.len() > MAX_WAITING_BYTES
    }

    pub(super) fn sources(&self) -> Vec<(Part, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![
            (ANSWERS_PART, self.answers.as_fd(), PollFlags::IN),
            (DIAGNOSTICS_PART, self.diagnostics.source().as_fd(), PollFlags::IN),
        ];
        if !self.out.is_empty() {
            sources.push((REQUESTS_PART, self.requests.as_fd(), PollFlags::OUT));
        }
        sources
    }

    pub(super) fn ready(&mut self, part: Part, scratch: &mut [u8]) {
        match part {
            REQUESTS_PART => self.flush(),
            DIAGNOSTICS_PART => {
                self.diagnostics.read(scratch);
            }
            _ => {
                self.read(scratch);
            }
        }
    }

    /// What the guest said last about itself, as one bounded line.
    pub(super) fn last_words(&mut self, scratch: &mut [u8]) -> String {
        // A FIFO holds so much; a guest that still lives could go on for ever.
        for _ in 0..MOST_READS {
            if !self.diagnostics.read(scratch) {
                break;
            }
        }
        self.diagnostics.text()
    }

    /// Whether the guest has answered this shim.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// Reads once. `false`: there is nothing more for now.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> bool {
        loop {
            match rustix::io::read(&self.answers, &mut *scratch) {
                Ok(0) | Err(Errno::AGAIN) => return false,
                Ok(count) => {
                    self.decoder.push(&scratch[..count]);
                    return true;
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The next message that may be believed. Frames that are no messages are skipped: they harm nobody but who sent them.
    pub(super) fn next_message(&mut self) -> Option<(u32, GuestMessage)> {
        while let Some(frame) = self.decoder.next_frame() {
            let stream = frame.stream;
            let Ok(message) = GuestMessage::from_frame(frame) else { continue };
            match &message {
                GuestMessage::HelloAck(ack) if ack.epoch == self.epoch && !self.acknowledged => {
                    self.acknowledged = true;
                    return Some((stream, message));
                }
                GuestMessage::HelloAck(_) => {}
                GuestMessage::Stdout { .. } | GuestMessage::Stderr { .. } => {
                    return Some((stream, message));
                }
                _ if self.acknowledged => return Some((stream, message)),
                _ => {}
            }
        }
        None
    }
}

/// What swallows everything and says nothing.
pub(super) fn open_null() -> Result<OwnedFd, DirectoryError> {
    let path = Path::new("/dev/null");
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| DirectoryError::Io { operation: "open", path: path.into(), source })
}

/// A number that nobody inside can guess.
fn unguessable() -> Result<u64, DirectoryError> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let failed = |source| DirectoryError::Io { operation: "read", path: path.into(), source };
    let mut bytes = [0; 8];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed)?;
    Ok(u64::from_le_bytes(bytes))
}
