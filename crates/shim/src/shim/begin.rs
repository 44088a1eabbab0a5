//! From a request to a running sandbox: a process of its own, a launch that was read and checked, containers that were begun.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use atoll_sys::forking::{EndedChildren, set_ended_children};
use atoll_sys::process::{
    ProcessIdentity, become_child_subreaper, begin_session, set_own_oom_score,
};
use atoll_wire::guest::HostMessage;
use atoll_wire::record::{EndRecord, RECORD_VERSION, ShimRecord};
use atoll_wire::shim::{
    Init, Launch, SHIM_PROTOCOL_VERSION, ShimEvent, ShimReply, SpawnRequest, container_directory,
};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::container::{Container, MAIN, process_id};
use super::{LINGER, Phase, SCRATCH_BYTES, Shim};
use crate::conversation::{Conversation, Role};
use crate::directory::{Directory, DirectoryError, Durability};
use crate::engine::Engine;
use crate::log::LogWriter;
use crate::peer::Peer;
use crate::spawner::{Given, MakeEngine};
use atoll_sys::clock;

/// Below almost everything, and above what must never be killed: with the shim goes the record of an exit.
const OOM_SCORE: i16 = -900;
/// How long a first process may take until the command has been exec'ed: many sandboxes may start at once on few cores.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that wait for their first poll.
const BACKLOG: i32 = 128;

/// Leaves the spawner: session, process group, standard streams, its way with children. Best effort where nothing depends on it.
pub(super) fn detach() {
    let _ = begin_session();
    let _ = become_child_subreaper();
    let _ = set_ended_children(EndedChildren::Stay);
    let _ = set_own_oom_score(OOM_SCORE);
    let _ = rustix::thread::set_name(c"atoll-shim");
    let _ = rustix::process::chdir("/");
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Begins or takes over. `None`: it could not, and who asked was told.
pub(super) fn begin(request: &SpawnRequest, given: Given, make_engine: MakeEngine) -> Option<Shim> {
    let mut first = given.conversation.and_then(|fd| Conversation::new(fd, Role::Subscriber).ok());
    let directory = match Directory::hold(&request.directory) {
        Ok(directory) => directory,
        Err(error) => {
            if let Some(mut one) = first {
                one.refuse(error.to_string());
            }
            return None;
        }
    };
    directory.reserve();
    let read = read_launch(&directory).and_then(|launch| {
        make_engine(&launch, given.resources)
            .map(|engine| (launch, engine))
            .map_err(|error| error.to_string())
    });
    let (launch, engine) = match read {
        Ok(read) => read,
        // What runs may be healthy although nobody can say what it is.
        Err(message) if request.adopt => {
            if let Some(mut one) = first {
                one.refuse(left_as_it_is(&message));
            }
            return None;
        }
        Err(message) => {
            fail_unread(&directory, first.as_mut(), message);
            return None;
        }
    };
    let mut shim = Shim::new(directory, launch, engine, request.adopt);
    if let Some(first) = first {
        shim.conversations.insert(0, first);
    }
    shim.tell(&ShimEvent::Spawned { at_monotonic_micros: clock::monotonic_micros() });
    if request.adopt {
        if let Err(why) = shim.take_over() {
            let why = left_as_it_is(&why);
            shim.conversations.values_mut().for_each(|one| one.refuse(why.clone()));
            return None;
        }
    } else if let Err(message) = shim.launch() {
        shim.fail_launch(message);
    }
    Some(shim)
}

fn left_as_it_is(why: &str) -> String {
    format!("the sandbox cannot be taken over, and was left as it is: {why}")
}

fn read_launch(directory: &Directory) -> Result<Launch, String> {
    let launch: Launch = directory
        .read("launch.json")
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("there is no launch.json in {}", directory.path().display()))?;
    check_launch(&launch, directory.path())?;
    Ok(launch)
}

/// What must hold for the names in a launch to be used as parts of paths.
fn check_launch(launch: &Launch, directory: &Path) -> Result<(), String> {
    if launch.version > SHIM_PROTOCOL_VERSION {
        return Err(format!(
            "launch.json has version {}, which is newer than this shim ({SHIM_PROTOCOL_VERSION})",
            launch.version
        ));
    }
    let uid = &launch.plan.uid;
    if uid.is_empty() || !uid.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("launch.json names no sandbox".into());
    }
    if launch.placement.directory != directory {
        return Err(format!(
            "launch.json is for {} and not for {}",
            launch.placement.directory.display(),
            directory.display()
        ));
    }
    if launch.plan.containers.is_empty() {
        return Err("launch.json names no container".into());
    }
    for (at, container) in launch.plan.containers.iter().enumerate() {
        let name = &container.name;
        if name.parse::<atoll_model::ids::ContainerName>().is_err() {
            return Err("launch.json has a container whose name cannot be used".into());
        }
        if launch.plan.containers[..at].iter().any(|earlier| earlier.name == *name) {
            return Err(format!("launch.json has two containers of the name {name}"));
        }
    }
    Ok(())
}

/// The sandbox cannot even be named: says so, on disk and to who asked. Nothing was made.
fn fail_unread(directory: &Directory, first: Option<&mut Conversation>, message: String) {
    let record = EndRecord {
        version: RECORD_VERSION,
        ended_at_unix_micros: clock::unix_micros(),
        containers: Vec::new(),
        launch_failure: Some(message.clone()),
        log_dropped_bytes: Vec::new(),
    };
    let _ = directory.write("end.json", &record, Durability::Disk);
    if let Some(one) = first {
        one.event(&ShimEvent::LaunchFailed { message });
    }
}

/// The socket to which clients connect. Reached through the directory's descriptor: a socket's path is limited to 107 bytes.
fn listen(directory: &Path) -> Result<OwnedFd, DirectoryError> {
    let path = directory.join("shim.sock");
    let failed = |operation| {
        let path = path.clone();
        move |errno: rustix::io::Errno| DirectoryError::Io { operation, path, source: errno.into() }
    };
    let parent = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open"))?;
    match rustix::fs::unlink(&path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(failed("remove")(errno)),
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(&parent);
    let address =
        SocketAddrUnix::new(format!("/proc/self/fd/{number}/shim.sock")).map_err(failed("name"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed("make"))?;
    rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::chmodat(CWD, &path, mode, rustix::fs::AtFlags::empty())
        .map_err(failed("protect"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
    Ok(socket)
}

impl Shim {
    fn new(directory: Directory, launch: Launch, engine: Box<dyn Engine>, adopted: bool) -> Self {
        Self {
            directory,
            launch,
            engine,
            listener: None,
            containers: Vec::new(),
            conversations: BTreeMap::new(),
            next_conversation: 1,
            scratch: vec![0; SCRATCH_BYTES],
            phase: Phase::Running,
            adopted,
            stop_asked: false,
            kill_at: None,
            end_boost_at: None,
            begun_by: None,
            tell_dropped_at: None,
            retry_at: None,
            tell_state_at: None,
            state_told: false,
            stuck_at: None,
            accept_at: None,
            launch_failure: None,
            end_boost_failures: 0,
            host_failure: None,
        }
    }

    /// Listens, and makes or opens every container's files.
    pub(super) fn open_files(&mut self, taking_over: bool) -> Result<(), DirectoryError> {
        self.listener = Some(listen(self.directory.path())?);
        let logs = self.directory.make_directory("logs")?;
        for plan in self.launch.plan.containers.clone() {
            let directory = self.directory.make_directory(&container_directory(&plan.name))?;
            let peer = Peer::open(&plan, &directory, taking_over)?;
            let log = LogWriter::open(&logs, &plan.name, plan.log_bytes);
            self.containers.push(Container::new(plan, peer, log));
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), String> {
        let said = |error: DirectoryError| error.to_string();
        self.open_files(false).map_err(said)?;
        let now = clock::monotonic();
        self.begun_by = Some(now + BEGIN_TIMEOUT);
        let boost = self.launch.plan.boost_millis;
        self.end_boost_at = (boost > 0).then(|| now + Duration::from_millis(boost));
        self.engine.prepare().map_err(|error| error.to_string())?;
        for at in 0..self.containers.len() {
            self.begin_container(at)?;
        }
        self.write_shim_record(Durability::Process).map_err(said)?;
        for at in 0..self.containers.len() {
            if self.containers[at].released {
                self.start_command(at)?;
            }
        }
        self.note_beginnings();
        Ok(())
    }

    /// Nobody is waited for any more once every command that is to start has.
    pub(super) fn note_beginnings(&mut self) {
        if !self.containers.iter().any(Container::is_beginning) {
            self.begun_by = None;
        }
    }

    /// Starts the command of a container that is held: on disk first, so that whoever takes over starts it too, and once.
    pub(super) fn start_held(&mut self, name: &str) -> Result<(), String> {
        let at = self.find(name)?;
        let container = &mut self.containers[at];
        if container.exit.is_some() || self.stop_asked {
            return Err(format!("container {name} has ended, or is about to"));
        }
        if container.released {
            return Ok(());
        }
        container.released = true;
        if let Err(error) = self.write_shim_record(Durability::Process) {
            self.containers[at].released = false;
            return Err(error.to_string());
        }
        // A guest that has not answered a shim which took over says by its answer whether it knows the command.
        if self.adopted && !self.containers[at].peer.is_acknowledged() {
            return Ok(());
        }
        self.begun_by = Some(clock::monotonic() + BEGIN_TIMEOUT);
        self.start_command(at)
    }

    pub(super) fn start_command(&mut self, at: usize) -> Result<(), String> {
        let container = &mut self.containers[at];
        if container.plan.init == Init::Image {
            self.start_image(at);
            return Ok(());
        }
        let start = HostMessage::Start(container.plan.process.clone());
        container.add_main_stream();
        container.peer.send(MAIN, start).map_err(|error| error.to_string())
    }

    /// Its guest reads Hello and Boot as soon as it runs, while the host goes on.
    fn begin_container(&mut self, at: usize) -> Result<(), String> {
        let boot = self.engine.boot(at).map_err(|error| error.to_string())?;
        let container = &mut self.containers[at];
        container.peer.send(MAIN, HostMessage::Boot(boot)).map_err(|error| error.to_string())?;
        let directory = self.directory.path().join(container_directory(&container.plan.name));
        let streams =
            container.peer.first_process_streams(&directory).map_err(|error| error.to_string())?;
        let begun = self.engine.begin(at, streams).map_err(|error| error.to_string())?;
        container.begun(begun);
        let name = container.plan.name.clone();
        let at_monotonic_micros = clock::monotonic_micros();
        self.tell(&ShimEvent::Isolated { container: name, at_monotonic_micros });
        Ok(())
    }

    /// Writes whose processes these are.
    pub(super) fn write_shim_record(&self, durability: Durability) -> Result<(), DirectoryError> {
        let me = ProcessIdentity::of_self().map_err(|error| DirectoryError::Damaged {
            path: "/proc/self/stat".into(),
            message: error.to_string(),
        })?;
        let record = ShimRecord {
            version: RECORD_VERSION,
            shim: process_id(&me),
            containers: self.containers.iter().filter_map(Container::record).collect(),
        };
        self.directory.write("shim.json", &record, durability)
    }

    pub(super) fn give_up_beginning(&mut self) {
        if let Some(slow) = self.containers.iter().find(|one| one.is_beginning()) {
            let message = format!(
                "the first process of container {} has not started its command within {} s",
                slow.plan.name,
                BEGIN_TIMEOUT.as_secs()
            );
            self.fail_launch(message);
        }
    }

    /// Takes everything back and says why.
    pub(super) fn fail_launch(&mut self, message: String) {
        self.launch_failure = Some(message);
        self.settle();
    }

    /// The last moment of the sandbox: what clients are owed they may still take.
    pub(super) fn be_over(&mut self) {
        self.phase = Phase::Over { until: clock::monotonic() + LINGER };
        (self.kill_at, self.end_boost_at, self.begun_by) = (None, None, None);
        (self.tell_dropped_at, self.retry_at) = (None, None);
    }

    /// What a subscriber hears first.
    pub(super) fn state_reply(&self) -> ShimReply {
        ShimReply::State(atoll_wire::shim::ShimState {
            containers: self.containers.iter().map(Container::state).collect(),
            adopted: self.adopted,
        })
    }
}

#[cfg(test)]
mod tests;
