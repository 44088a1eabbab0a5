//! A container's log: bounded, rotated, exact about what is missing.
//!
//! Owns `<container>.log`, `.log.1` and `.log.at`. Never fails its caller: output that cannot be written (a full disk) is counted as dropped,
//! marked in the log as soon as it can be, and the sandbox goes on. Never holds output back: what was appended is in the file. Never follows a
//! link, and writes regular files alone: whatever else stands in a log's place is left as it is.

mod position;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use atoll_wire::log::{LogRecord, LogStream, MAX_TEXT_BYTES};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use position::{Mark, Position, PositionFile};

/// Most bytes that are collected before they are written.
const MAX_BATCH_BYTES: u64 = 64 * 1024;
/// What a record has beside its text: time, stream, tag, spaces, line end.
const RECORD_OVERHEAD_BYTES: u64 = 64;
/// A log whose files would be smaller than this keeps nothing.
const MIN_FILE_BYTES: u64 = 512;

/// Which of the two streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    const fn stream(self) -> LogStream {
        match self {
            Self::Stdout => LogStream::Stdout,
            Self::Stderr => LogStream::Stderr,
        }
    }
}

/// The time of a record: RFC 3339 with nanoseconds, UTC.
fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// Opens a file of the logs, or makes it, for their owner alone. A FIFO or a device in its place is refused before anybody could wait for it.
fn open_regular(directory: BorrowedFd<'_>, name: &str, access: OFlags) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(directory, name, access | flags | OFlags::CLOEXEC, mode)?;
    match rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        rustix::fs::FileType::RegularFile => Ok(file.into()),
        _ => Err(Errno::INVAL),
    }
}

/// Writes one container's log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    /// Of the logs; `None` where there is no such directory.
    directory: Option<OwnedFd>,
    name: String,
    position_file: PositionFile,
    /// Of each of the two files.
    max_file_bytes: u64,
    file: Option<File>,
    at: Position,
    /// Output that is missing and not yet marked as such in the log.
    unmarked_bytes: u64,
    batch: Vec<u8>,
    /// Bytes of output of which `batch` consists.
    batch_output_bytes: u64,
    batch_mark: Mark,
}

impl LogWriter {
    /// Opens the log, or goes on with it where an earlier shim stopped. A log that cannot be opened drops everything.
    pub(crate) fn open(directory: &Path, container: &str, max_bytes: u64) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty()).ok();
        let name = format!("{container}.log");
        let position_file = directory.as_ref().and_then(|directory| {
            open_regular(directory.as_fd(), &format!("{name}.at"), OFlags::RDWR).ok()
        });
        let mut writer = Self {
            directory,
            name,
            position_file: PositionFile::new(position_file),
            max_file_bytes: max_bytes / 2,
            file: None,
            at: Position::default(),
            unmarked_bytes: 0,
            batch: Vec::new(),
            batch_output_bytes: 0,
            batch_mark: Mark::default(),
        };
        writer.recover();
        writer
    }

    /// Goes back to what is certainly in the file: a record that was cut by the death of its writer is cut off.
    fn recover(&mut self) {
        let length = self.length_bytes();
        let Some(stored) = self.position_file.read() else { return self.open_file() };
        self.at = stored.at;
        if length == stored.intended.length_bytes {
            self.at.mark = stored.intended;
            self.at.current_output_bytes += stored.intended_output_bytes;
        } else if length < self.at.mark.length_bytes {
            // The file was moved away, after all of it was written, and nobody could say so any more.
            self.at.mark = Mark { length_bytes: 0, ..stored.intended };
            self.at.current_output_bytes += stored.intended_output_bytes;
            self.at.forget_previous();
        }
        self.open_file();
        if let Some(file) = &self.file
            && length > self.at.mark.length_bytes
        {
            let _ = file.set_len(self.at.mark.length_bytes);
        }
        self.position_file.write(&self.at, self.at.mark, 0);
    }

    fn open_file(&mut self) {
        if self.max_file_bytes < MIN_FILE_BYTES {
            return;
        }
        let flags = OFlags::WRONLY | OFlags::APPEND;
        self.file = self
            .directory
            .as_ref()
            .and_then(|directory| open_regular(directory.as_fd(), &self.name, flags).ok());
    }

    /// Of the current file; 0 where there is none.
    fn length_bytes(&self) -> u64 {
        let Some(directory) = &self.directory else { return 0 };
        rustix::fs::statat(directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Bytes of output that are not on disk any more, or never were.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.at.dropped_bytes
    }

    /// How many bytes of that stream the log has taken (dropped ones included).
    pub(crate) fn taken_bytes(&self, output: Output) -> u64 {
        self.at.mark.offset(output)
    }

    /// Takes output that stands at `offset` of its stream. What lies between this and the output before is lost, and marked as a gap; what
    /// was taken already is not taken twice.
    pub(crate) fn append(&mut self, output: Output, offset: u64, data: &[u8]) {
        let taken = self.at.mark.offset(output);
        let data = if offset >= taken {
            self.lose(output, offset - taken);
            data
        } else {
            let known = usize::try_from(taken - offset).unwrap_or(usize::MAX).min(data.len());
            &data[known..]
        };
        self.batch_mark = self.at.mark;
        self.mark_gap();
        let time = now();
        let text_most = MAX_TEXT_BYTES.min(
            usize::try_from(self.batch_most().saturating_sub(RECORD_OVERHEAD_BYTES)).unwrap_or(0),
        );
        let mut rest = data;
        while !rest.is_empty() && text_most > 0 && self.file.is_some() {
            let (text, taken, full) =
                match rest.iter().take(text_most + 1).position(|b| *b == b'\n') {
                    Some(end) => (&rest[..end], end + 1, true),
                    None => {
                        let end = rest.len().min(text_most);
                        (&rest[..end], end, false)
                    }
                };
            self.push(&time, output, text, taken, full);
            rest = &rest[taken..];
        }
        self.flush();
        if !rest.is_empty() {
            let offset = self.at.mark.offset(output);
            self.at.mark.set_offset(output, offset + rest.len() as u64);
            self.drop_bytes(rest.len() as u64);
        }
        self.batch.shrink_to(4096);
    }

    /// Takes output only if it goes on where the log stands: bytes of which it is not certain that they are output make no gap.
    pub(crate) fn append_known(&mut self, output: Output, offset: u64, data: &[u8]) {
        let taken = self.taken_bytes(output);
        if offset <= taken && offset.saturating_add(data.len() as u64) > taken {
            self.append(output, offset, data);
        }
    }

    /// So many bytes of that stream were lost before they came here.
    pub(crate) fn lose(&mut self, output: Output, bytes: u64) {
        if bytes > 0 {
            let offset = self.at.mark.offset(output);
            self.at.mark.set_offset(output, offset.saturating_add(bytes));
            self.drop_bytes(bytes);
        }
    }

    /// Writes the mark of a gap that still has none.
    pub(crate) fn finish(&mut self) {
        self.batch_mark = self.at.mark;
        self.mark_gap();
        self.flush();
    }

    fn drop_bytes(&mut self, bytes: u64) {
        self.unmarked_bytes = self.unmarked_bytes.saturating_add(bytes);
        self.at.dropped_bytes = self.at.dropped_bytes.saturating_add(bytes);
        self.position_file.write(&self.at, self.at.mark, 0);
    }

    fn batch_most(&self) -> u64 {
        MAX_BATCH_BYTES.min(self.max_file_bytes / 2)
    }

    fn mark_gap(&mut self) {
        if self.unmarked_bytes > 0 && self.file.is_some() {
            let text = format!("{} bytes of output are missing here", self.unmarked_bytes);
            let record = LogRecord {
                time: now(),
                stream: LogStream::Gap,
                full: true,
                text: text.into_bytes(),
            };
            record.encode(&mut self.batch);
        }
    }

    fn push(&mut self, time: &str, output: Output, text: &[u8], taken: usize, full: bool) {
        let record_bytes = text.len() as u64 + RECORD_OVERHEAD_BYTES;
        if self.batch.len() as u64 + record_bytes > self.batch_most() {
            self.flush();
        }
        let record =
            LogRecord { time: time.into(), stream: output.stream(), full, text: text.into() };
        record.encode(&mut self.batch);
        self.batch_output_bytes += taken as u64;
        let offset = self.batch_mark.offset(output);
        self.batch_mark.set_offset(output, offset + taken as u64);
    }

    /// Writes the batch, in a new file where it does not fit into this one.
    fn flush(&mut self) {
        let bytes = self.batch.len() as u64;
        let output_bytes = std::mem::take(&mut self.batch_output_bytes);
        if bytes == 0 {
            return;
        }
        if self.at.mark.length_bytes + bytes > self.max_file_bytes {
            self.rotate();
        }
        self.batch_mark.length_bytes = self.at.mark.length_bytes + bytes;
        self.position_file.write(&self.at, self.batch_mark, output_bytes);
        let written = match &mut self.file {
            Some(file) => file.write_all(&self.batch).is_ok(),
            None => false,
        };
        self.batch.clear();
        let length_bytes = self.at.mark.length_bytes;
        self.at.mark = self.batch_mark;
        if written {
            self.unmarked_bytes = 0;
            self.at.current_output_bytes += output_bytes;
        } else {
            // A full disk: what was written of the batch is cut off again.
            self.at.mark.length_bytes = length_bytes;
            self.batch_mark = self.at.mark;
            if let Some(file) = &self.file {
                let _ = file.set_len(length_bytes);
            }
            self.drop_bytes(output_bytes);
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        let previous = format!("{}.1", self.name);
        let moved = |directory| rustix::fs::renameat(directory, &self.name, directory, previous);
        if self.directory.as_ref().is_some_and(|directory| moved(directory).is_ok()) {
            self.at.mark.length_bytes = 0;
            self.at.forget_previous();
        }
        self.open_file();
        self.position_file.write(&self.at, self.at.mark, 0);
    }
}

#[cfg(test)]
mod tests;
