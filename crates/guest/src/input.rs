//! A process's standard input: what came from the host and was not taken by the process yet.
//!
//! Bounded by the window that the host was granted: bytes are granted anew as the process takes them, or as they are dropped because
//! nobody reads them any more.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use atoll_sys::poll_set::{PollSet, Slot};
use atoll_wire::guest::{INITIAL_STDIN_WINDOW_BYTES, INITIAL_WINDOW_BYTES};
use rustix::io::Errno;

/// Ends input of a terminal, as a person would: Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// What is between the host and a process's standard input.
#[derive(Debug, Default)]
pub(crate) struct Input {
    sink: Option<Rc<OwnedFd>>,
    terminal: bool,
    queue: Vec<u8>,
    taken: usize,
    /// Bytes of `queue` that are the guest's own and were never granted.
    own_bytes: usize,
    ended: bool,
    slot: Option<Slot>,
}

impl Input {
    /// Input through a pipe.
    pub(crate) fn pipe(sink: OwnedFd) -> Self {
        Self { sink: Some(Rc::new(sink)), ..Self::default() }
    }

    /// Input through a terminal.
    pub(crate) fn terminal(sink: Rc<OwnedFd>) -> Self {
        Self { sink: Some(sink), terminal: true, ..Self::default() }
    }

    /// Takes in bytes from the host; gives how many to grant anew.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        if self.sink.is_none() || self.ended {
            return bytes.len();
        }
        // Twice the window and more: only a broken host gets here, and it gets no more memory.
        if self.queue.len() - self.taken + bytes.len() > INITIAL_WINDOW_BYTES as usize {
            return self.close() + bytes.len();
        }
        self.queue.extend_from_slice(bytes);
        self.write()
    }

    /// No more will come. A pipe is closed when all was taken.
    pub(crate) fn end(&mut self) -> usize {
        if self.terminal && !self.ended && self.sink.is_some() {
            self.queue.push(END_OF_TRANSMISSION);
            self.own_bytes = 1;
        }
        self.ended = true;
        self.write()
    }

    /// Drops what was not taken; gives how many bytes to grant anew.
    pub(crate) fn close(&mut self) -> usize {
        self.sink = None;
        let dropped = self.queue.len() - self.taken;
        self.queue = Vec::new();
        self.taken = 0;
        dropped
    }

    /// What a host that takes over may send.
    pub(crate) fn window(&self) -> u32 {
        let queued = u32::try_from(self.queue.len() - self.taken).unwrap_or(u32::MAX);
        INITIAL_STDIN_WINDOW_BYTES.saturating_sub(queued)
    }

    /// Waits for the process to take more, when there is more.
    pub(crate) fn arm(&mut self, poll: &mut PollSet) {
        self.slot = match &self.sink {
            Some(sink) if self.taken < self.queue.len() => Some(poll.add_writer(sink.as_ref())),
            _ => None,
        };
    }

    /// Goes on after a wait; gives how many bytes to grant anew.
    pub(crate) fn serve(&mut self, poll: &PollSet) -> usize {
        match self.slot.take() {
            Some(slot) if poll.is_ready(slot) => self.write(),
            _ => 0,
        }
    }

    fn write(&mut self) -> usize {
        let before = self.taken;
        while self.taken < self.queue.len() {
            let Some(sink) = &self.sink else { break };
            match rustix::io::write(sink.as_ref(), &self.queue[self.taken..]) {
                Ok(bytes) => self.taken += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The process has closed its end, or is gone.
                Err(_) => return self.taken - before + self.close(),
            }
        }
        let mut taken = self.taken - before;
        if self.taken == self.queue.len() {
            taken = taken.saturating_sub(std::mem::take(&mut self.own_bytes));
            self.queue = Vec::new();
            self.taken = 0;
            if self.ended && !self.terminal {
                self.sink = None;
            }
        }
        taken
    }
}
