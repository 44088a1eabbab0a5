//! A host for tests: starts the real guest program over two FIFOs and speaks the protocol.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atoll_sys::poll_set::PollSet;
use atoll_wire::frame::{Decoder, Frame, resync_padding};
use atoll_wire::guest::*;

/// Longest wait for anything: far above what is needed, so that only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One guest and its host.
pub(crate) struct Host {
    pub(crate) guest: Child,
    pub(crate) to_guest: File,
    pub(crate) from_guest: File,
    decoder: Decoder,
    frames: VecDeque<Frame>,
    _directory: tempfile::TempDir,
}

fn fifo(path: &Path) -> File {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    open(path)
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

impl Host {
    /// The guest as an ordinary child, greeted and booted without a filter.
    pub(crate) fn booted() -> Self {
        let mut host = Self::begin(&mut Command::new(env!("CARGO_BIN_EXE_atoll-guest")));
        host.hello(7);
        host.send(0, HostMessage::Boot(boot()));
        host
    }

    /// The guest by that command, not spoken to yet.
    pub(crate) fn begin(command: &mut Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let input = fifo(&directory.path().join("in"));
        let output = fifo(&directory.path().join("out"));
        let guest = command
            .stdin(Stdio::from(open(&directory.path().join("in"))))
            .stdout(Stdio::from(open(&directory.path().join("out"))))
            .spawn()
            .unwrap();
        rustix::io::ioctl_fionbio(&output, true).unwrap();
        Self {
            guest,
            to_guest: input,
            from_guest: output,
            decoder: Decoder::new(),
            frames: VecDeque::new(),
            _directory: directory,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.guest.id()).unwrap()
    }

    pub(crate) fn send(&mut self, stream: u32, message: HostMessage) {
        let mut bytes = Vec::new();
        message.into_frame(stream).unwrap().encode(&mut bytes).unwrap();
        self.to_guest.write_all(&bytes).unwrap();
    }

    pub(crate) fn hello(&mut self, epoch: u64) -> HelloAck {
        self.send(0, HostMessage::Hello(Hello { versions: vec![PROTOCOL_VERSION], epoch }));
        self.acknowledgement(epoch)
    }

    /// A new host in place of this one: what was read and not looked at is lost.
    pub(crate) fn take_over(&mut self, epoch: u64) -> HelloAck {
        self.decoder = Decoder::new();
        self.frames.clear();
        self.to_guest.write_all(&resync_padding()).unwrap();
        self.hello(epoch)
    }

    fn acknowledgement(&mut self, epoch: u64) -> HelloAck {
        loop {
            if let (0, GuestMessage::HelloAck(ack)) = self.next_message()
                && ack.epoch == epoch
            {
                return ack;
            }
        }
    }

    /// The next message, waited for.
    pub(crate) fn next_message(&mut self) -> (u32, GuestMessage) {
        self.message_within(PATIENCE).expect("the guest says something in time")
    }

    /// The next message, if one comes in that time.
    pub(crate) fn message_within(&mut self, time: Duration) -> Option<(u32, GuestMessage)> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some((frame.stream, GuestMessage::from_frame(frame).unwrap()));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut poll = PollSet::new();
            poll.add_reader(&self.from_guest);
            poll.wait(Some(left)).unwrap();
            self.read_some();
        }
    }

    fn read_some(&mut self) {
        let mut buffer = [0; 65536];
        if let Ok(bytes) = rustix::io::read(&self.from_guest, &mut buffer) {
            self.decoder.push(&buffer[..bytes]);
            while let Some(frame) = self.decoder.next_frame() {
                self.frames.push_back(frame);
            }
        }
    }

    /// Runs to the end; grants all output, acknowledges the exit.
    pub(crate) fn run(&mut self, stream: u32, spec: ProcessSpec) -> Ran {
        self.send(stream, HostMessage::Exec(spec));
        let ran = self.follow(stream);
        self.send(stream, HostMessage::ExitAck);
        ran
    }

    /// Follows a stream to its end. Messages of other streams are passed over.
    pub(crate) fn follow(&mut self, stream: u32) -> Ran {
        let mut ran = Ran::default();
        loop {
            let (from, message) = self.next_message();
            if from != stream {
                continue;
            }
            match message {
                GuestMessage::Stdout { offset, data } => {
                    assert_eq!(offset, ran.stdout.len() as u64, "no byte is missing");
                    self.send(stream, HostMessage::Credit(data.len() as u32));
                    ran.stdout.extend(data);
                }
                GuestMessage::Stderr { offset, data } => {
                    assert_eq!(offset, ran.stderr.len() as u64, "no byte is missing");
                    self.send(stream, HostMessage::Credit(data.len() as u32));
                    ran.stderr.extend(data);
                }
                GuestMessage::Started(started) => ran.pid = Some(started.pid),
                GuestMessage::Credit(bytes) => ran.granted += u64::from(bytes),
                GuestMessage::Exited(exited) => {
                    ran.exited = Some(exited);
                    return ran;
                }
                GuestMessage::StartFailed(failure) => {
                    ran.failure = Some(failure);
                    return ran;
                }
                GuestMessage::TransferDone(outcome) => {
                    ran.transferred = Some(outcome);
                    return ran;
                }
                other => panic!("unexpected on stream {stream}: {other:?}"),
            }
        }
    }

    /// Waits for one message of a stream that is not output; output before it is dropped.
    pub(crate) fn event(&mut self, stream: u32) -> GuestMessage {
        loop {
            match self.next_message() {
                (_, GuestMessage::Stdout { .. } | GuestMessage::Stderr { .. }) => {}
                (from, message) if from == stream => return message,
                _ => {}
            }
        }
    }

    /// Descriptors that the guest has open.
    pub(crate) fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.guest.id())).unwrap().count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Everything that descends from the guest goes with it, the reaped guest last.
        for pid in descendants(self.guest.id()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.guest.kill();
        let _ = self.guest.wait();
    }
}

/// Processes below one, by /proc.
pub(crate) fn descendants(root: u32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = vec![root.to_string()];
    while let Some(pid) = next.pop() {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_ascii_whitespace() {
            found.push(child.parse().unwrap());
            next.push(child.to_owned());
        }
    }
    found
}

/// What came of a process.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) pid: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) granted: u64,
    pub(crate) exited: Option<Exited>,
    pub(crate) failure: Option<StartFailure>,
    pub(crate) transferred: Option<TransferOutcome>,
}

impl Ran {
    pub(crate) fn code(&self) -> Option<i32> {
        self.exited.and_then(|exited| exited.code)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub(crate) fn boot() -> Boot {
    Boot {
        hostname: None,
        seccomp_filter_base64: String::new(),
        pids_limit: None,
        user_limits: None,
    }
}

/// A process of the test's own user.
pub(crate) fn spec(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            supplementary_gids: Vec::new(),
        },
        capabilities: 0,
        no_new_privileges: true,
        stdin: false,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

pub(crate) fn shell(script: &str) -> ProcessSpec {
    spec(&["sh", "-c", script])
}

pub(crate) const SUCCESS: Exited = Exited { code: Some(0), signal: None, pids_limit: false };
