//! One process from outside: its pipes, its windows, its end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use atoll_sys::process::{Exit, ProcessIdentity, Wait, reap, send_signal};
use atoll_wire::frame::MAX_DATA_BYTES;
use atoll_wire::guest::{Exited, GuestMessage, HostMessage, INITIAL_WINDOW_BYTES, TransferOutcome};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::engine::{Begun, StandardStreams};
use crate::out_buffer::OutBuffer;

const INPUT: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const ENDED: u64 = 3;
/// What is kept of a copy's errors.
const MAX_ERROR_BYTES: usize = 1000;

/// One of its outputs.
#[derive(Debug)]
struct Output {
    /// `None`: it has ended.
    fd: Option<OwnedFd>,
    offset: u64,
    stderr: bool,
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    input: Option<OwnedFd>,
    waiting_input: OutBuffer,
    input_ends: bool,
    outputs: [Output; 2],
    /// So many bytes of output may still be sent.
    window: u64,
    /// Nobody takes its output any more.
    detached: bool,
    identity: Option<ProcessIdentity>,
    ended: Option<OwnedFd>,
    exited: Option<Exited>,
    told: bool,
    /// It makes a copy: its errors are collected.
    transfer: Option<Vec<u8>>,
    messages: VecDeque<GuestMessage>,
}

impl Process {
    /// The main process, whose FIFOs are open.
    pub(super) fn of_main(input: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            input,
            waiting_input: OutBuffer::default(),
            input_ends: false,
            outputs: [(stdout, false), (stderr, true)].map(|(fd, stderr)| Output {
                fd: Some(fd),
                offset: 0,
                stderr,
            }),
            window: u64::from(INITIAL_WINDOW_BYTES),
            detached: false,
            identity: None,
            ended: None,
            exited: None,
            told: false,
            transfer: None,
            messages: VecDeque::new(),
        }
    }

    /// Another process, to be started with these streams.
    pub(super) fn new(stdin: bool, transfer: bool) -> Result<(Self, StandardStreams), Errno> {
        let (their_input, our_input) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            (read, Some(write))
        } else {
            let null =
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            (null, None)
        };
        let (our_output, output) = output_pipe()?;
        let (our_diagnostics, diagnostics) = output_pipe()?;
        let mut process = Self::of_main(our_input, our_output, our_diagnostics);
        process.transfer = transfer.then(Vec::new);
        Ok((process, StandardStreams { input: their_input, output, diagnostics }))
    }

    pub(super) fn is_transfer(&self) -> bool {
        self.transfer.is_some()
    }

    pub(super) fn begun(&mut self, begun: Begun) {
        self.identity = Some(begun.init);
        self.ended = Some(begun.ended);
    }

    pub(super) fn ended(&mut self, exited: Exited) {
        self.exited = Some(exited);
    }

    pub(super) fn go_on_from(&mut self, stdout_bytes: u64, stderr_bytes: u64) {
        for (output, bytes) in self.outputs.iter_mut().zip([stdout_bytes, stderr_bytes]) {
            output.offset = bytes;
        }
    }

    pub(super) fn sources(&self) -> Vec<(u64, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        if let Some(input) = self.input.as_ref().filter(|_| !self.waiting_input.is_empty()) {
            sources.push((INPUT, input.as_fd(), PollFlags::OUT));
        }
        if self.window > 0 || self.detached {
            for (kind, output) in [STDOUT, STDERR].into_iter().zip(&self.outputs) {
                if let Some(fd) = &output.fd {
                    sources.push((kind, fd.as_fd(), PollFlags::IN));
                }
            }
        }
        if let Some(ended) = &self.ended {
            sources.push((ENDED, ended.as_fd(), PollFlags::IN));
        }
        sources
    }

    pub(super) fn ready(&mut self, kind: u64, scratch: &mut [u8]) {
        match kind {
            INPUT => self.write_input(),
            STDOUT => self.read_output(0, scratch),
            STDERR => self.read_output(1, scratch),
            _ => {
                self.ended = None;
                let pid = self.identity.as_ref().map_or(0, |identity| identity.pid);
                let exit = reap(pid, Wait::Now).ok().flatten();
                self.exited = Some(exited(exit));
                self.read_outputs(scratch);
            }
        }
    }

    /// Takes what a guest would be sent about it.
    pub(super) fn take(&mut self, message: HostMessage) {
        match message {
            HostMessage::Stdin(data) => {
                self.waiting_input.push_bytes(&data);
                self.write_input();
            }
            HostMessage::StdinEnd => {
                self.input_ends = true;
                self.write_input();
            }
            HostMessage::Credit(bytes) => {
                self.window = self.window.saturating_add(u64::from(bytes));
            }
            HostMessage::Detach => self.detached = true,
            HostMessage::Signal(request) => {
                let process = self.identity.as_ref().map(ProcessIdentity::open);
                if let Some(Ok(Some(process))) = process {
                    let _ = send_signal(process.as_fd(), request.signal);
                }
            }
            _ => {}
        }
    }

    fn write_input(&mut self) {
        let before = self.waiting_input.len();
        let broken = match &self.input {
            Some(input) => self.waiting_input.write_to(input.as_fd()).is_err(),
            None => true,
        };
        if broken {
            // Nobody reads it: it is taken and dropped, so that its sender does not wait.
            self.waiting_input = OutBuffer::default();
            self.input = None;
        }
        let taken = before - self.waiting_input.len();
        if taken > 0 {
            self.messages.push_back(GuestMessage::Credit(u32::try_from(taken).unwrap_or(0)));
        }
        if self.input_ends && self.waiting_input.is_empty() {
            self.input = None;
        }
    }

    /// Reads what is there, as far as the window allows.
    pub(super) fn read_outputs(&mut self, scratch: &mut [u8]) {
        for index in 0..self.outputs.len() {
            self.read_output(index, scratch);
        }
    }

    fn read_output(&mut self, index: usize, scratch: &mut [u8]) {
        let most = if self.detached {
            scratch.len()
        } else {
            usize::try_from(self.window)
                .unwrap_or(usize::MAX)
                .min(MAX_DATA_BYTES)
                .min(scratch.len())
        };
        let output = &mut self.outputs[index];
        let Some(fd) = &output.fd else { return };
        if most == 0 {
            return;
        }
        let count = match rustix::io::read(fd, &mut scratch[..most]) {
            Ok(0) => {
                output.fd = None;
                return;
            }
            Ok(count) => count,
            Err(_) => return,
        };
        if self.detached {
            return;
        }
        let data = scratch[..count].to_vec();
        if output.stderr
            && let Some(errors) = &mut self.transfer
        {
            let room = MAX_ERROR_BYTES.saturating_sub(errors.len());
            errors.extend_from_slice(&data[..data.len().min(room)]);
            return;
        }
        let offset = output.offset;
        output.offset += count as u64;
        self.window -= count as u64;
        self.messages.push_back(if output.stderr {
            GuestMessage::Stderr { offset, data }
        } else {
            GuestMessage::Stdout { offset, data }
        });
    }

    /// Hands over what is to be told; the end last, when nothing more can be read.
    pub(super) fn give_messages(
        &mut self,
        stream: u32,
        messages: &mut VecDeque<(u32, GuestMessage)>,
    ) {
        messages.extend(self.messages.drain(..).map(|message| (stream, message)));
        let Some(exited) = self.exited.filter(|_| !self.told && self.outputs_are_empty()) else {
            return;
        };
        self.told = true;
        let last = match &self.transfer {
            Some(errors) => GuestMessage::TransferDone(outcome(exited, errors)),
            None => GuestMessage::Exited(exited),
        };
        messages.push_back((stream, last));
    }

    fn outputs_are_empty(&self) -> bool {
        self.outputs.iter().all(|output| match &output.fd {
            Some(fd) => !rustix::io::ioctl_fionread(fd).is_ok_and(|bytes| bytes > 0),
            None => true,
        })
    }
}

fn exited(exit: Option<Exit>) -> Exited {
    let (code, signal) = match exit {
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    Exited { code, signal, pids_limit: false }
}

fn outcome(exited: Exited, errors: &[u8]) -> TransferOutcome {
    let error = (exited.code != Some(0)).then(|| {
        let text = String::from_utf8_lossy(errors);
        format!("the image's tar ended with {}: {}", exited.shell_code(), text.trim())
    });
    TransferOutcome { error }
}

/// A pipe whose other end is open for reading too, so that a process which outlives the shim waits instead of dying of SIGPIPE.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", write.as_raw_fd());
    let both = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, both))
}
