//! A spawner, sandboxes and clients for tests of the shim's core: real processes, everything gone afterwards.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use atoll_sys::packet::{packet_pair, send_packet};
use atoll_sys::process::{ProcessIdentity, ProcessState, send_signal};
use atoll_wire::frame::{Decoder, Frame};
use atoll_wire::guest::{Exited, GuestMessage, HostMessage, ProcessSpec, UserIds};
use atoll_wire::record::{EndRecord, ProcessId, ShimRecord};
use atoll_wire::shim::{
    ContainerLimits, ContainerPlan, DescriptorRole, DiskBackend, EVENT_KIND, Engine, Init, Launch,
    Placement, REPLY_KIND, REQUEST_KIND, SHIM_PROTOCOL_VERSION, SandboxPlan, ShimEvent, ShimReply,
    ShimRequest, ShimState, SpawnRequest,
};

/// Longest a test waits for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something holds that nothing can announce.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The directory in which cargo puts programs for this test.
fn target_directory() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned()
}

/// A program of this build, as a file.
fn program(name: &str, bytes: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let half_made = directory.join(format!("{name}-{}", std::process::id()));
    fs::write(&half_made, bytes).unwrap();
    fs::set_permissions(&half_made, fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.join(name);
    fs::rename(&half_made, &path).unwrap();
    path
}

pub(crate) fn guest() -> PathBuf {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| program("core-test-guest", atoll_programs::GUEST)).clone()
}

fn shim_program() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| program("core-test-shim", atoll_programs::SHIM)).clone()
}

/// A spawner of its own process.
pub(crate) struct Spawner {
    pub(crate) socket: OwnedFd,
    pub(crate) process: Child,
}

impl Spawner {
    pub(crate) fn start() -> Self {
        let program = target_directory().join("examples/bare_spawner");
        assert!(program.is_file(), "run `cargo build -p atoll-shim --examples` first");
        Self::of(&program)
    }

    /// The program as it is delivered, with its engines.
    pub(crate) fn real() -> Self {
        Self::of(&shim_program())
    }

    fn of(program: &Path) -> Self {
        let (ours, theirs) = packet_pair().unwrap();
        let process = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" spawner 3<&0 </dev/null"])
            .arg(program)
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        Self { socket: ours, process }
    }

    /// Sends a request and gives the client's side of the shim's first conversation.
    pub(crate) fn request(&self, directory: &Path, adopt: bool) -> Client {
        self.request_with(directory, adopt, Vec::new())
    }

    /// [`Self::request`] with descriptors for the engine.
    pub(crate) fn request_with(
        &self,
        directory: &Path,
        adopt: bool,
        given: Vec<(DescriptorRole, OwnedFd)>,
    ) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut roles = vec![DescriptorRole::Conversation];
        roles.extend(given.iter().map(|(role, _)| role.clone()));
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(given.iter().map(|(_, descriptor)| descriptor.as_fd()));
        let request = SpawnRequest {
            version: SHIM_PROTOCOL_VERSION,
            directory: directory.to_owned(),
            adopt,
            descriptors: roles,
        };
        let packet = serde_json::to_vec(&request).unwrap();
        send_packet(self.socket.as_fd(), &packet, &descriptors).unwrap();
        Client::new(ours)
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process that runs a script.
pub(crate) fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: u64::MAX >> 23,
        no_new_privileges: true,
        stdin: true,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

/// A container whose command is that script.
pub(crate) fn container(name: &str, script: &str) -> ContainerPlan {
    ContainerPlan {
        name: name.into(),
        layers: Vec::new(),
        read_only_root: false,
        disk_bytes: 0,
        log_bytes: 16 << 20,
        process: shell(script),
        init: Init::Guest,
        limits: ContainerLimits { cpu_millis: 1000, memory_bytes: 1 << 30, pids: 100 },
        tmpfs: Vec::new(),
        volume_mounts: Vec::new(),
        stop_signal: 15,
        await_attach: false,
        held: false,
    }
}

/// A sandbox's directory. Whatever still runs of it is killed when it is dropped.
pub(crate) struct Sandbox {
    temporary: tempfile::TempDir,
    pub(crate) directory: PathBuf,
}

impl Sandbox {
    pub(crate) fn new(containers: Vec<ContainerPlan>) -> Self {
        Self::with(containers, |_| {})
    }

    /// [`Self::new`] with changes to the launch.
    pub(crate) fn with(containers: Vec<ContainerPlan>, change: impl FnOnce(&mut Launch)) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("0123456789abcdef");
        fs::create_dir(&directory).unwrap();
        let sandbox = Self { temporary, directory };
        let mut launch = Launch {
            version: SHIM_PROTOCOL_VERSION,
            plan: SandboxPlan {
                uid: "0123456789abcdef".into(),
                hostname: "box".into(),
                containers,
                volumes: Vec::new(),
                shm_bytes: 1 << 20,
                boost_millis: 0,
                network: atoll_wire::shim::NetworkPlan::Loopback,
                grants: Vec::new(),
                ports: Vec::new(),
            },
            placement: Placement {
                engine: Engine::Container,
                directory: sandbox.directory.clone(),
                cgroup_instance: "none".into(),
                first_host_id: None,
                guest_binary: guest(),
                gvisor: None,
                disk_backend: DiskBackend::Image,
                network: None,
            },
        };
        change(&mut launch);
        fs::write(sandbox.path("launch.json"), serde_json::to_vec(&launch).unwrap()).unwrap();
        sandbox
    }

    pub(crate) fn of_script(script: &str) -> Self {
        Self::new(vec![container("main", script)])
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A place outside the sandbox's own directory.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.path("shim.sock")).unwrap())
    }

    pub(crate) fn end(&self) -> Option<EndRecord> {
        let bytes = fs::read(self.path("end.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    pub(crate) fn record(&self) -> ShimRecord {
        serde_json::from_slice(&fs::read(self.path("shim.json")).unwrap()).unwrap()
    }

    pub(crate) fn shim(&self) -> ProcessIdentity {
        identity(&self.record().shim)
    }

    pub(crate) fn first_process(&self) -> ProcessIdentity {
        identity(&self.record().containers[0].init)
    }

    /// Kills the shim and waits until it is gone.
    pub(crate) fn kill_shim(&self) {
        let shim = self.shim();
        kill(&shim);
        wait_until("the shim is gone", || shim.state().unwrap() != ProcessState::Running);
    }

    /// The output that the log of that container holds, both files.
    pub(crate) fn log(&self, container: &str) -> Vec<atoll_wire::log::LogRecord> {
        let mut records = Vec::new();
        for name in [format!("logs/{container}.log.1"), format!("logs/{container}.log")] {
            let bytes = fs::read(self.path(&name)).unwrap_or_default();
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                records.push(atoll_wire::log::LogRecord::parse(line).unwrap());
            }
        }
        records
    }

    pub(crate) fn log_text(&self, container: &str) -> String {
        let mut text = Vec::new();
        for record in self.log(container) {
            text.extend_from_slice(&record.text);
            if record.full {
                text.push(b'\n');
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let Ok(bytes) = fs::read(self.path("shim.json")) else { return };
        let Ok(record) = serde_json::from_slice::<ShimRecord>(&bytes) else { return };
        kill(&identity(&record.shim));
        for container in &record.containers {
            kill(&identity(&container.init));
        }
    }
}

pub(crate) fn identity(id: &ProcessId) -> ProcessIdentity {
    ProcessIdentity {
        pid: id.pid,
        start_time_ticks: id.start_time_ticks,
        boot_id: id.boot_id.clone(),
    }
}

pub(crate) fn kill(process: &ProcessIdentity) {
    if let Ok(Some(pidfd)) = process.open() {
        let _ = send_signal(pidfd.as_fd(), 9);
    }
}

/// A client's side of a conversation.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::new() }
    }

    /// Another handle of the same connection, to send from another thread.
    pub(crate) fn clone_of(other: &Self) -> Self {
        Self { stream: other.stream.try_clone().unwrap(), decoder: Decoder::new() }
    }

    pub(crate) fn send_frame(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn send(&mut self, message: HostMessage) {
        self.send_frame(&message.into_frame(0).unwrap());
    }

    /// The next frame; `None` when the shim has closed.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame within {PATIENCE:?}: {error}"),
            }
        }
    }

    pub(crate) fn ask(&mut self, request: &ShimRequest) {
        let payload = serde_json::to_vec(request).unwrap();
        self.send_frame(&Frame { kind: REQUEST_KIND, stream: 0, payload });
    }

    pub(crate) fn reply(&mut self) -> ShimReply {
        let frame = self.frame().expect("a reply comes");
        assert_eq!(frame.kind, REPLY_KIND);
        serde_json::from_slice(&frame.payload).unwrap()
    }

    pub(crate) fn request(&mut self, request: &ShimRequest) -> ShimReply {
        self.ask(request);
        self.reply()
    }

    pub(crate) fn state(&mut self) -> ShimState {
        match self.reply() {
            ShimReply::State(state) => state,
            other => panic!("a state was awaited: {other:?}"),
        }
    }

    /// The next event; `None` when the shim has closed.
    pub(crate) fn event(&mut self) -> Option<ShimEvent> {
        let frame = self.frame()?;
        assert_eq!(frame.kind, EVENT_KIND, "{:?}", String::from_utf8_lossy(&frame.payload));
        Some(serde_json::from_slice(&frame.payload).unwrap())
    }

    /// Waits for the event that is wanted; those before it are given too.
    pub(crate) fn events_until(&mut self, wanted: impl Fn(&ShimEvent) -> bool) -> Vec<ShimEvent> {
        let mut events = Vec::new();
        loop {
            let event = self.event().unwrap_or_else(|| panic!("no such event after {events:?}"));
            events.push(event);
            if events.last().is_some_and(&wanted) {
                return events;
            }
        }
    }

    pub(crate) fn until_started(&mut self) -> Vec<ShimEvent> {
        self.events_until(|event| matches!(event, ShimEvent::Started { .. }))
    }

    pub(crate) fn until_ended(&mut self) -> Vec<ShimEvent> {
        self.events_until(|event| {
            matches!(event, ShimEvent::Ended | ShimEvent::LaunchFailed { .. })
        })
    }

    pub(crate) fn message(&mut self) -> Option<GuestMessage> {
        Some(GuestMessage::from_frame(self.frame()?).unwrap())
    }

    /// Takes everything until the stream's end, with credit for all of it: standard output, standard error, the end.
    pub(crate) fn finish(&mut self) -> Finished {
        let mut finished = Finished::default();
        while let Some(message) = self.message() {
            match message {
                GuestMessage::Stdout { offset, data } => {
                    assert_eq!(
                        offset - finished.first_offset(offset),
                        finished.stdout.len() as u64
                    );
                    finished.stdout.extend_from_slice(&data);
                    self.credit(data.len());
                }
                GuestMessage::Stderr { data, .. } => {
                    finished.stderr.extend_from_slice(&data);
                    self.credit(data.len());
                }
                GuestMessage::Exited(exited) => finished.exited = Some(exited),
                other => finished.others.push(other),
            }
        }
        finished
    }

    fn credit(&mut self, bytes: usize) {
        let mut frame = Vec::new();
        let credit = HostMessage::Credit(u32::try_from(bytes).unwrap());
        credit.into_frame(0).unwrap().encode(&mut frame).unwrap();
        // The stream may have ended in the meantime.
        let _ = self.stream.write_all(&frame);
    }
}

/// All that came on a stream.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exited: Option<Exited>,
    pub(crate) others: Vec<GuestMessage>,
    first: Option<u64>,
}

impl Finished {
    fn first_offset(&mut self, offset: u64) -> u64 {
        *self.first.get_or_insert(offset)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.exited.and_then(|exited| exited.code)
    }
}

/// Runs a script in a container and waits for its end.
pub(crate) fn exec(sandbox: &Sandbox, container: &str, script: &str) -> Finished {
    let mut client = sandbox.connect();
    let request = ShimRequest::Exec { container: container.into(), process: shell(script) };
    assert_eq!(client.request(&request), ShimReply::Ok);
    client.finish()
}
