//! Running programs with a bound in time: a test that hangs fails and says what it had seen.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long any single command may take. Far more than it needs, on a machine that does much else.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A call of the `atoll` under test, with nothing of the caller's environment that changes what it does.
pub fn atoll<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.args(arguments);
    for name in ["ATOLL_DATA_DIR", "ATOLL_SERVER", "ATOLL_TOKEN", "ATOLL_LOG"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// What was run, for messages.
    pub what: String,
    /// Exit code; `None`: a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the exit code is 0; gives standard output.
    #[track_caller]
    pub fn succeeded(&self) -> String {
        self.ended_with(0)
    }

    /// Fails the test unless the exit code is this; gives standard output.
    #[track_caller]
    pub fn ended_with(&self, code: i32) -> String {
        assert_eq!(
            self.code,
            Some(code),
            "{} should end with {code}\nstdout: {}\nstderr: {}",
            self.what,
            self.text(),
            self.stderr
        );
        self.text()
    }

    /// Fails the test unless standard error contains this.
    #[track_caller]
    pub fn complains(&self, expected: &str) -> &Self {
        assert!(
            self.stderr.contains(expected),
            "{} should say {expected:?}, but said {:?} (stdout {:?})",
            self.what,
            self.stderr,
            self.text()
        );
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.succeeded();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.what))
    }
}

/// Runs a command to its end with this input.
#[track_caller]
pub fn finish(command: Command, stdin: &[u8]) -> Finished {
    let mut running = Running::start(command);
    running.write(stdin);
    running.close_stdin();
    running.finish()
}

/// A program that runs; killed when dropped.
pub struct Running {
    what: String,
    child: Child,
    pidfd: OwnedFd,
    lines: mpsc::Receiver<Vec<u8>>,
    seen: Vec<u8>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<String>>,
    writers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a command with pipes.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}").replace(env!("CARGO_BIN_EXE_atoll"), "atoll");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd of a child");
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("a pipe");
        let stdout = std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                match reader.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {
                        if sender.send(line).is_err() {
                            break;
                        }
                    }
                }
            }
        });
        let mut stderr = child.stderr.take().expect("a pipe");
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Self {
            what,
            child,
            pidfd,
            lines,
            seen: Vec::new(),
            stdout: Some(stdout),
            stderr: Some(stderr),
            writers: Vec::new(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Writes to its standard input, in the background.
    pub fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if bytes.len() <= 4096 {
            if let Some(stdin) = &mut self.child.stdin {
                // It may have ended already: what it says tells more.
                let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
            }
            return;
        }
        let mut stdin = self.child.stdin.take().expect("standard input is open");
        let bytes = bytes.to_vec();
        self.writers.push(std::thread::spawn(move || {
            let _ = stdin.write_all(&bytes);
        }));
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child that was not waited for");
    }

    /// The next line of standard output that contains this; fails the test when it does not come.
    #[track_caller]
    pub fn line_with(&mut self, expected: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.extend_from_slice(&line);
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if text.contains(expected) {
                        return text;
                    }
                }
                Err(_) => {
                    let _ = self.child.kill();
                    let stderr = self.stderr.take().map(JoinHandle::join);
                    panic!(
                        "{}: no line with {expected:?} came, only {:?} and {stderr:?}",
                        self.what,
                        String::from_utf8_lossy(&self.seen)
                    );
                }
            }
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let timeout = Timespec::try_from(LIMIT).expect("a short time");
        let mut waiting = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ended = poll(&mut waiting, Some(&timeout)).expect("poll of a pidfd");
        if ended == 0 {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("a child's end");
        if let Some(stdout) = self.stdout.take() {
            let _ = stdout.join();
        }
        let mut stdout = std::mem::take(&mut self.seen);
        while let Ok(line) = self.lines.try_recv() {
            stdout.extend_from_slice(&line);
        }
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let finished = Finished { what: self.what.clone(), code: status.code(), stdout, stderr };
        assert!(ended > 0, "it did not end within {LIMIT:?}: {finished:?}");
        finished
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
