//! How a forked child tells its parent which step failed: through a pipe that the exec closes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Failed;
use crate::engine::EngineError;

/// How long a child may take from the fork to the exec (guess: a host under heavy load and a slow disk take less).
const WITHIN: Duration = Duration::from_secs(20);
/// Longest report; a longer one is cut.
const LONGEST_BYTES: usize = 4096;
/// Between what was tried and how it failed.
const SEPARATOR: char = '\0';

/// Makes the two ends: the parent's, the child's.
pub(super) fn channel() -> Result<(OwnedFd, OwnedFd), EngineError> {
    pipe_with(PipeFlags::CLOEXEC).failed(|| "make a pipe")
}

/// The child's last words.
pub(super) fn send(writer: OwnedFd, error: &EngineError) {
    let text = format!("{}{SEPARATOR}{}", error.operation, error.message);
    let bytes = text.as_bytes();
    // Nobody is left to be told of a failure to tell; the exit code says that there was one.
    let _ = File::from(writer).write_all(&bytes[..bytes.len().min(LONGEST_BYTES)]);
}

/// Waits until the child has become another program.
///
/// # Errors
/// What the child said, or that it took too long.
pub(super) fn receive(reader: OwnedFd) -> Result<(), EngineError> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&reader, PollFlags::IN)], left.as_ref()) {
            Ok(0) => {
                let message = format!("it was not done after {} s", WITHIN.as_secs());
                return Err(EngineError::new("build the container", message));
            }
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).failed(|| "wait for the container's first process"),
        }
    }
    let mut bytes = Vec::new();
    // A report is written at once, and its writer ends after it.
    let mut report = File::from(reader).take(LONGEST_BYTES as u64);
    report.read_to_end(&mut bytes).failed(|| "read the first process's report")?;
    if bytes.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes);
    let (operation, message) = text.split_once(SEPARATOR).unwrap_or((&*text, "no reason given"));
    Err(EngineError::new(operation, message))
}
