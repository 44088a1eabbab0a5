//! A sandbox of the gvisor engine on this host: directory, network namespace, disks and streams, and all of it removed again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use atoll_shim::engine::{Begun, Engine, Resources, StandardStreams};
use atoll_sys::cgroup::{Cgroup, CgroupLayout, CgroupRoot};
use atoll_sys::disk_image::{TemplateImage, mount_image};
use atoll_sys::process::{self, Exit, ProcessIdentity, ProcessState, Wait};
use atoll_wire::guest::{ProcessSpec, UserIds};
use atoll_wire::shim::{
    ContainerLimits, ContainerPlan, DiskBackend, Engine as EngineKind, GvisorPlacement, Init,
    Launch, Placement, SHIM_PROTOCOL_VERSION, SandboxPlan,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest a test waits for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The runsc of this host; `None`, said aloud, when there is none.
pub(crate) fn runsc(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("runsc")).find(|it| it.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {test}: runsc missing");
    }
    found
}

/// One sandbox under test. Removed when dropped.
pub(crate) struct Sandbox {
    pub(crate) launch: Launch,
    pub(crate) engine: Box<dyn Engine>,
    directory: tempfile::TempDir,
    outputs: BTreeMap<usize, File>,
    /// This process's children in the sandbox's group, seen after each begin.
    pub(crate) children: Vec<ProcessIdentity>,
}

/// A process in a container of busybox.
pub(crate) fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        args: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".into(), "GREETING=hello".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: 0,
        no_new_privileges: true,
        stdin: true,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

/// A container whose first process is that script.
pub(crate) fn container(name: &str, layer: &Path, script: &str) -> ContainerPlan {
    ContainerPlan {
        name: name.into(),
        layers: vec![layer.to_owned()],
        read_only_root: false,
        disk_bytes: 16 << 20,
        log_bytes: 1 << 20,
        process: shell(script),
        init: Init::Image,
        limits: ContainerLimits { cpu_millis: 2000, memory_bytes: 256 << 20, pids: 64 },
        tmpfs: Vec::new(),
        volume_mounts: Vec::new(),
        stop_signal: 15,
        await_attach: false,
        held: false,
    }
}

/// A layer with a busybox and nothing else.
pub(crate) fn busybox_layer(directory: &Path) -> PathBuf {
    let layer = directory.join("layer");
    fs::create_dir_all(layer.join("bin")).unwrap();
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "dd", "df", "id", "ls", "mount", "hostname", "kill"] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    layer
}

impl Sandbox {
    /// A sandbox of these containers, prepared but with none begun. The function gets a busybox layer.
    pub(crate) fn prepare(runsc: PathBuf, plan: impl FnOnce(&Path) -> Vec<ContainerPlan>) -> Self {
        Self::prepare_with(runsc, plan, |_| {})
    }

    /// [`Self::prepare`] with changes to the launch.
    pub(crate) fn prepare_with(
        runsc: PathBuf,
        plan: impl FnOnce(&Path) -> Vec<ContainerPlan>,
        change: impl FnOnce(&mut Launch),
    ) -> Self {
        let mut sandbox = Self::unprepared(runsc, plan, change);
        sandbox.engine.prepare().unwrap();
        sandbox
    }

    /// What the server prepares, and an engine that has done nothing.
    pub(crate) fn unprepared(
        runsc: PathBuf,
        plan: impl FnOnce(&Path) -> Vec<ContainerPlan>,
        change: impl FnOnce(&mut Launch),
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        process::become_child_subreaper().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let containers = plan(&busybox_layer(directory.path()));
        let uid = format!("{:08x}{number:08x}", std::process::id());
        let mut launch = Launch {
            version: SHIM_PROTOCOL_VERSION,
            plan: SandboxPlan {
                uid,
                hostname: "island".into(),
                containers,
                volumes: Vec::new(),
                shm_bytes: 4 << 20,
                boost_millis: 0,
                network: atoll_wire::shim::NetworkPlan::Loopback,
                grants: Vec::new(),
                ports: Vec::new(),
            },
            placement: Placement {
                engine: EngineKind::Gvisor,
                directory: directory.path().join("sandbox"),
                cgroup_instance: format!("gvisor-test-{}-{number}", std::process::id()),
                first_host_id: None,
                guest_binary: directory.path().join("guest"),
                disk_backend: DiskBackend::Image,
                network: None,
                gvisor: Some(GvisorPlacement {
                    runsc,
                    root: directory.path().join("r"),
                    platform: "systrap".into(),
                    hide_proc_sys_net: true,
                }),
            },
        };
        fs::write(directory.path().join("guest"), atoll_programs::GUEST).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path().join("guest"), executable).unwrap();
        change(&mut launch);
        let resources = Resources {
            network_namespace: Some(new_network_namespace()),
            sysfs: None,
            disks: disks(directory.path(), &launch.plan),
            ..Resources::default()
        };
        let engine = atoll_shim::gvisor::engine(&launch, resources).unwrap();
        Self { launch, engine, directory, outputs: BTreeMap::new(), children: Vec::new() }
    }

    /// Begins a container; its output goes where [`Self::output`] reads, its input ends when the given file is closed.
    pub(crate) fn begin(&mut self, index: usize) -> (Begun, File) {
        let (streams, input, output) = streams();
        let begun = self.begin_with(index, streams);
        self.outputs.insert(index, output);
        (begun, input)
    }

    /// Begins a container with streams of the caller's.
    pub(crate) fn begin_with(&mut self, index: usize, streams: StandardStreams) -> Begun {
        let begun = self.engine.begin(index, streams).unwrap();
        self.note_children();
        begun
    }

    fn note_children(&mut self) {
        let mine = process::children_of_self();
        for pid in self.group().processes().unwrap_or_default() {
            if mine.contains(&pid) {
                self.children.extend(ProcessIdentity::of(pid).unwrap());
            }
        }
    }

    fn group(&self) -> Cgroup {
        let layout = CgroupLayout::detect().unwrap();
        let root = CgroupRoot::open(&layout, &self.launch.placement.cgroup_instance).unwrap();
        root.find(&self.launch.plan.uid, None).unwrap()
    }

    /// All output of a container that has ended, or will.
    pub(crate) fn output(&mut self, index: usize) -> String {
        read_all(self.outputs.remove(&index).unwrap())
    }

    /// The sandbox's directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The content of the first of these files that the sandbox's control group has.
    pub(crate) fn group_file(&self, controller: &str, names: &[&str]) -> String {
        let group = Path::new("atoll").join(&self.launch.placement.cgroup_instance);
        let group = group.join(&self.launch.plan.uid);
        let roots = ["/sys/fs/cgroup", &format!("/sys/fs/cgroup/{controller}")].map(PathBuf::from);
        let files = roots.iter().flat_map(|root| names.iter().map(|it| root.join(&group).join(it)));
        files.filter_map(|file| fs::read_to_string(file).ok()).next().expect("a control file")
    }

    /// Fails when anything of a removed sandbox is still on the host.
    pub(crate) fn assert_nothing_left(&self) {
        let placement = &self.launch.placement;
        assert!(!self.group().exists(), "its control group is left");
        for child in &self.children {
            assert_eq!(child.state().unwrap(), ProcessState::Gone, "{child:?} is not reaped");
        }
        let processes = processes_naming(self.path());
        assert!(processes.is_empty(), "processes are left: {processes:?}");
        assert!(!placement.directory.join("gvisor").exists(), "its directory is left");
        let root = placement.gvisor.as_ref().unwrap().root.join(&self.launch.plan.uid);
        assert!(!root.exists(), "runsc's state is left");
        let path = self.path().to_string_lossy().into_owned();
        for mounts in ["/proc/thread-self/mountinfo", "/proc/1/mountinfo"] {
            let text = fs::read_to_string(mounts).unwrap();
            assert!(!text.contains(&path), "mounts are left in {mounts}");
        }
    }

    /// Waits for a sole container's end: its output and exit.
    pub(crate) fn finish(&mut self, begun: &Begun) -> (String, Exit) {
        wait(begun);
        let exit = process::peek_exit(begun.init.pid, Wait::Now).unwrap().unwrap();
        (self.output(0), exit)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let removed = self.engine.remove();
        let groups = CgroupLayout::detect()
            .and_then(|layout| CgroupRoot::open(&layout, &self.launch.placement.cgroup_instance));
        let groups_removed = groups.and_then(|groups| groups.remove());
        if !std::thread::panicking() {
            removed.unwrap();
            groups_removed.unwrap();
        }
    }
}

/// Waits until a container has ended.
pub(crate) fn wait(begun: &Begun) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(&begun.ended, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "the container does not end");
}

/// Pipes for a first process: its ends, and the test's ends of input and of all output.
pub(crate) fn streams() -> (StandardStreams, File, File) {
    let (input, input_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (output_read, output) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let diagnostics = output.try_clone().unwrap();
    (StandardStreams { input, output, diagnostics }, input_write.into(), output_read.into())
}

/// Reads a pipe to its end, or fails in time.
pub(crate) fn read_all(mut from: File) -> String {
    read_until(&mut from, |_| false)
}

/// Reads until the text says enough or the pipe ends.
pub(crate) fn read_until(from: &mut File, enough: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut text = String::new();
    loop {
        if enough(&text) {
            return text;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let ready = poll(&mut [PollFd::new(&*from, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "no more output comes, and no end; so far: {text}");
        let mut part = [0_u8; 4096];
        let read = from.read(&mut part).unwrap();
        if read == 0 {
            return text;
        }
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
}

/// With its loopback up.
pub(crate) fn new_network_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        atoll_sys::clone::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn disks(directory: &Path, plan: &SandboxPlan) -> Vec<(String, OwnedFd)> {
    let disk = |container: &ContainerPlan| {
        let template = TemplateImage::prepare(directory, container.disk_bytes).unwrap();
        let path = directory.join(format!("{}.ext4", container.name));
        let image = template.instantiate(&path).unwrap();
        (container.name.clone(), mount_image(&image, &path).unwrap())
    };
    plan.containers.iter().map(disk).collect()
}

/// Processes, by pid, whose command line names this directory.
fn processes_naming(directory: &Path) -> BTreeSet<i32> {
    let name = directory.to_string_lossy().into_owned();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&name) {
            found.insert(pid);
        }
    }
    found
}
