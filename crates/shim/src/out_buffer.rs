//! Bytes that wait for a descriptor which does not block.

use std::os::fd::BorrowedFd;

use atoll_wire::frame::{Frame, PayloadTooLarge};
use rustix::io::Errno;

/// Capacity that an empty buffer may keep: one small frame's worth, since most shims are idle.
const KEPT_CAPACITY_BYTES: usize = 4 * 1024;

/// Frames in the order in which they were put in, partly written.
#[derive(Debug, Default)]
pub(crate) struct OutBuffer {
    bytes: Vec<u8>,
    written: usize,
}

impl OutBuffer {
    /// Adds a frame.
    pub(crate) fn push(&mut self, frame: &Frame) -> Result<(), PayloadTooLarge> {
        frame.encode(&mut self.bytes)
    }

    /// Adds bytes as they are.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what the descriptor takes now.
    pub(crate) fn write_to(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        while self.written < self.bytes.len() {
            match rustix::io::write(fd, &self.bytes[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_CAPACITY_BYTES);
            self.written = 0;
        } else if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
