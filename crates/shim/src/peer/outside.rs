//! A container whose first process is the image's own: what a guest would do inside, done from outside.
//!
//! Owns the pipes of the main process and of those that clients start. Starts and signals nothing itself: it says what it needs, and
//! the shim asks the engine. Has no terminals, since these would have to be made inside. When the shim dies, the main process's output
//! waits for the next one, but its input ends: only a guest can keep that open.

mod process;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::Path;

use atoll_wire::guest::{
    Exited, GuestMessage, HostMessage, ProcessSpec, StartFailure, StartFailureKind, Started,
    TransferRequest, UserIds,
};
use rustix::event::PollFlags;

use super::Part;
use super::channel::open_null;
use crate::directory::{DirectoryError, FifoEnd, make_fifo, open_fifo};
use crate::engine::{Begun, StandardStreams};
use process::Process;

/// The main process's stream.
const MAIN: u32 = 0;
/// A descriptor's part is its stream's number and, in these low bits, which of the stream's it is.
const KIND_BITS: u32 = 2;

/// What only the engine can do.
#[derive(Debug)]
pub(crate) enum Need {
    /// Start a process in the container.
    Start {
        /// Its stream.
        stream: u32,
        /// What to start.
        process: Box<ProcessSpec>,
        /// Its ends.
        streams: StandardStreams,
    },
    /// A signal for the first process.
    Signal(i32),
    /// Everything in the container is to end.
    Kill,
}

/// The shim's side.
#[derive(Debug)]
pub(crate) struct Outside {
    processes: BTreeMap<u32, Process>,
    messages: VecDeque<(u32, GuestMessage)>,
    needs: VecDeque<Need>,
}

impl Outside {
    /// Makes the main process's FIFOs where there are none, and opens them.
    pub(super) fn open(directory: &Path, stdin: bool) -> Result<Self, DirectoryError> {
        let ours = |name: &str| {
            let path = directory.join(name);
            make_fifo(&path)?;
            open_fifo(&path, FifoEnd::Ours)
        };
        let input = if stdin { Some(ours("stdin")?) } else { None };
        let main = Process::of_main(input, ours("stdout")?, ours("stderr")?);
        Ok(Self {
            processes: BTreeMap::from([(MAIN, main)]),
            messages: VecDeque::new(),
            needs: VecDeque::new(),
        })
    }

    /// The other ends. Its outputs are open for reading too: the process never loses its last reader.
    pub(super) fn first_process_streams(
        &self,
        directory: &Path,
    ) -> Result<StandardStreams, DirectoryError> {
        let stdin = directory.join("stdin");
        Ok(StandardStreams {
            input: if stdin.exists() {
                open_fifo(&stdin, FifoEnd::TheirsToRead)?
            } else {
                open_null()?
            },
            output: open_fifo(&directory.join("stdout"), FifoEnd::Theirs)?,
            diagnostics: open_fifo(&directory.join("stderr"), FifoEnd::Theirs)?,
        })
    }

    /// The main process's outputs have come so far already.
    pub(crate) fn go_on_from(&mut self, stdout_bytes: u64, stderr_bytes: u64) {
        if let Some(main) = self.processes.get_mut(&MAIN) {
            main.go_on_from(stdout_bytes, stderr_bytes);
        }
    }

    /// Takes what a guest would be sent.
    pub(super) fn take(&mut self, stream: u32, message: HostMessage) {
        match message {
            HostMessage::Exec(process) => self.begin(stream, process, false),
            HostMessage::Upload(request) => self.begin(stream, unpack(request), true),
            HostMessage::Download(request) => self.begin(stream, pack(request), true),
            HostMessage::ListProcesses => {
                let why = "processes of a container with init: image cannot be listed from outside";
                self.messages.push_back((stream, GuestMessage::Refused(why.into())));
            }
            HostMessage::Signal(request) if request.everyone && request.signal == 9 => {
                self.needs.push_back(Need::Kill);
            }
            HostMessage::Signal(request) if request.everyone || stream == MAIN => {
                self.needs.push_back(Need::Signal(request.signal));
            }
            HostMessage::ExitAck => {
                self.processes.remove(&stream);
            }
            message => {
                if let Some(process) = self.processes.get_mut(&stream) {
                    process.take(message);
                    process.give_messages(stream, &mut self.messages);
                }
            }
        }
    }

    fn begin(&mut self, stream: u32, spec: ProcessSpec, transfer: bool) {
        if spec.terminal.is_some() {
            let message =
                "a container with init: image gives no terminal to exec: leave it out".into();
            return self.fail(stream, StartFailureKind::BadRequest, message);
        }
        match Process::new(spec.stdin, transfer) {
            Ok((process, streams)) => {
                self.processes.insert(stream, process);
                self.needs.push_back(Need::Start { stream, process: Box::new(spec), streams });
            }
            Err(errno) => {
                self.fail(
                    stream,
                    StartFailureKind::Other,
                    format!("cannot make its pipes: {errno}"),
                );
            }
        }
    }

    fn fail(&mut self, stream: u32, kind: StartFailureKind, message: String) {
        self.processes.remove(&stream);
        let failure = StartFailure { kind, message };
        self.messages.push_back((stream, GuestMessage::StartFailed(failure)));
    }

    /// What is needed next.
    pub(crate) fn next_need(&mut self) -> Option<Need> {
        self.needs.pop_front()
    }

    /// The answer to [`Need::Start`].
    pub(crate) fn started(&mut self, stream: u32, begun: Result<Begun, String>) {
        match begun {
            Ok(begun) => {
                let Some(process) = self.processes.get_mut(&stream) else { return };
                let pid = begun.init.pid;
                if !process.is_transfer() {
                    self.messages.push_back((stream, GuestMessage::Started(Started { pid })));
                }
                process.begun(begun);
            }
            Err(why) => self.fail(stream, StartFailureKind::Other, why),
        }
    }

    /// The first process has ended so: told after the output that it left.
    pub(crate) fn main_ended(&mut self, exited: Exited, scratch: &mut [u8]) {
        if let Some(main) = self.processes.get_mut(&MAIN) {
            main.ended(exited);
            main.read_outputs(scratch);
            main.give_messages(MAIN, &mut self.messages);
        }
    }

    pub(super) fn sources(&self) -> Vec<(Part, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (&stream, process) in &self.processes {
            for (kind, fd, interest) in process.sources() {
                sources.push(((u64::from(stream) << KIND_BITS) | kind, fd, interest));
            }
        }
        sources
    }

    pub(super) fn ready(&mut self, part: Part, scratch: &mut [u8]) {
        let Ok(stream) = u32::try_from(part >> KIND_BITS) else { return };
        if let Some(process) = self.processes.get_mut(&stream) {
            process.ready(part & ((1 << KIND_BITS) - 1), scratch);
            process.give_messages(stream, &mut self.messages);
        }
    }

    pub(super) fn has_messages(&self) -> bool {
        !self.messages.is_empty() || !self.needs.is_empty()
    }

    pub(super) fn next_message(&mut self) -> Option<(u32, GuestMessage)> {
        self.messages.pop_front()
    }
}

/// Copies are made by the image's own tar.
fn tar(arguments: [&str; 5], user: UserIds) -> ProcessSpec {
    ProcessSpec {
        args: std::iter::once("tar").chain(arguments).map(str::to_owned).collect(),
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user,
        capabilities: 0,
        no_new_privileges: true,
        stdin: true,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

fn unpack(request: TransferRequest) -> ProcessSpec {
    tar(["-x", "-f", "-", "-C", &request.path], request.user)
}

fn pack(request: TransferRequest) -> ProcessSpec {
    let path = Path::new(&request.path);
    let parent = path.parent().and_then(Path::to_str).unwrap_or("/");
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
    let name = format!("./{name}");
    tar(["-c", "-f", "-", &format!("--directory={parent}"), &name], request.user)
}
