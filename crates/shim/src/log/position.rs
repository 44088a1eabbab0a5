//! How far a log has come, on disk beside it: a shim that takes over knows to the byte what its predecessor wrote.
//!
//! Written before each write of the log, with what is there and what is intended: the log's length then says which of the two holds.
//! Survives the death of a shim, not of the machine (a sandbox does not either).

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Output;

/// Begins the file.
const MAGIC: u64 = u64::from_le_bytes(*b"atollog1");
const WORDS: usize = 11;

/// A point in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// Length of the current file.
    pub(super) length_bytes: u64,
    /// Bytes of each stream that were taken before it.
    pub(super) stdout_bytes: u64,
    pub(super) stderr_bytes: u64,
}

impl Mark {
    pub(super) const fn offset(&self, output: Output) -> u64 {
        match output {
            Output::Stdout => self.stdout_bytes,
            Output::Stderr => self.stderr_bytes,
        }
    }

    pub(super) const fn set_offset(&mut self, output: Output, bytes: u64) {
        match output {
            Output::Stdout => self.stdout_bytes = bytes,
            Output::Stderr => self.stderr_bytes = bytes,
        }
    }
}

/// Where a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) mark: Mark,
    /// Output that rotation, gaps and full disks cost, in all.
    pub(super) dropped_bytes: u64,
    /// Output in the current file.
    pub(super) current_output_bytes: u64,
    /// Output in the file before.
    pub(super) previous_output_bytes: u64,
}

impl Position {
    /// The file before is gone, and the current one has taken its place.
    pub(super) const fn forget_previous(&mut self) {
        self.dropped_bytes = self.dropped_bytes.saturating_add(self.previous_output_bytes);
        self.previous_output_bytes = self.current_output_bytes;
        self.current_output_bytes = 0;
    }
}

/// What was read back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) at: Position,
    pub(super) intended: Mark,
    pub(super) intended_output_bytes: u64,
}

/// The file. Without one (a full disk at the start) a log works, and a successor begins anew.
#[derive(Debug)]
pub(super) struct PositionFile(Option<File>);

impl PositionFile {
    pub(super) const fn new(file: Option<File>) -> Self {
        Self(file)
    }

    pub(super) fn read(&self) -> Option<Stored> {
        let mut bytes = [0; WORDS * 8];
        self.0.as_ref()?.read_exact_at(&mut bytes, 0).ok()?;
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| <[u8; 8]>::try_from(word).map(u64::from_le_bytes).unwrap_or_default());
        let mut next = || words.next().unwrap_or_default();
        if next() != MAGIC {
            return None;
        }
        let mut mark = || Mark { length_bytes: next(), stdout_bytes: next(), stderr_bytes: next() };
        let (reached, intended) = (mark(), mark());
        let at = Position {
            mark: reached,
            dropped_bytes: next(),
            current_output_bytes: next(),
            previous_output_bytes: next(),
        };
        Some(Stored { at, intended, intended_output_bytes: next() })
    }

    pub(super) fn write(&self, at: &Position, intended: Mark, intended_output_bytes: u64) {
        let Some(file) = &self.0 else { return };
        let words = [
            MAGIC,
            at.mark.length_bytes,
            at.mark.stdout_bytes,
            at.mark.stderr_bytes,
            intended.length_bytes,
            intended.stdout_bytes,
            intended.stderr_bytes,
            at.dropped_bytes,
            at.current_output_bytes,
            at.previous_output_bytes,
            intended_output_bytes,
        ];
        let mut bytes = [0; WORDS * 8];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let _ = file.write_all_at(&bytes, 0);
    }
}
