//! Starting: what containers share, then each container; and processes from outside.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use atoll_model::causes::with_causes;
use atoll_sys::placed_child::Place;
use atoll_sys::process::{self, ProcessIdentity};
use atoll_wire::guest::{Boot, ProcessSpec};
use atoll_wire::shim::Init;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::Serialize;

use super::bundle::{self, Paths, Role};
use super::file_systems::{self, make_directory};
use super::{GvisorEngine, KEEPER, container_id, keeper_directory, limits};
use crate::engine::{Begun, EngineError, StandardStreams};

impl GvisorEngine {
    /// Control group, mount namespace, and each container's file systems.
    pub(super) fn prepare_host(&mut self) -> Result<(), EngineError> {
        let group = self.cgroup_root()?.create(&self.plan.uid, None).map_err(|error| {
            EngineError::new("make the sandbox's control group", with_causes(&error))
        })?;
        group
            .set(&limits::of_sandbox(&self.plan, self.plan.boost_millis == 0))
            .map_err(|error| EngineError::new("limit the sandbox", with_causes(&error)))?;
        let network = self.resources.network_namespace.take();
        let place = Place::new(&group, network).map_err(|error| {
            EngineError::new("enter the sandbox's control group", with_causes(&error))
        })?;
        self.group = Some(group);
        self.place = Some(place);
        make_directory(&self.directory, 0o700)?;
        make_directory(self.runsc.root(), 0o700)?;
        file_systems::enter(self.host.hide_proc_sys_net)?;
        // One program for the guests of all sandboxes.
        file_systems::seal(&self.guest_binary, &self.sealed_guest())?;
        // gVisor has a sysfs of its own.
        drop(self.resources.sysfs.take());
        let named = std::mem::take(&mut self.resources.volumes);
        self.volumes().mount(&self.plan, &named)?;
        let disks = std::mem::take(&mut self.resources.disks);
        for container in &self.plan.containers {
            let directory = self.container_directory(container);
            let disk = disks.iter().find(|(name, _)| *name == container.name);
            let (_, disk) = disk.ok_or_else(|| {
                EngineError::new("mount the disk", format!("{} was given none", container.name))
            })?;
            directory.make()?;
            directory.mount(disk, &container.layers)?;
            directory.write_names(&self.plan.hostname, self.network.as_ref())?;
        }
        Ok(())
    }

    /// Starts the Sentry with a guest that nobody speaks with.
    pub(super) fn start_keeper(&mut self) -> Result<(), EngineError> {
        let what = "start the Sentry";
        let directory = keeper_directory(&self.directory);
        directory.make()?;
        let root = directory.root();
        make_directory(&root, 0o755)?;
        let guest = self.sealed_guest();
        let volumes = self.volumes();
        let paths = Paths { root: &root, tmp: None, guest: &guest, volumes: &volumes };
        write_json(directory.bundle(), "config.json", &bundle::keeper(&self.plan, &paths))?;
        let fifo = directory.bundle().join("input");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .map_err(|errno| EngineError::new(what, errno))?;
        let open = |path: &Path| -> Result<OwnedFd, EngineError> {
            // Both ways: the Sentry holds the writing end too, so that the keeper's input never ends.
            rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| EngineError::new(what, errno))
        };
        let null = Path::new("/dev/null");
        let streams =
            StandardStreams { input: open(&fifo)?, output: open(null)?, diagnostics: open(null)? };
        self.run(KEEPER, directory.bundle(), what, streams)
    }

    /// Starts a container of the plan.
    pub(super) fn start_container(
        &mut self,
        index: usize,
        streams: StandardStreams,
    ) -> Result<(), EngineError> {
        let container = self.container(index)?;
        let what = format!("start container {}", container.name);
        let directory = self.container_directory(container);
        let (root, tmp) = (directory.root(), directory.tmp());
        let disk_at_tmp = container.read_only_root || !directory.image_fills_tmp();
        let guest = self.sealed_guest();
        let volumes = self.volumes();
        let tmp = disk_at_tmp.then_some(&*tmp);
        let paths = Paths { root: &root, tmp, guest: &guest, volumes: &volumes };
        let role = match self.has_keeper() {
            true => Role::Member { sandbox_id: KEEPER },
            false => Role::Sandbox,
        };
        let config = bundle::container(&self.plan, container, role, &paths);
        write_json(directory.bundle(), "config.json", &config)?;
        let id = container_id(&self.plan, Some(index));
        self.run(&id, directory.bundle(), &what, streams)
    }

    /// `runsc run --detach` does what `create` and then `start` do, without a second start of the program (35 ms). It ends when the
    /// container's first process has been started; the Sentry is then this shim's, as the nearest subreaper.
    fn run(
        &mut self,
        id: &str,
        bundle: &Path,
        what: &str,
        streams: StandardStreams,
    ) -> Result<(), EngineError> {
        let pid_file = bundle.join("sentry.pid");
        let (mut command, log) = self.runsc.command(id);
        command.arg("run").arg("--detach").arg("--pid-file").arg(&pid_file);
        command.arg("--bundle").arg(bundle).arg(id);
        let result = self.runsc.run(what, (command, log), self.place.as_ref(), Some(streams));
        self.note_children();
        result?;
        if self.process.is_none() {
            let pid = read_pid(what, &pid_file)?;
            let identity = ProcessIdentity::of(pid)
                .map_err(|error| EngineError::new(what, with_causes(&error)))?
                .ok_or_else(|| EngineError::new(what, "the Sentry is gone already"))?;
            self.process = Some(identity);
        }
        Ok(())
    }

    /// Remembers which children of this shim are in the sandbox's group, to reap them in the end.
    pub(super) fn note_children(&mut self) {
        let group = format!("/{}", self.plan.uid);
        for pid in process::children_of_self() {
            // One that has ended is in no group's list any more, but still says where it was.
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
            if groups.is_ok_and(|text| text.lines().any(|line| line.contains(&group))) {
                self.children.insert(pid);
            }
        }
    }

    /// What a container's guest is told.
    pub(super) fn boot_of(&self, index: usize) -> Result<Boot, EngineError> {
        let container = self.container(index)?;
        let filter = atoll_sys::seccomp::container_filter().map_err(|error| {
            EngineError::new("compile the system call filter", with_causes(&error))
        })?;
        Ok(Boot {
            hostname: None,
            seccomp_filter_base64: STANDARD.encode(filter),
            pids_limit: Some(container.limits.pids),
            user_limits: Some(limits::of_users(&self.plan)),
        })
    }

    /// Starts a process beside an image's own first process, by `runsc exec`. Its exit is that of the process that this gives.
    pub(super) fn enter(
        &mut self,
        index: usize,
        spec: &ProcessSpec,
        streams: StandardStreams,
    ) -> Result<Begun, EngineError> {
        let container = self.container(index)?;
        let what = format!("start a process in container {}", container.name);
        if container.init != Init::Image {
            return Err(EngineError::new(what, "its guest starts processes: ask the guest"));
        }
        if spec.terminal.is_some() {
            return Err(EngineError::new(what, "a terminal needs atoll's guest as first process"));
        }
        let directory = self.container_directory(container);
        self.entered = self.entered.saturating_add(1);
        let name = format!("exec{}", self.entered);
        let process_file = format!("{name}.json");
        write_json(directory.bundle(), &process_file, &bundle::image_process(&self.plan, spec))?;
        let pid_file = directory.bundle().join(format!("{name}.pid"));
        let (mut command, log) = self.runsc.command(&name);
        command.arg("exec").arg("--detach").arg("--pid-file").arg(&pid_file);
        command.arg("--process").arg(directory.bundle().join(&process_file));
        command.arg(container_id(&self.plan, Some(index)));
        let result = self.runsc.run(&what, (command, log), self.place.as_ref(), Some(streams));
        let pid = result.and_then(|()| read_pid(&what, &pid_file));
        for file in [directory.bundle().join(&process_file), pid_file] {
            // Absent when the command failed; gone with the bundle otherwise.
            let _ = fs::remove_file(file);
        }
        let failed = |message: String| EngineError::new(&what, message);
        let init = ProcessIdentity::of(pid?)
            .map_err(|error| failed(with_causes(&error)))?
            .ok_or_else(|| failed("it is gone already".into()))?;
        let ended = init
            .open()
            .map_err(|error| failed(with_causes(&error)))?
            .ok_or_else(|| failed("it is gone already".into()))?;
        Ok(Begun { init, ended })
    }
}

fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), EngineError> {
    let path = directory.join(name);
    let failed = |message: String| EngineError::new(format!("write {}", path.display()), message);
    let bytes = serde_json::to_vec(value).map_err(|error| failed(error.to_string()))?;
    fs::write(&path, bytes).map_err(|error| failed(error.to_string()))
}

fn read_pid(what: &str, path: &Path) -> Result<i32, EngineError> {
    let text = fs::read_to_string(path)
        .map_err(|error| EngineError::new(what, format!("{}: {error}", path.display())))?;
    text.trim()
        .parse()
        .map_err(|_| EngineError::new(what, format!("{} holds no pid", path.display())))
}
