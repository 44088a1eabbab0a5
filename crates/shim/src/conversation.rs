//! One client's connection to the shim.
//!
//! Whoever connects is believed to be the server, and yet nothing it sends may harm the sandbox: what it sends is bounded, a
//! connection that speaks rubbish is closed, one that does not read keeps no more than its window.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use atoll_wire::frame::{Decoder, Frame};
use atoll_wire::shim::{EVENT_KIND, REPLY_KIND, ShimEvent, ShimReply};
use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::out_buffer::OutBuffer;

/// Bytes that may wait for a client that takes no frames of a stream: events and replies are small.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// With so much waiting, no more requests are read.
const PAUSE_READING_BYTES: usize = 64 * 1024;

/// What a conversation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing was asked yet that lasts.
    Requests,
    /// It hears events.
    Subscriber,
    /// It speaks with a stream of a container.
    Stream {
        /// Index of the container.
        container: usize,
        /// The stream's number.
        stream: u32,
    },
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conversation {
    socket: OwnedFd,
    decoder: Decoder,
    out: OutBuffer,
    pub(crate) role: Role,
    /// A frame that cannot go on now; nothing after it is read.
    pub(crate) parked: Option<Frame>,
    /// Everything was said: closed when it has been written.
    pub(crate) finished: bool,
    broken: bool,
}

impl Conversation {
    pub(crate) fn new(socket: OwnedFd, role: Role) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            decoder: Decoder::new(),
            out: OutBuffer::default(),
            role,
            parked: None,
            finished: false,
            broken: false,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for.
    pub(crate) fn interest(&self, congested: bool) -> PollFlags {
        let mut interest = PollFlags::empty();
        let paused = self.parked.is_some()
            || self.finished
            || congested
            || (!matches!(self.role, Role::Stream { .. }) && self.out.len() > PAUSE_READING_BYTES);
        if !paused {
            interest |= PollFlags::IN;
        }
        if !self.out.is_empty() {
            interest |= PollFlags::OUT;
        }
        interest
    }

    /// Reads once. `false`: the client has closed, or speaks rubbish.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> bool {
        loop {
            match rustix::io::read(&self.socket, &mut *scratch) {
                Ok(0) => return false,
                Ok(count) => {
                    self.decoder.push(&scratch[..count]);
                    return true;
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The next whole frame; bytes that are no frame break the conversation, since nothing is lost on a socket.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        if let Some(parked) = self.parked.take() {
            return Some(parked);
        }
        let frame = self.decoder.next_frame();
        if self.decoder.skipped_bytes() > 0 {
            self.broken = true;
            return None;
        }
        frame
    }

    /// Puts a frame in line.
    pub(crate) fn send(&mut self, frame: &Frame) {
        if self.broken || self.finished {
            return;
        }
        if self.out.push(frame).is_err() || self.out.len() > MAX_WAITING_BYTES {
            self.broken = true;
        }
        self.flush();
    }

    /// Puts a reply in line.
    pub(crate) fn reply(&mut self, reply: &ShimReply) {
        self.send_json(REPLY_KIND, reply);
    }

    /// Puts a refusal in line.
    pub(crate) fn refuse(&mut self, message: impl Into<String>) {
        self.reply(&ShimReply::Refused { message: message.into() });
    }

    /// Puts an event in line.
    pub(crate) fn event(&mut self, event: &ShimEvent) {
        self.send_json(EVENT_KIND, event);
    }

    fn send_json<T: Serialize>(&mut self, kind: u8, message: &T) {
        match serde_json::to_vec(message) {
            Ok(payload) => self.send(&Frame { kind, stream: 0, payload }),
            Err(_) => self.broken = true,
        }
    }

    /// Writes what the client takes now.
    pub(crate) fn flush(&mut self) {
        if self.out.write_to(self.socket.as_fd()).is_err() {
            self.broken = true;
        }
    }

    /// Bytes that wait for the client.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.out.len()
    }

    /// Whether it is over: broken, or all was said and written.
    pub(crate) fn is_over(&self) -> bool {
        self.broken || (self.finished && self.out.is_empty())
    }
}
