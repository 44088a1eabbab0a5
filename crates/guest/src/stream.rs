//! One process or transfer and its conversation with the host, from the request to the acknowledged end.
//!
//! ```text
//! Starting ──► Running ──► (ended, output still to be sent) ──► reported ──► forgotten (ExitAck)
//!    └──► failed: forgotten at once, but on stream 0 kept like an exit
//! ```

use std::os::fd::OwnedFd;
use std::rc::Rc;

use atoll_sys::poll_set::{PollSet, Slot};
use atoll_sys::workload::{Progress, Starting};
use atoll_wire::guest::{
    Exited, GuestKind, GuestMessage, INITIAL_WINDOW_BYTES, ProcessSpec, SignalRequest,
    StartFailure, Started, StreamState, TerminalSize, TransferOutcome,
};

use crate::channel::{Channel, diagnose};
use crate::input::Input;
use crate::launch::{self, Launched};
use crate::output::{Leftovers, Output};
use crate::shield;
use crate::terminal;
use crate::transfer::{Report, Transfer};

/// The stream of the image's command.
pub(crate) const MAIN_STREAM: u32 = 0;

#[derive(Debug)]
enum Kind {
    /// Forked; whether it executed its program is not known yet.
    Starting {
        starting: Starting,
        spec: Box<ProcessSpec>,
        slot: Option<Slot>,
    },
    Running,
    Transfer(Report),
    /// Its program could not be executed, or its exit was sent.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stream {
    number: u32,
    kind: Kind,
    /// The process, until it is reaped.
    pid: Option<i32>,
    /// The process, as the host was told.
    shown_pid: Option<i32>,
    input: Input,
    stdout: Output,
    stderr: Output,
    terminal: Option<Rc<OwnedFd>>,
    window: u64,
    ended: Option<Exited>,
    reported: Option<Exited>,
    detached: bool,
}

impl Stream {
    /// Of a process just forked.
    pub(crate) fn of_process(number: u32, launched: Launched, spec: ProcessSpec) -> Self {
        let Launched { starting, input, stdout, stderr, terminal } = launched;
        let pid = starting.pid();
        let kind = Kind::Starting { starting, spec: Box::new(spec), slot: None };
        Self { terminal, ..Self::new(number, kind, Some(pid), input, stdout, stderr) }
    }

    /// Of a transfer's helper process.
    pub(crate) fn of_transfer(number: u32, transfer: Transfer) -> Self {
        let Transfer { pid, input, stdout, stderr, report } = transfer;
        Self::new(number, Kind::Transfer(report), Some(pid), input, stdout, stderr)
    }

    /// Of a process that could not even be forked: kept until it is acknowledged.
    pub(crate) fn failed(number: u32, failure: StartFailure, channel: &mut Channel) -> Self {
        let [stdout, stderr] =
            [GuestKind::Stdout, GuestKind::Stderr].map(|kind| Output::new(kind, None, false));
        let mut stream = Self::new(number, Kind::Over, None, Input::default(), stdout, stderr);
        stream.fail(failure, channel);
        stream
    }

    fn new(
        number: u32,
        kind: Kind,
        pid: Option<i32>,
        input: Input,
        stdout: Output,
        stderr: Output,
    ) -> Self {
        Self {
            number,
            kind,
            pid,
            shown_pid: None,
            input,
            stdout,
            stderr,
            terminal: None,
            window: INITIAL_WINDOW_BYTES.into(),
            ended: None,
            reported: None,
            detached: false,
        }
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The process, as long as it was not reaped.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// How it ended, once the host was told.
    pub(crate) fn reported(&self) -> Option<Exited> {
        self.reported
    }

    /// What a host that takes over must know.
    pub(crate) fn state(&self) -> StreamState {
        StreamState {
            stream: self.number,
            pid: self.shown_pid,
            stdout_sent_bytes: self.stdout.sent_bytes(),
            stderr_sent_bytes: self.stderr.sent_bytes(),
            exited: self.reported,
        }
    }

    /// A new host: windows begin again.
    pub(crate) fn begin_again(&mut self, channel: &mut Channel) {
        self.window = INITIAL_WINDOW_BYTES.into();
        if !matches!(self.kind, Kind::Over) {
            channel.send(self.number, GuestMessage::Credit(self.input.window()));
        }
    }

    /// Adds what it waits for.
    pub(crate) fn arm(&mut self, poll: &mut PollSet, channel: &Channel) {
        if let Kind::Starting { starting, slot, .. } = &mut self.kind {
            *slot = Some(poll.add_reader(starting.status()));
            return;
        }
        self.input.arm(poll);
        if self.ended.is_none() && self.window > 0 && channel.has_room() {
            self.stdout.arm(poll);
            self.stderr.arm(poll);
        }
    }

    /// Does what can be done now. Says whether the stream is still to be kept.
    pub(crate) fn serve(
        &mut self,
        poll: &PollSet,
        channel: &mut Channel,
        leftovers: &mut Leftovers,
    ) -> bool {
        if !self.advance_start(poll, channel) {
            return false;
        }
        if matches!(self.kind, Kind::Starting { .. } | Kind::Over) {
            return true;
        }
        let granted = self.input.serve(poll);
        self.grant(granted, channel);
        self.stdout.serve(poll, self.number, &mut self.window, channel);
        self.stderr.serve(poll, self.number, &mut self.window, channel);
        match self.ended {
            Some(exited) => self.report(exited, channel, leftovers),
            None => true,
        }
    }

    /// Whether it has an end to report and nothing but the channel's room to wait for.
    pub(crate) fn is_eager(&self) -> bool {
        self.ended.is_some() && !matches!(self.kind, Kind::Over) && self.window > 0
    }

    /// Looks whether the program was executed; `false` when the stream is over with a failure.
    fn advance_start(&mut self, poll: &PollSet, channel: &mut Channel) -> bool {
        let Kind::Starting { starting, spec, slot } = &mut self.kind else { return true };
        let news = slot.take().is_some_and(|slot| poll.is_ready(slot)) || self.ended.is_some();
        if !news {
            return true;
        }
        match starting.progress() {
            Progress::Pending => true,
            Progress::Executed => {
                let pid = starting.pid();
                self.shown_pid = Some(pid);
                self.kind = Kind::Running;
                channel.send(self.number, GuestMessage::Started(Started { pid }));
                true
            }
            Progress::Failed(error) => {
                let failure = launch::describe(spec, error);
                self.fail(failure, channel)
            }
        }
    }

    fn fail(&mut self, failure: StartFailure, channel: &mut Channel) -> bool {
        self.kind = Kind::Over;
        self.input.close();
        drop((self.stdout.leave(), self.stderr.leave(), self.terminal.take()));
        let code = failure.kind.exit_code();
        self.reported = Some(Exited { code: Some(code), signal: None, pids_limit: false });
        channel.send(self.number, GuestMessage::StartFailed(failure));
        self.number == MAIN_STREAM
    }

    /// The process has been reaped.
    pub(crate) fn end(&mut self, exited: Exited) {
        self.pid = None;
        self.ended = Some(exited);
        self.input.close();
        self.stdout.begin_draining();
        self.stderr.begin_draining();
    }

    /// Tells the end when all output was sent; `false` when the stream is over.
    fn report(&mut self, exited: Exited, channel: &mut Channel, leftovers: &mut Leftovers) -> bool {
        let drained = self.stdout.drain(self.number, &mut self.window, channel)
            && self.stderr.drain(self.number, &mut self.window, channel);
        if !drained {
            return true;
        }
        self.leave(leftovers);
        if let Kind::Transfer(report) = &self.kind {
            let error = report.error(exited);
            channel.send(self.number, GuestMessage::TransferDone(TransferOutcome { error }));
            return false;
        }
        self.kind = Kind::Over;
        self.reported = Some(exited);
        channel.send(self.number, GuestMessage::Exited(exited));
        true
    }

    /// Leaves pipes to those who still hold the other end; closes the terminal, which hangs it up.
    fn leave(&mut self, leftovers: &mut Leftovers) {
        let sources = [self.stdout.leave(), self.stderr.leave()];
        if self.terminal.take().is_none() {
            sources.into_iter().flatten().for_each(|source| leftovers.adopt(source));
        }
    }

    fn grant(&mut self, bytes: usize, channel: &mut Channel) {
        if bytes > 0 && !self.detached {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            channel.send(self.number, GuestMessage::Credit(bytes));
        }
    }

    /// The host grants more output.
    pub(crate) fn credit(&mut self, bytes: u32) {
        self.window = self.window.saturating_add(bytes.into());
    }

    /// Standard input from the host.
    pub(crate) fn stdin(&mut self, bytes: &[u8], channel: &mut Channel) {
        let granted = self.input.push(bytes);
        self.grant(granted, channel);
    }

    /// The end of standard input.
    pub(crate) fn stdin_end(&mut self, channel: &mut Channel) {
        let granted = self.input.end();
        self.grant(granted, channel);
    }

    /// A new size of the terminal.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(master) = &self.terminal
            && let Err(errno) = terminal::resize(master, size)
        {
            diagnose(&format!("cannot resize a terminal: {errno}"));
        }
    }

    /// A signal for the process alone.
    pub(crate) fn signal(&self, request: SignalRequest) {
        // One that has ended and is not reaped yet takes it in silence; one that was reaped has no pid here.
        if let Some(pid) = self.pid
            && let Err(errno) = atoll_sys::signals::signal_process(pid, request.signal)
        {
            diagnose(&format!("cannot send signal {} to {pid}: {errno}", request.signal));
        }
    }

    /// Nobody listens any more.
    pub(crate) fn detach(&mut self, leftovers: &mut Leftovers) {
        self.detached = true;
        self.input.close();
        let had_terminal = self.terminal.is_some();
        self.leave(leftovers);
        // A process that has ended takes a signal in silence.
        let Some(pid) = self.pid else { return };
        if matches!(self.kind, Kind::Transfer(_)) {
            let _ = atoll_sys::signals::signal_process(pid, KILL);
        } else if had_terminal && shield::in_gvisor() {
            // Linux tells the leader of a terminal's session that its other end was closed; gVisor tells nobody.
            let _ = atoll_sys::signals::signal_process(pid, HANGUP);
        }
    }
}

/// SIGHUP.
const HANGUP: i32 = 1;
/// SIGKILL.
const KILL: i32 = 9;
