//! Copies into and out of the container: a helper process that is the given user unpacks or packs, so that the kernel decides what it may
//! touch, and its failure is nobody else's.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use atoll_sys::workload::{self, Identity};
use atoll_wire::guest::{Exited, GuestKind, TransferRequest};
use rustix::io::Errno;

use crate::archive;
use crate::input::Input;
use crate::launch::{Pipe, null};
use crate::output::Output;
use crate::shield::Shield;

/// What a helper may use of memory: a header that claims a name of gigabytes ends the helper, not the sandbox.
const HELPER_ADDRESS_SPACE_BYTES: u64 = 128 * 1024 * 1024;
/// Most bytes of a helper's last words: fits into a pipe, so that saying them never waits.
const MAX_REPORT_BYTES: usize = 1024;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// A tar from the host is unpacked.
    Upload,
    /// A tar for the host is packed.
    Download,
}

/// A running helper.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) pid: i32,
    pub(crate) input: Input,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) report: Report,
}

/// Where a helper says why it failed.
#[derive(Debug)]
pub(crate) struct Report(OwnedFd);

impl Report {
    /// What to tell the host once the helper has ended; `None` when all is well.
    pub(crate) fn error(&self, exited: Exited) -> Option<String> {
        let mut bytes = vec![0; MAX_REPORT_BYTES];
        let read = rustix::io::read(&self.0, &mut bytes).unwrap_or(0);
        let words = String::from_utf8_lossy(&bytes[..read]).into_owned();
        match exited {
            Exited { code: Some(0), .. } => None,
            _ if !words.is_empty() => Some(words),
            Exited { signal: Some(signal), .. } => {
                Some(format!("the copy was ended by signal {signal}"))
            }
            _ => Some("the copy could not take on its user".into()),
        }
    }
}

/// Starts a helper.
///
/// # Errors
/// Why not, for people.
pub(crate) fn begin(
    direction: Direction,
    request: &TransferRequest,
    identity: &Identity,
    shield: &Shield,
) -> Result<Transfer, String> {
    if !request.path.starts_with('/') || request.path.contains('\0') {
        return Err(format!("{:?} is no absolute path", request.path));
    }
    prepare(direction, request, identity, shield)
        .map_err(|errno| format!("cannot begin a copy: {errno}"))
}

fn prepare(
    direction: Direction,
    request: &TransferRequest,
    identity: &Identity,
    shield: &Shield,
) -> Result<Transfer, Errno> {
    let user = &request.user;
    let null = null()?;
    let report = Pipe::for_output(user)?;
    let data = match direction {
        Direction::Upload => Pipe::for_input(user)?,
        Direction::Download => Pipe::for_output(user)?,
    };
    let standard = match direction {
        Direction::Upload => [data.process_end.as_fd(), null.as_fd(), report.process_end.as_fd()],
        Direction::Download => [null.as_fd(), data.process_end.as_fd(), report.process_end.as_fd()],
    };
    let work = || work(direction, &request.path);
    let pid = shield
        .fork(|| workload::start_helper(identity, standard, HELPER_ADDRESS_SPACE_BYTES, work))?
        .map_err(|error| error.source)?;
    let (input, source) = match direction {
        Direction::Upload => (Input::pipe(data.own_end), None),
        Direction::Download => (Input::default(), Some(Rc::new(data.own_end))),
    };
    Ok(Transfer {
        pid,
        input,
        stdout: Output::new(GuestKind::Stdout, source, false),
        stderr: Output::new(GuestKind::Stderr, None, false),
        report: Report(report.own_end),
    })
}

/// In the helper, as the user.
fn work(direction: Direction, path: &str) -> i32 {
    let outcome = match direction {
        Direction::Upload => descriptor(rustix::stdio::stdin()).and_then(|mut tar| {
            archive::unpack(&mut tar, path)?;
            // Padding behind the archive: the host is not left writing to nobody.
            std::io::copy(&mut tar, &mut std::io::sink()).map(drop)
        }),
        Direction::Download => {
            descriptor(rustix::stdio::stdout()).and_then(|tar| archive::pack(tar, path))
        }
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            let words: String = describe(&error).chars().take(MAX_REPORT_BYTES / 4).collect();
            let _ = rustix::io::write(rustix::stdio::stderr(), words.as_bytes());
            1
        }
    }
}

fn descriptor(standard: std::os::fd::BorrowedFd<'_>) -> std::io::Result<File> {
    standard.try_clone_to_owned().map(File::from)
}

/// The causes belong to the message: the archive library keeps the kernel's answer in them.
fn describe(error: &std::io::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.get_ref().and_then(|inner| inner.source());
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&inner.to_string());
        cause = inner.source();
    }
    message
}
