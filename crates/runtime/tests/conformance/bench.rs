//! A class on a host of its own: a data directory in a temporary place, a runtime on it, a busybox image, and all of it gone afterwards.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_runtime::disk::DiskChoice;
use atoll_runtime::shim::{PoolSizes, ShimHost, ShimHostConfig, ShimRuntime};
use atoll_runtime::sim::{SimHost, SimRuntime};
use atoll_runtime::{Runtime, RuntimeClass, container_host, gvisor_host};
use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_wire::guest::{ProcessSpec, UserIds};
use atoll_wire::shim::{ContainerLimits, ContainerPlan, Init, SandboxPlan};

use crate::running::Running;
use crate::watchdog::Watchdog;

/// Longest that anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that a whole case may take.
const CASE_WITHIN: Duration = Duration::from_secs(180);
/// Beginning, case and cleaning together: what takes longer waits for something that never comes.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(300);
/// Longest that the kernel takes to finish what was told to end.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const MIB: u64 = 1 << 20;

/// A class under test.
pub(crate) struct Bench {
    pub(crate) class: RuntimeClass,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Class `sim` only.
    pub(crate) sim: Option<Arc<SimHost>>,
    /// The other classes.
    pub(crate) host: Option<Arc<ShimHost>>,
    gvisor: Option<gvisor_host::GvisorHost>,
    /// What bounds the disks of sandboxes to come, from the next restart on.
    pub(crate) disks: DiskChoice,
    pub(crate) data: tempfile::TempDir,
}

/// Runs one case on a bench of its own, and cleans up however it ends.
pub(crate) fn run(class: RuntimeClass, case: &str, test: impl AsyncFnOnce(&mut Bench)) {
    let name = format!("conformance/{}/{case}", class.name());
    if let Some(why) = crate::skips::skipped(class, case) {
        println!("SKIPPED: {name}: {why}");
        return;
    }
    run_in(&std::env::temp_dir(), DiskChoice::Auto, class, &name, test);
}

/// As [`run`], with the data directory in that place and disks of that kind.
pub(crate) fn run_in(
    place: &Path,
    disks: DiskChoice,
    class: RuntimeClass,
    name: &str,
    test: impl AsyncFnOnce(&mut Bench),
) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let watchdog = Watchdog::of(name, place, HANGS_AFTER);
    let mut bench = match runtime.block_on(async { Bench::new(place, disks, class) }) {
        Ok(bench) => bench,
        Err(why) => {
            println!("SKIPPED: {name}: {why}");
            return;
        }
    };
    println!("{name}");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let case = test(&mut bench);
            let ended = tokio::time::timeout(CASE_WITHIN, case).await;
            assert!(ended.is_ok(), "{name} took longer than {CASE_WITHIN:?}");
        });
    }));
    let left = runtime.block_on(bench.clean());
    let log = bench.spawner_log();
    drop(bench);
    // Waits for what still blocks.
    drop(runtime);
    drop(watchdog);
    if let Err(panic) = outcome {
        println!("{name}: the spawners said: {log}");
        std::panic::resume_unwind(panic);
    }
    assert!(left.is_empty(), "{name} left behind: {left:?}");
}

impl Bench {
    fn new(place: &Path, disks: DiskChoice, class: RuntimeClass) -> Result<Self, String> {
        let data = tempfile::Builder::new().prefix("atoll-conformance-").tempdir_in(place).unwrap();
        let mut gvisor = None;
        match class {
            RuntimeClass::Sim => {}
            RuntimeClass::Container => {
                drop(container_host::report(data.path(), disks).container()?)
            }
            RuntimeClass::Gvisor => {
                // The answer is remembered for all benches of this run.
                let found = gvisor_host::detect(shared_directory());
                gvisor = Some(found.map_err(|error| error.to_string())?);
            }
        }
        let sim = (class == RuntimeClass::Sim).then(SimHost::new);
        let (runtime, host) = Self::begin(class, disks, data.path(), sim.as_ref(), gvisor.as_ref());
        if class != RuntimeClass::Sim {
            busybox_layer().ok_or("busybox is missing: install busybox-static")?;
        }
        Ok(Self { class, runtime, sim, host, gvisor, disks, data })
    }

    /// A second server, on a data directory that is somebody else's. Never cleaned: for processes that are killed.
    pub(crate) fn at(data: &Path, place: &Path, disks: DiskChoice, class: RuntimeClass) -> Self {
        let own = tempfile::Builder::new().prefix("atoll-killed-").tempdir_in(place).unwrap();
        let gvisor = (class == RuntimeClass::Gvisor)
            .then(|| gvisor_host::detect(shared_directory()).unwrap());
        let (runtime, host) = Self::begin(class, disks, data, None, gvisor.as_ref());
        Self { class, runtime, sim: None, host, gvisor, disks, data: own }
    }

    fn begin(
        class: RuntimeClass,
        disks: DiskChoice,
        data: &Path,
        sim: Option<&Arc<SimHost>>,
        gvisor: Option<&gvisor_host::GvisorHost>,
    ) -> (Arc<dyn Runtime>, Option<Arc<ShimHost>>) {
        if let Some(sim) = sim {
            return (Arc::new(SimRuntime::new(Arc::clone(sim))), None);
        }
        let host = ShimHost::open(ShimHostConfig {
            data_dir: data.to_owned(),
            guest_program: atoll_programs::GUEST,
            shim_program: atoll_programs::SHIM,
            spawners: Some(1),
            pools: PoolSizes { networks: 2, disks: 1 },
            network: None,
            keeper_program: std::path::PathBuf::new(),
            disks,
        })
        .unwrap();
        let runtime = match (class, gvisor) {
            (RuntimeClass::Gvisor, Some(found)) => ShimRuntime::gvisor(Arc::clone(&host), found),
            _ => ShimRuntime::container(Arc::clone(&host), "under test".into()),
        };
        (Arc::new(runtime), Some(host))
    }

    /// The server ends and another begins on the same host.
    pub(crate) async fn restart(&mut self) {
        self.runtime.shutdown().await;
        // What is dropped first is the old server's.
        self.host = None;
        let (sim, gvisor) = (self.sim.as_ref(), self.gvisor.as_ref());
        (self.runtime, self.host) =
            Self::begin(self.class, self.disks, self.data.path(), sim, gvisor);
    }

    /// Destroys everything; says what is left then.
    async fn clean(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let known = self.runtime.inventory().await.unwrap_or_default();
        for uid in known {
            if let Err(error) = self.runtime.destroy(&uid).await {
                left.push(error.to_string());
            }
        }
        match self.runtime.inventory().await {
            Ok(uids) => left.extend(uids),
            Err(error) => left.push(error.to_string()),
        }
        self.runtime.shutdown().await;
        // The kernel takes back mounts and loop devices a moment after their last process.
        let deadline = std::time::Instant::now() + SETTLED_WITHIN;
        loop {
            let things = self.things_left();
            if things.is_empty() || std::time::Instant::now() >= deadline {
                left.extend(things);
                return left;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn things_left(&self) -> Vec<String> {
        let mut things = self.loop_devices();
        things.extend(self.mounts());
        if self.cgroups().is_some_and(|root| root.list().is_ok()) {
            things.push("the instance's control group".into());
        }
        things
    }

    /// Loop devices over files of this bench.
    pub(crate) fn loop_devices(&self) -> Vec<String> {
        let attached = atoll_sys::loop_device::attached().unwrap_or_default();
        let of_bench = |file: &PathBuf| file.starts_with(self.data.path());
        let mine = attached.into_iter().filter(|(_, file)| of_bench(file));
        mine.map(|(device, file)| format!("{} on {}", device.display(), file.display())).collect()
    }

    /// Mounts below this bench's directory that this process sees.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let place = self.data.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().filter(|line| line.contains(&place)).map(str::to_owned).collect()
    }

    /// The instance's control groups, without making them; `None`: there are none (any more).
    pub(crate) fn cgroups(&self) -> Option<CgroupRoot> {
        let instance = self.host.as_ref()?.instance();
        let layout = CgroupLayout::detect().ok()?;
        let group = layout.memory.as_ref()?.mount_point.join("atoll").join(instance);
        group.exists().then(|| CgroupRoot::open(&layout, instance).unwrap())
    }

    fn spawner_log(&self) -> String {
        fs::read_to_string(self.data.path().join("run/spawner.log")).unwrap_or_default()
    }

    /// The directory of a sandbox.
    pub(crate) fn directory(&self, uid: &str) -> PathBuf {
        self.data.path().join("sandboxes").join(uid)
    }

    /// A sandbox of one container, `main`, with that shell script as its command.
    pub(crate) fn plan(&self, script: &str) -> SandboxPlan {
        SandboxPlan {
            uid: new_uid(),
            hostname: "conformance".into(),
            containers: vec![self.container("main", script)],
            volumes: Vec::new(),
            shm_bytes: 4 * MIB,
            boost_millis: 0,
            network: atoll_wire::shim::NetworkPlan::Loopback,
            grants: Vec::new(),
            ports: Vec::new(),
        }
    }

    pub(crate) fn container(&self, name: &str, script: &str) -> ContainerPlan {
        let layers = if self.sim.is_some() { Vec::new() } else { vec![busybox_layer().unwrap()] };
        ContainerPlan {
            name: name.into(),
            layers,
            read_only_root: false,
            disk_bytes: 16 * MIB,
            log_bytes: MIB,
            process: shell(script),
            init: Init::Guest,
            limits: ContainerLimits { cpu_millis: 1000, memory_bytes: 128 * MIB, pids: 64 },
            tmpfs: Vec::new(),
            volume_mounts: Vec::new(),
            stop_signal: 15,
            await_attach: false,
            held: false,
        }
    }

    /// Launches and waits for nothing.
    pub(crate) async fn launch(&self, plan: SandboxPlan) -> Running {
        let uid = plan.uid.clone();
        match self.runtime.launch(plan).await {
            Ok((sandbox, events)) => Running::new(uid, sandbox, events),
            Err(error) => panic!("a launch failed: {error}"),
        }
    }

    /// Launches a script and waits until it runs.
    pub(crate) async fn start(&self, script: &str) -> Running {
        let mut running = self.launch(self.plan(script)).await;
        running.started("main").await;
        running
    }
}

/// A uid that nobody else has.
pub(crate) fn new_uid() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
            as u64;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}", nanos ^ (u64::from(std::process::id()) << 40) ^ (number << 52))
}

/// `sh -c script`, as root with the capabilities that containers have.
pub(crate) fn shell(script: &str) -> ProcessSpec {
    command(&["sh", "-c", script])
}

pub(crate) fn command(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "GREETING=hello there".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: CapabilitySet::container_default().mask(),
        no_new_privileges: true,
        stdin: false,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 100,
        open_files: None,
    }
}

/// A directory that all benches of this run share.
fn shared_directory() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        // One for all runs of this build, made whole or found whole: nobody removes it while another uses it.
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("conformance");
        fs::create_dir_all(&directory).unwrap();
        directory
    })
}

/// A layer with busybox and links for its commands.
fn busybox_layer() -> Option<PathBuf> {
    static LAYER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
        let busybox = busybox.into_iter().find(|it| it.is_file())?;
        let layer = shared_directory().join("busybox");
        if layer.exists() {
            return Some(layer);
        }
        let new =
            tempfile::Builder::new().prefix("busybox-").tempdir_in(shared_directory()).unwrap();
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "data"] {
            fs::create_dir(new.path().join(directory)).unwrap();
        }
        fs::set_permissions(new.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(new.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::copy(busybox, new.path().join("bin/busybox")).unwrap();
        for name in COMMANDS.split_whitespace() {
            symlink("busybox", new.path().join("bin").join(name)).unwrap();
        }
        let made = new.keep();
        if fs::rename(&made, &layer).is_err() {
            // Another process was first.
            fs::remove_dir_all(&made).unwrap();
        }
        Some(layer)
    };
    LAYER.get_or_init(make).clone()
}

const COMMANDS: &str = "sh echo cat sleep true false ls id hostname dd head tail wc stat stty ps kill seq yes nc \
    env touch mkdir rm mv cp grep sed sort tr test timeout dmesg mount umount df chmod chown readlink usleep xargs chattr";
