//! The guest itself: obeys messages, reaps, moves input and output, one thing at a time and never waiting but in one place.

use std::time::{Duration, Instant};

use atoll_sys::poll_set::PollSet;
use atoll_sys::seccomp::Filter;
use atoll_wire::guest::{
    Boot, Exited, GUEST_FAILURE_EXIT_CODE, GuestMessage, Hello, HelloAck, HostMessage, MAX_STREAMS,
    PROTOCOL_VERSION, ProcessSpec, SignalRequest, StartFailure, StartFailureKind, TransferOutcome,
    TransferRequest,
};
use base64::Engine as _;
use rustix::process::WaitOptions;

use crate::channel::{Channel, diagnose};
use crate::launch::{self, bad_request};
use crate::output::Leftovers;
use crate::processes::{self, KernelUse};
use crate::shield::{self, Shield};
use crate::stream::{MAIN_STREAM, Stream};
use crate::transfer::{self, Direction};

/// How often processes are counted where the kernel's own limit is not enough: nothing tells of a fork. Costs less of an idle Sentry's CPU
/// than can be measured (40 ms/s with or without); four times as often costs 10 ms/s.
const COUNT_INTERVAL: Duration = Duration::from_millis(200);
/// Descriptors that all streams and leftovers together may need, and some.
const DESCRIPTORS: u64 = 4096;
/// SOURCE: HOST_NAME_MAX of Linux.
const MAX_HOSTNAME_BYTES: usize = 64;
/// SIGKILL.
const KILL: i32 = 9;

/// What [`Boot`] has set.
#[derive(Debug)]
struct Booted {
    shield: Shield,
    /// Where the guest itself has to count.
    pids_limit: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Guest {
    kernel_use: KernelUse,
    channel: Channel,
    poll: PollSet,
    streams: Vec<Stream>,
    leftovers: Leftovers,
    /// A host whose version is known speaks.
    understood: bool,
    booted: Option<Booted>,
    /// The capabilities of the image's command: what root may use to copy files.
    capabilities: Option<u64>,
    /// Limits of open files for processes whose spec has none.
    open_files: (u64, u64),
    next_count: Instant,
    over_pids_limit: bool,
    /// The guest's own exit code: the end.
    ended: Option<i32>,
}

impl Guest {
    /// A guest that nobody has spoken to.
    pub(crate) fn new(kernel_use: KernelUse) -> Self {
        let open_files = atoll_sys::process::open_files_limit();
        if !atoll_sys::process::raise_open_files_limit(DESCRIPTORS) {
            diagnose("cannot raise the limit of open files");
        }
        Self {
            kernel_use,
            channel: Channel::default(),
            poll: PollSet::new(),
            streams: Vec::new(),
            leftovers: Leftovers::default(),
            understood: false,
            booted: None,
            capabilities: None,
            open_files,
            next_count: Instant::now(),
            over_pids_limit: false,
            ended: None,
        }
    }

    /// Serves until the host has acknowledged the end of the image's command; gives the exit code.
    pub(crate) fn run(mut self) -> i32 {
        loop {
            self.reap();
            self.enforce_pids_limit();
            self.serve_streams();
            self.channel.flush();
            if let Some(code) = self.ended {
                return code;
            }
            if let Err(errno) = self.wait() {
                diagnose(&format!("cannot wait for events: {errno}"));
                return GUEST_FAILURE_EXIT_CODE;
            }
            self.channel.receive(&self.poll);
            while let Some((stream, message)) = self.channel.next() {
                self.obey(stream, message);
            }
        }
    }

    fn wait(&mut self) -> Result<(), rustix::io::Errno> {
        self.poll.clear();
        let mut timeout = self.channel.arm(&mut self.poll);
        for stream in &mut self.streams {
            stream.arm(&mut self.poll, &self.channel);
        }
        self.leftovers.arm(&mut self.poll);
        if let Some(until) = self.until_next_count() {
            timeout = Some(timeout.map_or(until, |other| other.min(until)));
        }
        if self.channel.has_room() && self.streams.iter().any(Stream::is_eager) {
            timeout = Some(Duration::ZERO);
        }
        self.poll.wait(timeout)
    }

    /// Every ended child is reaped: those of streams, and orphans that fell to the first process.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let exited = Exited {
                code: status.exit_status(),
                signal: status.terminating_signal(),
                pids_limit: self.over_pids_limit,
            };
            if let Some(stream) = self.streams.iter_mut().find(|stream| stream.pid() == Some(pid)) {
                stream.end(exited);
            }
        }
    }

    /// Each round another stream is first, so that none is served only when the others leave room.
    fn serve_streams(&mut self) {
        let (poll, channel, leftovers) = (&self.poll, &mut self.channel, &mut self.leftovers);
        leftovers.serve(poll);
        self.streams.retain_mut(|stream| stream.serve(poll, channel, leftovers));
        if self.streams.len() > 1 {
            self.streams.rotate_left(1);
        }
    }

    fn obey(&mut self, stream: u32, message: HostMessage) {
        if let HostMessage::Hello(hello) = message {
            return self.hello(&hello);
        }
        if !self.understood {
            return diagnose("a message before a Hello of a known version was passed over");
        }
        match message {
            HostMessage::Hello(_) => {}
            HostMessage::Boot(boot) => self.boot(&boot),
            HostMessage::Start(spec) if stream == MAIN_STREAM => {
                self.capabilities.get_or_insert(spec.capabilities);
                self.start(stream, spec);
            }
            HostMessage::Exec(spec) if stream != MAIN_STREAM => self.start(stream, spec),
            HostMessage::Start(_) | HostMessage::Exec(_) => {
                diagnose(&format!("stream {stream} is not for that request"));
            }
            HostMessage::Upload(request) => self.transfer(stream, Direction::Upload, &request),
            HostMessage::Download(request) => self.transfer(stream, Direction::Download, &request),
            HostMessage::ListProcesses => {
                self.channel.send(stream, GuestMessage::Processes(processes::list()));
            }
            HostMessage::SetHostname(name) => {
                let answer =
                    set_hostname(&name).map_or_else(GuestMessage::Refused, |()| GuestMessage::Done);
                self.channel.send(stream, answer);
            }
            HostMessage::Signal(SignalRequest { signal, everyone: true }) => {
                if let Err(errno) = processes::signal_everyone(signal) {
                    diagnose(&format!("cannot send signal {signal} to everyone: {errno}"));
                }
            }
            HostMessage::ExitAck => self.acknowledged(stream),
            message => self.obey_stream(stream, message),
        }
    }

    /// Messages for a stream. One that is gone was ended by itself, not by the host: nothing is wrong.
    fn obey_stream(&mut self, number: u32, message: HostMessage) {
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.number() == number) else {
            return;
        };
        match message {
            HostMessage::Stdin(bytes) => stream.stdin(&bytes, &mut self.channel),
            HostMessage::StdinEnd => stream.stdin_end(&mut self.channel),
            HostMessage::Resize(size) => stream.resize(size),
            HostMessage::Signal(request) => stream.signal(request),
            HostMessage::Credit(bytes) => stream.credit(bytes),
            HostMessage::Detach => stream.detach(&mut self.leftovers),
            _ => {}
        }
    }

    fn hello(&mut self, hello: &Hello) {
        self.understood = hello.versions.contains(&PROTOCOL_VERSION);
        self.channel.greet();
        let mut streams: Vec<_> = self.streams.iter().map(Stream::state).collect();
        streams.sort_by_key(|state| state.stream);
        let ack = HelloAck {
            version: if self.understood { PROTOCOL_VERSION } else { 0 },
            epoch: hello.epoch,
            build: env!("CARGO_PKG_VERSION").into(),
            booted: self.booted.is_some(),
            streams,
        };
        self.channel.send(MAIN_STREAM, GuestMessage::HelloAck(ack));
        if self.understood {
            for stream in &mut self.streams {
                stream.begin_again(&mut self.channel);
            }
        }
    }

    fn boot(&mut self, boot: &Boot) {
        if self.booted.is_some() {
            return diagnose("a second Boot was passed over");
        }
        match prepare_boot(boot) {
            Ok(booted) => self.booted = Some(booted),
            Err(reason) => self.channel.send(MAIN_STREAM, GuestMessage::Refused(reason)),
        }
    }

    /// Begins a process, or says why not.
    fn start(&mut self, number: u32, spec: ProcessSpec) {
        if self.is_taken(number) {
            return diagnose(&format!("stream {number} is in use already"));
        }
        let launched = match self.admit() {
            Ok(booted) => launch::launch(&spec, &booted.shield, self.open_files),
            Err(failure) => Err(failure),
        };
        match launched {
            Ok(launched) => self.streams.push(Stream::of_process(number, launched, spec)),
            Err(failure) if number == MAIN_STREAM => {
                self.streams.push(Stream::failed(number, failure, &mut self.channel))
            }
            Err(failure) => self.channel.send(number, GuestMessage::StartFailed(failure)),
        }
    }

    fn transfer(&mut self, number: u32, direction: Direction, request: &TransferRequest) {
        if self.is_taken(number) || number == MAIN_STREAM {
            return diagnose(&format!("stream {number} is in use already"));
        }
        let capabilities = self.capabilities.unwrap_or(0);
        let begun = self.admit().map_err(|failure| failure.message).and_then(|booted| {
            let shield = &booted.shield;
            let identity = launch::identity(&request.user, capabilities, true, &shield.filter)
                .map_err(|failure| failure.message)?;
            transfer::begin(direction, request, &identity, shield)
        });
        match begun {
            Ok(transfer) => self.streams.push(Stream::of_transfer(number, transfer)),
            Err(error) => {
                let outcome = TransferOutcome { error: Some(error) };
                self.channel.send(number, GuestMessage::TransferDone(outcome));
            }
        }
    }

    /// Whether another process may be started now.
    fn admit(&self) -> Result<&Booted, StartFailure> {
        let booted =
            self.booted.as_ref().ok_or_else(|| bad_request("the guest is not booted".into()))?;
        if self.streams.len() >= MAX_STREAMS {
            let message = format!(
                "{MAX_STREAMS} processes and copies run already, or wait to be acknowledged"
            );
            return Err(StartFailure { kind: StartFailureKind::TooManyProcesses, message });
        }
        Ok(booted)
    }

    fn is_taken(&self, number: u32) -> bool {
        self.streams.iter().any(|stream| stream.number() == number)
    }

    fn acknowledged(&mut self, number: u32) {
        let found = self.streams.iter().position(|stream| stream.number() == number);
        let Some((at, exited)) = found.and_then(|at| Some((at, self.streams[at].reported()?)))
        else {
            return;
        };
        self.streams.remove(at);
        if number == MAIN_STREAM {
            self.ended = Some(exited.shell_code());
        }
    }

    /// When to count again; `None` while there is no limit or nothing to count.
    fn until_next_count(&self) -> Option<Duration> {
        self.booted.as_ref()?.pids_limit?;
        let running = self.streams.iter().any(|stream| stream.pid().is_some());
        running.then(|| self.next_count.saturating_duration_since(Instant::now()))
    }

    /// Where the kernel does not limit a container: a workload of too many processes is ended as a whole.
    fn enforce_pids_limit(&mut self) {
        if self.until_next_count() != Some(Duration::ZERO) {
            return;
        }
        self.next_count = Instant::now() + COUNT_INTERVAL;
        let limit = self.booted.as_ref().and_then(|booted| booted.pids_limit).unwrap_or(u64::MAX);
        // The workload is the command and what comes of it. What the host has started beside is no fault of the workload's.
        let started = self.streams.iter().filter(|stream| stream.pid().is_some()).count() as u64;
        let enough = limit.saturating_add(started.saturating_sub(1));
        if processes::count_threads(self.kernel_use, enough) <= enough {
            return;
        }
        self.over_pids_limit = true;
        if let Err(errno) = processes::signal_everyone(KILL) {
            diagnose(&format!("cannot end a workload of too many processes: {errno}"));
        }
    }
}

fn prepare_boot(boot: &Boot) -> Result<Booted, String> {
    let filter = if boot.seccomp_filter_base64.is_empty() {
        None
    } else {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&boot.seccomp_filter_base64)
            .map_err(|error| format!("the system call filter is no base64: {error}"))?;
        let filter = Filter::from_bytes(&bytes);
        Some(filter.ok_or("the system call filter is no array of sock_filter")?)
    };
    let shield = shield::raise(boot.user_limits, filter.as_ref())?;
    if let Some(hostname) = &boot.hostname {
        set_hostname(hostname)?;
    }
    Ok(Booted { pids_limit: boot.pids_limit, shield })
}

/// Sets the hostname; one that is in force already needs no right to set it.
fn set_hostname(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_HOSTNAME_BYTES || name.contains('\0') {
        return Err(format!("a hostname has 1 to {MAX_HOSTNAME_BYTES} bytes"));
    }
    if rustix::system::uname().nodename().to_bytes() == name.as_bytes() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| format!("cannot set the hostname: {errno}"))
}
