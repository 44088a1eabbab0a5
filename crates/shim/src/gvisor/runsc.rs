//! Running the runsc program: flags, deadline, and the reason when it fails.
//!
//! Owns one log file for each command, read only when the command fails. Never leaves a command running beyond its deadline.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use atoll_sys::placed_child::Place;
use atoll_sys::process::{self, Exit};
use atoll_wire::shim::GvisorPlacement;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Deserialize;

use crate::engine::{EngineError, StandardStreams};

/// How long one runsc command may take. Bare commands take 20 to 200 ms; a loaded host is given time (guess).
pub(super) const COMMAND_WITHIN: Duration = Duration::from_secs(30);
/// Most bytes of a command's log that are looked at.
const LOG_BYTES: u64 = 64 * 1024;
/// Most characters of a reason that go to the user.
const REASON_CHARS: usize = 600;

/// How this sandbox's commands are called.
#[derive(Debug)]
pub(super) struct Runsc {
    program: PathBuf,
    /// `--root`: this sandbox's alone, so that removing it removes all that runsc keeps on disk.
    root: PathBuf,
    platform: String,
    log_directory: PathBuf,
    /// Others may change files that are mounted into it.
    shares_files: bool,
}

impl Runsc {
    /// Commands of one sandbox; logs go to a directory that exists by the first command.
    pub(super) fn new(
        host: &GvisorPlacement,
        uid: &str,
        log_directory: &Path,
        shares_files: bool,
    ) -> Self {
        Self {
            program: host.runsc.clone(),
            root: host.root.join(uid),
            platform: host.platform.clone(),
            log_directory: log_directory.to_owned(),
            shares_files,
        }
    }

    /// This sandbox's `--root`.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A command with its flags, and where it logs. `name` makes the log's name: one command at a time with one name.
    pub(super) fn command(&self, name: &str) -> (Command, PathBuf) {
        let log = self.log_directory.join(format!("{name}.log"));
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            // Nothing else of the server's environment reaches the Sentry.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(&log)
            .args(["--log-format=json", "--ignore-cgroups", "--network=sandbox", "--host-uds=none"])
            // The disk below is the sandbox's own and bounded: no layer of gVisor's over it.
            .arg("--overlay2=none")
            // Nobody but this sandbox changes its root, and what is mounted into it unless that is a named volume.
            .args([
                "--file-access=exclusive",
                if self.shares_files {
                    "--file-access-mounts=shared"
                } else {
                    "--file-access-mounts=exclusive"
                },
            ])
            .arg("--platform")
            .arg(&self.platform);
        (command, log)
    }

    /// Runs a command in a place to its end, and gives the reason when it fails.
    ///
    /// # Errors
    /// [`EngineError`] with what the command logged.
    pub(super) fn run(
        &self,
        operation: &str,
        (mut command, log): (Command, PathBuf),
        place: Option<&Place>,
        streams: Option<StandardStreams>,
    ) -> Result<(), EngineError> {
        let _ = fs::remove_file(&log);
        connect(&mut command, streams);
        let child = self.spawn(operation, &mut command, place)?;
        // The command holds copies of the streams; they close with it.
        drop(command);
        match wait_within(child, COMMAND_WITHIN) {
            Ok(Exit::Code(0)) => Ok(()),
            Ok(exit) => {
                let how = match exit {
                    Exit::Code(code) => format!("runsc exited with code {code}"),
                    Exit::Signal(signal) => format!("signal {signal} ended runsc"),
                };
                Err(EngineError::new(operation, reason(&log).unwrap_or(how)))
            }
            Err(problem) => {
                let logged = reason(&log).map(|text| format!(" ({text})")).unwrap_or_default();
                Err(EngineError::new(operation, format!("{problem}{logged}")))
            }
        }
    }

    /// Starts a command and leaves it running.
    ///
    /// # Errors
    /// [`EngineError`] when the program cannot be started.
    fn spawn(
        &self,
        operation: &str,
        command: &mut Command,
        place: Option<&Place>,
    ) -> Result<Child, EngineError> {
        if let Some(place) = place {
            place.apply(command).map_err(|error| EngineError::new(operation, error))?;
        }
        command.spawn().map_err(|error| {
            let message = match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => format!(
                    "{} cannot be started ({error}): install runsc, or choose class container",
                    self.program.display()
                ),
                _ => format!("{} cannot be started: {error}", self.program.display()),
            };
            EngineError::new(operation, message)
        })
    }
}

fn connect(command: &mut Command, streams: Option<StandardStreams>) {
    match streams {
        Some(streams) => {
            command.stdin(streams.input).stdout(streams.output).stderr(streams.diagnostics);
        }
        None => {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
}

/// Waits for a child's end, told by its pidfd; kills it when time runs out.
fn wait_within(mut child: Child, within: Duration) -> Result<Exit, String> {
    let deadline = Instant::now() + within;
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    let pidfd = process::open_child(pid).map_err(|error| error.to_string())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => break,
            Ok(_) => return child.wait().map(exit_of).map_err(|error| error.to_string()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
    }
    // Ended in between is fine.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("runsc did not end within {} s and was killed", within.as_secs()))
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match status.code() {
        Some(code) => Exit::Code(code),
        None => Exit::Signal(status.signal().unwrap_or(0)),
    }
}

#[derive(Deserialize)]
struct LogLine {
    msg: String,
}

/// The most telling line of a log: the first one, because what follows are consequences; with the last when they differ.
pub(super) fn reason(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    File::open(log).ok()?.take(LOG_BYTES).read_to_end(&mut text).ok()?;
    reason_in(&String::from_utf8_lossy(&text))
}

fn reason_in(text: &str) -> Option<String> {
    // Lines are not always ended: read JSON values one after the other.
    let lines = serde_json::Deserializer::from_str(text).into_iter::<LogLine>();
    let messages: Vec<String> = lines.map_while(Result::ok).map(|line| line.msg).collect();
    let (first, last) = (messages.first()?, messages.last()?);
    let whole = if first == last { first.clone() } else { format!("{last}: {first}") };
    let printable = whole.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(printable.take(REASON_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_the_first_and_last_message_bounded_and_printable() {
        let log = "{\"msg\":\"first\\u0007 \",\"level\":\"error\",\"time\":\"t\"}{\"msg\":\"middle\"}\n{\"msg\":\"last\"}{\"torn";
        assert_eq!(reason_in(log).as_deref(), Some("last: first  "));
        assert_eq!(reason_in("{\"msg\":\"only\"}").as_deref(), Some("only"));
        assert_eq!(reason_in("panic: not JSON"), None);
        let long = format!("{{\"msg\":\"{}\"}}", "x".repeat(5000));
        assert_eq!(reason_in(&long).map(|text| text.len()), Some(REASON_CHARS));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_at_its_deadline() {
        let child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        let pid = child.id();
        let problem = wait_within(child, Duration::from_millis(50)).expect_err("it does not end");
        assert!(problem.contains("did not end"), "{problem}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
    }
}
