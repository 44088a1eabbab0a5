//! The guest's end of the channel: frames in from standard input, frames out to standard output, neither ever waited for.
//!
//! Owns the buffers and their bounds: one frame of input, and so much output that is not written yet. A host that is gone for a while
//! (nobody has the other end open) is looked for again by a slow timer; one that holds both ends open costs nothing.

use std::os::fd::AsFd;
use std::time::Duration;

use atoll_sys::poll_set::{PollSet, Slot};
use atoll_wire::frame::{Decoder, HEADER_BYTES, begin_frame, finish_frame, resync_padding};
use atoll_wire::guest::{GuestKind, GuestMessage, HostMessage};
use rustix::io::Errno;

/// No output of processes is read while more than this waits to be written.
const OUTPUT_PENDING_BYTES: usize = 64 * 1024;
/// No request is read while more than this waits to be written: answers are bounded too.
const ANSWERS_PENDING_BYTES: usize = 512 * 1024;
/// A buffer larger than this is given back when it is empty.
const RESTING_BYTES: usize = 16 * 1024;
/// Read at a time.
const READ_BYTES: usize = 16 * 1024;
/// How soon to look again for a host that has closed its ends: a safety net, since hosts keep them open.
const ABSENT_HOST_INTERVAL: Duration = Duration::from_millis(100);

/// The channel to the host.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    decoder: Decoder,
    pending: Vec<u8>,
    /// Bytes of `pending` that were written already.
    written: usize,
    /// The other end was found closed since the last wait.
    absent: bool,
    read_slot: Option<Slot>,
    greeted: bool,
}

impl Channel {
    /// Puts a message behind what waits to be written.
    pub(crate) fn send(&mut self, stream: u32, message: GuestMessage) {
        match message.into_frame(stream).map(|frame| frame.encode(&mut self.pending)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => diagnose(&error.to_string()),
            Err(error) => diagnose(&error.to_string()),
        }
    }

    /// Called for each Hello. What a new host reads first may be the rest of a frame: padding ends that.
    pub(crate) fn greet(&mut self) {
        if self.greeted {
            self.pending.extend_from_slice(&resync_padding());
        }
        self.greeted = true;
    }

    /// Whether more output of processes may be taken in.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() - self.written < OUTPUT_PENDING_BYTES
    }

    /// Reads once from a process's output, at most so many bytes, straight into a frame. `Ok(0)` is the end.
    ///
    /// # Errors
    /// The kernel's: EAGAIN when there is nothing; then nothing was put into the channel.
    pub(crate) fn forward(
        &mut self,
        kind: GuestKind,
        stream: u32,
        offset: u64,
        source: impl AsFd,
        most_bytes: usize,
    ) -> Result<usize, Errno> {
        let start = begin_frame(&mut self.pending, kind.number(), stream);
        self.pending.extend_from_slice(&offset.to_le_bytes());
        let data = start + HEADER_BYTES + size_of::<u64>();
        self.pending.resize(data + most_bytes, 0);
        let answer = rustix::io::read(source, &mut self.pending[data..]);
        match answer {
            Ok(read) if read > 0 => {
                self.pending.truncate(data + read);
                if let Err(error) = finish_frame(&mut self.pending, start) {
                    diagnose(&error.to_string());
                }
            }
            _ => self.pending.truncate(start),
        }
        answer
    }

    /// Writes what can be written now.
    pub(crate) fn flush(&mut self) {
        while self.written < self.pending.len() {
            match rustix::io::write(rustix::stdio::stdout(), &self.pending[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody has the reading end open: the host is being replaced.
                Err(_) => {
                    self.absent = true;
                    break;
                }
            }
        }
        if self.written == self.pending.len() {
            self.pending.clear();
            self.written = 0;
            if self.pending.capacity() > RESTING_BYTES {
                self.pending = Vec::new();
            }
        } else if self.written > OUTPUT_PENDING_BYTES {
            self.pending.drain(..self.written);
            self.written = 0;
        }
    }

    /// Adds what the channel waits for; gives how long to wait at most.
    pub(crate) fn arm(&mut self, poll: &mut PollSet) -> Option<Duration> {
        self.read_slot = None;
        if std::mem::take(&mut self.absent) {
            return Some(ABSENT_HOST_INTERVAL);
        }
        if self.pending.len() - self.written < ANSWERS_PENDING_BYTES {
            self.read_slot = Some(poll.add_reader(rustix::stdio::stdin()));
        }
        if self.written < self.pending.len() {
            poll.add_writer(rustix::stdio::stdout());
        }
        None
    }

    /// Reads once, when there is something. [`Channel::next`] gives what came.
    pub(crate) fn receive(&mut self, poll: &PollSet) {
        if !self.read_slot.is_some_and(|slot| poll.is_ready(slot)) {
            return;
        }
        let mut buffer = [0; READ_BYTES];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => self.absent = true,
            Ok(bytes) => self.decoder.push(&buffer[..bytes]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.absent = true,
        }
    }

    /// The next message that was received whole; what is none is passed over.
    pub(crate) fn next(&mut self) -> Option<(u32, HostMessage)> {
        while let Some(frame) = self.decoder.next_frame() {
            let stream = frame.stream;
            match HostMessage::from_frame(frame) {
                Ok(message) => return Some((stream, message)),
                Err(error) => diagnose(&error.to_string()),
            }
        }
        None
    }
}

/// A line for whoever looks after the guest itself. Lost when nobody takes it.
pub(crate) fn diagnose(message: &str) {
    let line = format!("guest: {message}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
