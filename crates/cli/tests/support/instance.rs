//! One atoll: started in a directory of its own on a free port; ended, and everything of it removed, when dropped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

use super::leftovers::Leftovers;
use super::program::{Finished, Running, atoll, finish};

/// How long something that was asked for may take to become true.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at, where nothing tells.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until something is true; fails the test, saying what was not, when it does not become so.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(INTERVAL);
    }
}

/// An atoll of a test's own.
pub struct Instance {
    directory: TempDir,
    /// The server's environment beyond the usual.
    environment: Vec<(String, String)>,
    ended: bool,
}

impl Instance {
    /// Starts one; returns once it serves.
    #[track_caller]
    pub fn start() -> Self {
        let instance = Self::not_started();
        instance.up();
        instance
    }

    /// A directory in which none has been started.
    pub fn not_started() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("atoll-test-")
            .tempdir()
            .expect("a temporary directory");
        // Tests share a host: those about the network bring one of their own.
        let environment = vec![("ATOLL_NETWORK".to_owned(), "off".to_owned())];
        Self { directory, environment, ended: false }
    }

    /// Sets a variable of servers that are started from now on.
    pub fn set_server_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the server (again).
    #[track_caller]
    pub fn up(&self) {
        let mut command =
            atoll(["up", "--enable-sim", "--detach", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(self.data_dir());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let finished = finish(command, b"");
        assert_eq!(finished.code, Some(0), "{finished:?}\n{}", self.server_log());
    }

    /// Its data directory, resolved.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("the directory is there")
    }

    /// What the server has logged.
    pub fn server_log(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("server.log")).unwrap_or_default()
    }

    /// A call of atoll for this instance.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let mut command = atoll(arguments);
        command.env("ATOLL_DATA_DIR", self.data_dir());
        command
    }

    /// Runs atoll to its end.
    #[track_caller]
    pub fn atoll<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        finish(self.command(arguments), b"")
    }

    /// Runs atoll to its end, with this input.
    #[track_caller]
    pub fn atoll_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Finished {
        finish(self.command(arguments), stdin)
    }

    /// Starts atoll, for what goes on meanwhile.
    #[track_caller]
    pub fn begin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        Running::start(self.command(arguments))
    }

    /// Names of the classes that can be had.
    #[track_caller]
    pub fn available_classes(&self) -> Vec<String> {
        let nodes = self.atoll(["get", "nodes", "-o", "json"]).json();
        let classes = nodes["items"][0]["classes"].as_array().expect("classes").clone();
        classes
            .iter()
            .filter(|class| class["available"] == true)
            .map(|class| class["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// A sandbox as the API has it; `None`: there is none of that name.
    #[track_caller]
    pub fn sandbox(&self, name: &str) -> Option<Value> {
        self.sandboxes().into_iter().find(|sandbox| sandbox["id"] == name)
    }

    /// All sandboxes.
    #[track_caller]
    pub fn sandboxes(&self) -> Vec<Value> {
        let list = self.atoll(["get", "sandboxes", "-o", "json"]).json();
        list["items"].as_array().expect("items").clone()
    }

    /// Fails the test when there is any sandbox.
    #[track_caller]
    pub fn has_no_sandboxes(&self) {
        let names: Vec<String> =
            self.sandboxes().iter().map(|sandbox| sandbox["id"].to_string()).collect();
        assert!(names.is_empty(), "left: {names:?}");
    }

    /// The server's process.
    pub fn server_pid(&self) -> Option<Pid> {
        let text = std::fs::read(self.data_dir().join("server.json")).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        let pid = record["process"]["pid"].as_i64()?;
        Pid::from_raw(i32::try_from(pid).ok()?)
    }

    /// kill -9 of the server.
    #[track_caller]
    pub fn kill_server(&self) {
        let pid = self.server_pid().expect("a server runs");
        // Its threads end one after the other: only the pidfd tells when all have, and with them its lock.
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("the server is there");
        kill_process(pid, Signal::KILL).expect("the server is there");
        let timeout = Timespec::try_from(PATIENCE).expect("a short time");
        let mut waiting = [PollFd::new(&process, PollFlags::IN)];
        let ended = poll(&mut waiting, Some(&timeout)).expect("poll of a pidfd");
        assert_eq!(ended, 1, "the server does not die");
    }

    /// What is left of it on the host.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.data_dir())
    }

    /// Ends it as a user does; fails the test when something is left.
    #[track_caller]
    pub fn end(mut self) {
        let down = self.atoll(["down"]);
        assert_eq!(down.code, Some(0), "{down:?}\n{}", self.server_log());
        let left = self.leftovers();
        assert!(left.is_empty(), "left after down: {left:#?}\n{}", self.server_log());
        self.ended = true;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if std::thread::panicking() {
            // What the server saw often says why.
            let log = self.server_log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            for line in tail.iter().rev() {
                println!("server.log: {line}");
            }
        }
        let mut down = self.command(["down", "--timeout", "20s"]);
        let _ = down.output();
        remove_rest(&self.data_dir());
    }
}

fn remove_rest(data_dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !Leftovers::of(data_dir).is_empty() && Instant::now() < deadline {
        Leftovers::remove(data_dir);
        // What was killed holds its directories and mounts until it has ended; nothing tells when all of it has.
        std::thread::sleep(INTERVAL);
    }
}
