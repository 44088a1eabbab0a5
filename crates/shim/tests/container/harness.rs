//! A sandbox of class `container` without server, spawner and guest: a directory, an image of busybox and the probe, and a driver.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_wire::guest::{ProcessSpec, UserIds};
use atoll_wire::shim::{
    ContainerLimits, ContainerPlan, DiskBackend, Engine, Init, Launch, Placement, SandboxPlan,
};

/// Programs of busybox that the image has.
const APPLETS: [&str; 21] = [
    "cat", "chmod", "cp", "dd", "echo", "grep", "head", "hostname", "id", "ln", "ls", "mkdir",
    "mount", "ps", "rm", "sh", "sleep", "stat", "touch", "true", "wc",
];
/// First id of the tests' range: nobody else's on a machine that follows the customs for subordinate ids.
const FIRST_HOST_ID: u32 = 700_000_000;

/// Whether containers can be tried here; says why not.
pub(crate) fn can_run(test: &str) -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("containers need root")
    } else if !CgroupLayout::detect().is_ok_and(|layout| layout.missing().is_empty()) {
        Some("this host has no control groups that limit memory, cpu and pids")
    } else if busybox().is_none() {
        Some("busybox-static is not installed")
    } else if probe().is_none() {
        Some("the probe cannot be built: gcc with a static C library is not installed")
    } else {
        None
    };
    if let Some(missing) = missing {
        println!("SKIPPED: container/{test}: {missing}");
    }
    missing.is_none()
}

/// A static busybox; ATOLL_TEST_BUSYBOX names one that is not installed.
fn busybox() -> Option<PathBuf> {
    let named = std::env::var_os("ATOLL_TEST_BUSYBOX").map(PathBuf::from);
    let installed = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    named.into_iter().chain(installed).find(|path| path.exists())
}

/// The probe, built once; ATOLL_TEST_PROBE names one that was built elsewhere.
fn probe() -> Option<&'static Path> {
    static PROBE: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROBE.get_or_init(build_probe).as_deref()
}

fn build_probe() -> Option<PathBuf> {
    if let Some(built) = std::env::var_os("ATOLL_TEST_PROBE") {
        return Some(built.into());
    }
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let half_made = directory.join(format!("container-probe-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/probe.c");
    let built = Command::new("gcc")
        .args(["-static", "-O1", "-w", "-o"])
        .args([&half_made, &source])
        .status()
        .is_ok_and(|status| status.success());
    let probe = directory.join("container-probe");
    (built && fs::rename(&half_made, &probe).is_ok()).then_some(probe)
}

/// The driver; ATOLL_TEST_DRIVER names one that was built elsewhere.
fn driver() -> PathBuf {
    std::env::var_os("ATOLL_TEST_DRIVER").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            test.parent().unwrap().with_file_name("examples").join("container_driver")
        },
        PathBuf::from,
    )
}

/// A sandbox that is described but not begun: change `launch` and the image before [`Prepared::start`].
pub(crate) struct Prepared {
    pub(crate) launch: Launch,
    /// Everything of this test.
    pub(crate) directory: tempfile::TempDir,
}

/// A container plan of one shell command.
pub(crate) fn container(name: &str, layer: &Path, script: &str) -> ContainerPlan {
    ContainerPlan {
        name: name.into(),
        layers: vec![layer.into()],
        read_only_root: false,
        disk_bytes: 16 << 20,
        log_bytes: 1 << 20,
        process: process(script),
        init: Init::Image,
        limits: ContainerLimits { cpu_millis: 1000, memory_bytes: 64 << 20, pids: 64 },
        tmpfs: Vec::new(),
        volume_mounts: Vec::new(),
        stop_signal: 15,
        await_attach: false,
        held: false,
    }
}

/// A shell command, as the container's root with the default capabilities.
pub(crate) fn process(script: &str) -> ProcessSpec {
    ProcessSpec {
        args: ["/bin/sh", "-c", script].map(String::from).into(),
        env: vec!["PATH=/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: CapabilitySet::container_default().mask(),
        no_new_privileges: true,
        stdin: false,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 0,
        open_files: None,
    }
}

impl Prepared {
    /// One container `main` that runs `script` in a small image.
    pub(crate) fn new(script: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("atoll-container-").tempdir().unwrap();
        let layer = directory.path().join("layer");
        make_image(&layer);
        fs::create_dir(directory.path().join("sandbox")).unwrap();
        let launch = Launch {
            version: atoll_wire::shim::SHIM_PROTOCOL_VERSION,
            plan: SandboxPlan {
                uid: format!("{:08x}{number:08x}", std::process::id()),
                hostname: "island".into(),
                containers: vec![container("main", &layer, script)],
                volumes: Vec::new(),
                shm_bytes: 1 << 20,
                boost_millis: 0,
                network: atoll_wire::shim::NetworkPlan::Loopback,
                grants: Vec::new(),
                ports: Vec::new(),
            },
            placement: Placement {
                engine: Engine::Container,
                directory: directory.path().join("sandbox"),
                cgroup_instance: format!("engine-test-{}-{number}", std::process::id()),
                first_host_id: Some(FIRST_HOST_ID),
                guest_binary: "/nonexistent".into(),
                gvisor: None,
                disk_backend: DiskBackend::Image,
                network: None,
            },
        };
        Self { launch, directory }
    }

    pub(crate) fn main(&mut self) -> &mut ContainerPlan {
        &mut self.launch.plan.containers[0]
    }

    /// The image's only layer on the host.
    pub(crate) fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    /// A driver that has the launch and has begun nothing.
    pub(crate) fn start(self) -> Sandbox {
        let sandbox = self.launch.placement.directory.clone();
        fs::write(sandbox.join("launch.json"), serde_json::to_vec(&self.launch).unwrap()).unwrap();
        let mut driver = Command::new(driver())
            .arg(&sandbox)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the driver is an example of this crate: run `cargo test -p atoll-shim`");
        let input = driver.stdin.take();
        let output = BufReader::new(driver.stdout.take().unwrap());
        Sandbox { prepared: self, driver, input, output }
    }

    /// Begins the only container, waits for its end and gives what it wrote.
    pub(crate) fn run(self) -> Ended {
        self.run_keeping(|_| ())
    }

    /// [`run`](Self::run), with a look at the test's directory before it is gone.
    pub(crate) fn run_keeping(self, look: impl FnOnce(&Path)) -> Ended {
        let mut sandbox = self.start();
        sandbox.ok("prepare");
        sandbox.ok("begin 0");
        sandbox.ok("wait 0");
        let evidence = sandbox.ok("evidence 0");
        let output = sandbox.output("0");
        sandbox.ok("remove");
        sandbox.assert_nothing_left();
        look(sandbox.prepared.directory.path());
        Ended { output, evidence }
    }

    /// Tries to begin the only container and gives the reason why not.
    pub(crate) fn refusal(self) -> String {
        self.refusal_keeping(|_| ())
    }

    /// [`refusal`](Self::refusal), with a look at the test's directory before it is gone.
    pub(crate) fn refusal_keeping(self, look: impl FnOnce(&Path)) -> String {
        let mut sandbox = self.start();
        let answer = sandbox.command("prepare");
        let answer = if answer.starts_with("ok") { sandbox.command("begin 0") } else { answer };
        sandbox.ok("remove");
        sandbox.assert_nothing_left();
        look(sandbox.prepared.directory.path());
        answer.strip_prefix("error ").expect("it must be refused").to_owned()
    }
}

/// A container that has ended.
pub(crate) struct Ended {
    /// Its output and errors.
    pub(crate) output: String,
    /// The engine's evidence, as text.
    pub(crate) evidence: String,
}

/// A sandbox under a driver. Ends with the test.
pub(crate) struct Sandbox {
    pub(crate) prepared: Prepared,
    driver: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Sandbox {
    /// Sends a command and gives the answer. An unbounded wait is bounded by the container's own script.
    pub(crate) fn command(&mut self, command: &str) -> String {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the driver died at {command:?}");
        answer.trim_end().to_owned()
    }

    /// Sends a command that must succeed.
    pub(crate) fn ok(&mut self, command: &str) -> String {
        let answer = self.command(command);
        answer.strip_prefix("ok ").or(answer.strip_prefix("ok")).map_or_else(
            || panic!("{command:?}: {answer}; the container said: {}", self.output("0")),
            str::to_owned,
        )
    }

    /// What a container (`0`, `1`, ...) or `exec` wrote so far.
    pub(crate) fn output(&self, name: &str) -> String {
        let read = |end: &str| {
            let path = self.prepared.launch.placement.directory.join(format!("{name}.{end}"));
            fs::read_to_string(path).unwrap_or_default()
        };
        read("out") + &read("err")
    }

    /// The driver dies at once, as a shim may: its containers stay.
    pub(crate) fn kill_driver(&mut self) {
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }

    /// A new driver for the same sandbox, as after a shim's death.
    pub(crate) fn replace_driver(mut self) -> Self {
        let prepared = std::mem::replace(&mut self.prepared, Prepared::new("true"));
        drop(self);
        prepared.start()
    }

    /// Nothing of the sandbox is on the host: no group, no stage, no mount, no process in a group.
    pub(crate) fn assert_nothing_left(&self) {
        let launch = &self.prepared.launch;
        let layout = CgroupLayout::detect().unwrap();
        let groups = CgroupRoot::open(&layout, &launch.placement.cgroup_instance).unwrap();
        assert_eq!(groups.list().unwrap(), Vec::<String>::new());
        groups.remove().unwrap();
        assert!(!launch.placement.directory.join("stage").exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let directory = self.prepared.directory.path().display().to_string();
        assert!(!mounts.contains(&directory), "{mounts}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The end of its input has the driver remove everything.
        drop(self.input.take());
        let _ = self.driver.wait();
        let launch = &self.prepared.launch;
        if let Ok(groups) = CgroupLayout::detect()
            .and_then(|layout| CgroupRoot::open(&layout, &launch.placement.cgroup_instance))
        {
            // A driver that was killed left the sandbox's groups to the next; here the test is over.
            if let Ok(group) = groups.find(&launch.plan.uid, None) {
                let _ = group.remove();
            }
            let _ = groups.remove();
        }
    }
}

fn make_image(layer: &Path) {
    for directory in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(layer.join(directory)).unwrap();
    }
    fs::copy(busybox().unwrap(), layer.join("bin/busybox")).unwrap();
    fs::copy(probe().unwrap(), layer.join("bin/probe")).unwrap();
    for applet in APPLETS {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        .unwrap();
}
