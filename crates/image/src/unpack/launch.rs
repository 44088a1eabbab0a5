//! Running the helper: the program, its bounds in time, and what its end means.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Limits, Mode, Outcome, Request, UnpackError};

/// Longest answer read: the lists of a million paths do not fit, and no real layer has a thousandth of that.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// How much of the helper's standard error is kept.
const MAX_COMPLAINT_BYTES: u64 = 2048;

/// The program that unpacks: this binary itself, started in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackHelper {
    /// The program.
    pub program: PathBuf,
    /// Arguments that lead it to [`unpack_helper_main`](crate::unpack_helper_main); the request follows them.
    pub arguments: Vec<OsString>,
    /// A helper that takes longer is killed.
    pub timeout: Duration,
}

impl UnpackHelper {
    /// The running program with these arguments, and ten minutes for a layer.
    #[must_use]
    pub fn this_program(arguments: &[&str]) -> Self {
        Self::program("/proc/self/exe", arguments)
    }

    /// Another program with these arguments, and ten minutes for a layer.
    pub fn program(program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            timeout: Duration::from_secs(600),
        }
    }

    /// Starts a helper that tries what it must not be able to do. Blocks; needs root.
    ///
    /// # Errors
    /// [`UnpackError::Confinement`] when it could not shut itself in, or could do something all the same.
    pub fn check(&self) -> Result<(), UnpackError> {
        let io = |error: std::io::Error| UnpackError::Helper {
            detail: format!("cannot prepare the unpack helper: {error}"),
        };
        let directory = tempfile::tempdir().map_err(io)?;
        let nothing = File::open("/dev/null").map_err(io)?;
        let request = Request { mode: Mode::Probe, limits: Limits::new(0), parent_pid: own_pid() };
        match self.run(nothing, directory.path(), &request)? {
            Outcome::Probed(possible) if possible.is_empty() => Ok(()),
            Outcome::Probed(possible) => Err(UnpackError::Confinement {
                step: "check".to_owned(),
                detail: format!("these were possible: {}", possible.join(", ")),
            }),
            Outcome::Failed(error) => Err(error),
            Outcome::Unpacked(_) | Outcome::Staged(_) => Err(wrong_answer()),
        }
    }

    /// Runs the helper on an archive, in a directory. Blocks; must be called from a thread that stays until it returns: the helper
    /// dies with the thread that started it.
    pub(crate) fn run(
        &self,
        archive: File,
        directory: &Path,
        request: &Request,
    ) -> Result<Outcome, HelperFailure> {
        let request = serde_json::to_string(request)
            .map_err(|error| HelperFailure::Answer { detail: error.to_string() })?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(request)
            .env_clear()
            .current_dir(directory)
            .stdin(archive)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| HelperFailure::Start { program: self.program.clone(), source })?;
        let answer = read_in_background(child.stdout.take(), MAX_ANSWER_BYTES);
        let complaint = read_in_background(child.stderr.take(), MAX_COMPLAINT_BYTES);
        let status = self.wait(&mut child);
        let answer = answer.join().unwrap_or_default();
        let complaint = complaint.join().unwrap_or_default();
        let status = status?;
        if !status.success() {
            return Err(HelperFailure::Died { how: how_it_ended(status, &complaint) });
        }
        serde_json::from_slice(&answer)
            .map_err(|error| HelperFailure::Answer { detail: error.to_string() })
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus, HelperFailure> {
        let ended = wait_for_end(child, self.timeout);
        if !matches!(ended, Ok(true)) {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|source| HelperFailure::Wait { source });
        match ended {
            Ok(true) => status,
            Ok(false) => Err(HelperFailure::Timeout { seconds: self.timeout.as_secs() }),
            Err(source) => Err(HelperFailure::Wait { source }),
        }
    }
}

/// The helper gave no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperFailure {
    #[error("cannot start the unpack helper {}: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("cannot wait for the unpack helper: {source}")]
    Wait { source: std::io::Error },
    #[error("the unpack helper took longer than {seconds} s and was ended")]
    Timeout { seconds: u64 },
    #[error("the unpack helper died: {how}")]
    Died { how: String },
    #[error("the unpack helper's answer makes no sense: {detail}")]
    Answer { detail: String },
}

impl From<HelperFailure> for UnpackError {
    fn from(failure: HelperFailure) -> Self {
        Self::Helper { detail: failure.to_string() }
    }
}

/// The process that a helper must find as its parent.
pub(crate) fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_pid()
}

/// An answer to another question than was asked.
pub(crate) fn wrong_answer() -> UnpackError {
    UnpackError::Helper { detail: "the unpack helper's answer is to another question".to_owned() }
}

fn wait_for_end(child: &Child, timeout: Duration) -> std::io::Result<bool> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(std::io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a pipe to its end and keeps the first `limit` bytes.
fn read_in_background(
    pipe: Option<impl Read + Send + 'static>,
    limit: u64,
) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(limit).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        kept
    })
}

fn how_it_ended(status: ExitStatus, complaint: &[u8]) -> String {
    let end = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "no status".to_owned(),
    };
    let complaint = String::from_utf8_lossy(complaint);
    match complaint.trim() {
        "" => end,
        text => format!("{end}: {}", text.escape_debug()),
    }
}
