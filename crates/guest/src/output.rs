//! One direction of a process's output: read only when the host has granted it and the channel has room, so that a process which nobody
//! reads waits, and nothing is held in the guest's memory.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use atoll_sys::poll_set::{PollSet, Slot};
use atoll_wire::frame::MAX_DATA_BYTES;
use atoll_wire::guest::GuestKind;
use rustix::io::Errno;

use crate::channel::Channel;

/// Read at a time when the kernel does not say how much there is.
const UNKNOWN_READ_BYTES: usize = 4096;
/// Read at most from a terminal after its process has ended and another process still holds it: what a terminal buffers, and some.
const TERMINAL_DRAIN_BYTES: u64 = 256 * 1024;

/// A pipe's or terminal's reading end, and how much of it was sent.
#[derive(Debug)]
pub(crate) struct Output {
    kind: GuestKind,
    source: Option<Rc<OwnedFd>>,
    terminal: bool,
    sent_bytes: u64,
    /// After the process's end: bytes that were in the pipe then and are still to be sent.
    left_bytes: Option<u64>,
    slot: Option<Slot>,
}

impl Output {
    /// No output in this direction, or output from this descriptor.
    pub(crate) fn new(kind: GuestKind, source: Option<Rc<OwnedFd>>, terminal: bool) -> Self {
        Self { kind, source, terminal, sent_bytes: 0, left_bytes: None, slot: None }
    }

    /// Bytes sent so far.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Waits for output.
    pub(crate) fn arm(&mut self, poll: &mut PollSet) {
        self.slot = self.source.as_ref().map(|source| poll.add_reader(source.as_ref()));
    }

    /// Sends what a wait has found, as far as it is granted.
    pub(crate) fn serve(
        &mut self,
        poll: &PollSet,
        stream: u32,
        window: &mut u64,
        channel: &mut Channel,
    ) {
        if self.slot.take().is_some_and(|slot| poll.is_ready(slot)) {
            self.send_once(stream, window, channel);
        }
    }

    /// The process has ended: only what is there now is still its output, another process may hold the pipe for ever.
    pub(crate) fn begin_draining(&mut self) {
        let Some(source) = &self.source else { return };
        self.left_bytes = Some(if self.terminal {
            TERMINAL_DRAIN_BYTES
        } else {
            rustix::io::ioctl_fionread(source.as_ref()).unwrap_or(TERMINAL_DRAIN_BYTES)
        });
    }

    /// Sends the rest as far as it is granted; says whether all was sent.
    pub(crate) fn drain(&mut self, stream: u32, window: &mut u64, channel: &mut Channel) -> bool {
        while !self.is_drained() {
            if *window == 0 || !channel.has_room() {
                return false;
            }
            self.send_once(stream, window, channel);
        }
        true
    }

    fn is_drained(&self) -> bool {
        self.source.is_none() || self.left_bytes == Some(0)
    }

    fn send_once(&mut self, stream: u32, window: &mut u64, channel: &mut Channel) {
        let Some(source) = self.source.clone() else { return };
        if *window == 0 || !channel.has_room() {
            return;
        }
        let there = match rustix::io::ioctl_fionread(source.as_ref()) {
            Ok(bytes) if bytes > 0 && !self.terminal => {
                usize::try_from(bytes).unwrap_or(UNKNOWN_READ_BYTES)
            }
            _ => UNKNOWN_READ_BYTES,
        };
        let left = self.left_bytes.unwrap_or(u64::MAX).min(*window);
        let most = there.min(MAX_DATA_BYTES).min(usize::try_from(left).unwrap_or(MAX_DATA_BYTES));
        match channel.forward(self.kind, stream, self.sent_bytes, source.as_ref(), most) {
            Ok(bytes) if bytes > 0 => {
                let bytes = bytes as u64;
                self.sent_bytes += bytes;
                *window = window.saturating_sub(bytes);
                self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(bytes));
            }
            // Nothing there: while the process lives more may come, afterwards that was all (somebody else took it).
            Err(Errno::AGAIN | Errno::INTR) => self.left_bytes = self.left_bytes.map(|_| 0),
            // A pipe's end, or EIO of a terminal that nobody holds any more.
            Ok(_) | Err(_) => self.source = None,
        }
    }

    /// Gives the descriptor away: what comes from now on is no output of this stream.
    pub(crate) fn leave(&mut self) -> Option<Rc<OwnedFd>> {
        self.slot = None;
        self.source.take()
    }
}

/// Pipes of processes that outlived the one of their stream: read and dropped, so that these processes neither wait for ever nor get
/// SIGPIPE.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    sources: Vec<(Rc<OwnedFd>, Option<Slot>)>,
}

/// Most pipes to keep open for processes that nobody listens to; the oldest is closed for a new one.
const MAX_LEFTOVERS: usize = 512;

impl Leftovers {
    /// Takes over a descriptor, unless nobody holds its other end any more.
    pub(crate) fn adopt(&mut self, source: Rc<OwnedFd>) {
        if !drop_some(&source) {
            return;
        }
        if self.sources.len() >= MAX_LEFTOVERS {
            self.sources.remove(0);
        }
        self.sources.push((source, None));
    }

    /// Waits for something to drop.
    pub(crate) fn arm(&mut self, poll: &mut PollSet) {
        for (source, slot) in &mut self.sources {
            *slot = Some(poll.add_reader(source.as_ref()));
        }
    }

    /// Reads and drops.
    pub(crate) fn serve(&mut self, poll: &PollSet) {
        self.sources.retain_mut(|(source, slot)| {
            !slot.take().is_some_and(|slot| poll.is_ready(slot)) || drop_some(source)
        });
    }
}

/// Reads once and drops it; `false` at the end.
fn drop_some(source: &OwnedFd) -> bool {
    let mut dropped = [0; UNKNOWN_READ_BYTES];
    match rustix::io::read(source, &mut dropped) {
        Ok(bytes) => bytes > 0,
        Err(errno) => matches!(errno, Errno::AGAIN | Errno::INTR),
    }
}
