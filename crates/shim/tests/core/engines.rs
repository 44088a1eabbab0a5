//! The program as it is delivered: spawner, shim, engine and guest together.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_sys::clone::unshare;
use atoll_sys::disk_image::{TemplateImage, mount_image};
use atoll_sys::mount::{Attributes, new_file_system};
use atoll_sys::process::ProcessState;
use atoll_wire::record::{EndRecord, ExitReason};
use atoll_wire::shim::{
    ContainerPlan, DescriptorRole, Engine, GvisorPlacement, Init, Launch, ShimRequest,
};
use rustix::thread::UnshareFlags;

use crate::harness::{Client, Sandbox, Spawner, container, exec, wait_until};

/// Ids that belong to nobody else on a machine that follows the customs for subordinate ids.
const FIRST_HOST_ID: u32 = 800_000_000;

/// A sandbox of a real engine: nothing of it is left on the host after the test.
struct Real {
    sandbox: Sandbox,
    instance: String,
    uid: String,
    given: Vec<(DescriptorRole, OwnedFd)>,
}

fn missing(engine: Engine) -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if !CgroupLayout::detect().is_ok_and(|layout| layout.missing().is_empty()) {
        return Some("this host has no control groups that limit memory, cpu and pids");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("busybox-static is not installed");
    }
    (engine == Engine::Gvisor && runsc().is_none()).then_some("runsc is not installed")
}

fn runsc() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("runsc")).find(|it| it.is_file())
}

/// Runs a test body in each engine that this host has.
fn in_each_engine(test: &str, body: impl Fn(Engine)) {
    for engine in [Engine::Container, Engine::Gvisor] {
        match missing(engine) {
            None => body(engine),
            Some(why) => eprintln!("SKIPPED: {test} ({engine:?}): {why}"),
        }
    }
}

fn busybox_layer(directory: &Path) -> PathBuf {
    let layer = directory.join("layer");
    for name in ["bin", "tmp", "root", "etc"] {
        fs::create_dir_all(layer.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "echo", "dd", "tail", "wc", "true", "touch"] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    layer
}

fn plan(script: &str) -> ContainerPlan {
    let mut plan = container("main", script);
    plan.process.env = vec!["PATH=/bin".into()];
    plan.process.capabilities = CapabilitySet::container_default().mask();
    plan.disk_bytes = 16 << 20;
    plan.limits.memory_bytes = 64 << 20;
    plan.limits.cpu_millis = 2000;
    plan
}

impl Real {
    fn new(engine: Engine, plan: ContainerPlan) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("core-test-{}-{number}", std::process::id());
        let uid = format!("{:08x}{number:08x}", std::process::id());
        let sandbox = Sandbox::with(vec![plan], |launch| {
            let directory = launch.placement.directory.clone();
            launch.plan.uid.clone_from(&uid);
            launch.plan.containers[0].layers = vec![busybox_layer(directory.parent().unwrap())];
            launch.placement.engine = engine;
            launch.placement.cgroup_instance.clone_from(&instance);
            launch.placement.first_host_id = Some(FIRST_HOST_ID);
            launch.placement.gvisor = (engine == Engine::Gvisor).then(|| GvisorPlacement {
                runsc: runsc().unwrap(),
                root: directory.parent().unwrap().join("r"),
                platform: "systrap".into(),
                hide_proc_sys_net: true,
            });
        });
        let launch: Launch =
            serde_json::from_slice(&fs::read(sandbox.path("launch.json")).unwrap()).unwrap();
        let given = resources(&sandbox, &launch);
        Self { sandbox, instance, uid, given }
    }

    fn start(&mut self, spawner: &Spawner) -> Client {
        let given = std::mem::take(&mut self.given);
        spawner.request_with(&self.sandbox.directory, false, given)
    }

    /// Waits for the end, and for nothing to be left.
    fn end(&self, client: &mut Client) -> EndRecord {
        client.until_ended();
        let layout = CgroupLayout::detect().unwrap();
        let groups = CgroupRoot::open(&layout, &self.instance).unwrap();
        assert_eq!(groups.list().unwrap(), Vec::<String>::new());
        assert_ne!(self.sandbox.first_process().state().unwrap(), ProcessState::Running);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.sandbox.directory.to_str().unwrap()), "{mounts}");
        self.sandbox.end().unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let groups =
            CgroupLayout::detect().and_then(|layout| CgroupRoot::open(&layout, &self.instance));
        if let Ok(groups) = groups {
            if let Ok(group) = groups.find(&self.uid, None) {
                let _ = group.kill_all();
                let _ = group.remove();
            }
            let _ = groups.remove();
        }
    }
}

/// A network namespace of its own, its sysfs, and the disks.
fn resources(sandbox: &Sandbox, launch: &Launch) -> Vec<(DescriptorRole, OwnedFd)> {
    // Only the thread gets the new namespace.
    let network = std::thread::spawn(|| {
        unshare(UnshareFlags::NEWNET).unwrap();
        let namespace: OwnedFd = File::open("/proc/thread-self/ns/net").unwrap().into();
        let sysfs = new_file_system("sysfs", &[], Attributes::MOUNT_ATTR_RDONLY).unwrap();
        vec![(DescriptorRole::NetworkNamespace, namespace), (DescriptorRole::Sysfs, sysfs)]
    });
    let mut given = network.join().unwrap();
    for container in &launch.plan.containers {
        let template =
            TemplateImage::prepare(sandbox.directory.parent().unwrap(), container.disk_bytes);
        let path = sandbox.outside("disk.ext4");
        let image = template.unwrap().instantiate(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let disk = mount_image(&image, &path).unwrap();
        given.push((DescriptorRole::Disk(container.name.clone()), disk));
    }
    given
}

#[test]
fn a_sandbox_runs_and_leaves_its_exit_its_log_and_nothing_else() {
    in_each_engine("a_sandbox_runs_and_leaves_its_exit_its_log_and_nothing_else", |engine| {
        let spawner = Spawner::real();
        let mut real = Real::new(engine, plan("echo hello; echo error >&2; read _; exit 3"));
        let mut client = real.start(&spawner);
        client.until_started();
        let sandbox = &real.sandbox;
        assert_eq!(exec(sandbox, "main", "echo out; exit 5").code(), Some(5));
        let mut attached = sandbox.connect();
        attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
        attached.send(atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec()));
        assert_eq!(attached.finish().code(), Some(3));
        let end = real.end(&mut client);
        assert_eq!(
            (end.containers[0].code, end.containers[0].reason),
            (Some(3), ExitReason::Error)
        );
        let mut lines: Vec<_> = sandbox.log_text("main").lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["error", "hello"]);
    });
}

#[test]
fn a_sandbox_whose_shim_was_killed_goes_on_and_its_exit_is_true() {
    in_each_engine("a_sandbox_whose_shim_was_killed_goes_on_and_its_exit_is_true", |engine| {
        let spawner = Spawner::real();
        let script = "echo before; read _; echo after; read _; exit 4";
        let mut real = Real::new(engine, plan(script));
        real.start(&spawner).until_started();
        let sandbox = &real.sandbox;
        wait_until("it is logged", || sandbox.log_text("main") == "before\n");
        let first = sandbox.first_process();
        sandbox.kill_shim();
        assert_eq!(first.state().unwrap(), ProcessState::Running, "{engine:?}");
        let mut client = spawner.request(&sandbox.directory, true);
        client.event();
        let state = client.state();
        assert_eq!(state.containers[0].exit, None);
        assert_eq!(state.containers[0].host_pid, Some(first.pid));
        assert_eq!(exec(sandbox, "main", "echo works").text(), "works\n");
        let mut attached = sandbox.connect();
        attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
        for _ in 0..2 {
            attached.send(atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec()));
        }
        assert_eq!(attached.finish().code(), Some(4));
        let end = real.end(&mut client);
        assert_eq!(end.containers[0].code, Some(4));
        assert_eq!(sandbox.log_text("main"), "before\nafter\n");
    });
}

#[test]
fn a_sandbox_that_was_half_begun_is_cleaned_up() {
    in_each_engine("a_sandbox_that_was_half_begun_is_cleaned_up", |engine| {
        let spawner = Spawner::real();
        let mut real = Real::new(engine, plan("sleep 1000"));
        real.start(&spawner).until_started();
        real.sandbox.kill_shim();
        let first = real.sandbox.first_process();
        // As if it had died before it wrote whose processes these are.
        fs::remove_file(real.sandbox.path("shim.json")).unwrap();
        let mut client = spawner.request(&real.sandbox.directory, true);
        client.event();
        client.state();
        client.until_ended();
        assert!(real.sandbox.end().unwrap().launch_failure.is_some());
        wait_until("its processes are gone", || first.state().unwrap() != ProcessState::Running);
        let layout = CgroupLayout::detect().unwrap();
        let groups = CgroupRoot::open(&layout, &real.instance).unwrap();
        assert_eq!(groups.list().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn too_much_memory_is_told_as_such() {
    in_each_engine("too_much_memory_is_told_as_such", |engine| {
        let spawner = Spawner::real();
        let mut real = Real::new(engine, plan("exec tail /dev/zero"));
        let mut client = real.start(&spawner);
        let end = real.end(&mut client);
        assert_eq!(end.containers[0].reason, ExitReason::OutOfMemory, "{engine:?}: {end:?}");
    });
}

#[test]
fn the_images_own_first_process_is_entered_from_outside() {
    in_each_engine("the_images_own_first_process_is_entered_from_outside", |engine| {
        let spawner = Spawner::real();
        let mut image = plan("echo pid $$; trap 'exit 6' TERM; while :; do sleep 0.1; done");
        image.init = Init::Image;
        let mut real = Real::new(engine, image);
        let mut client = real.start(&spawner);
        client.until_started();
        let sandbox = &real.sandbox;
        wait_until("it is logged", || sandbox.log_text("main") == "pid 1\n");
        let finished = exec(sandbox, "main", "echo out; echo err >&2; exit 5");
        assert_eq!(
            (finished.text().as_str(), &finished.stderr[..], finished.code()),
            ("out\n", &b"err\n"[..], Some(5)),
            "{engine:?}"
        );
        sandbox.connect().request(&ShimRequest::Stop { grace_millis: 20_000 });
        let end = real.end(&mut client);
        assert_eq!(
            (end.containers[0].code, end.containers[0].reason),
            (Some(6), ExitReason::Stopped),
            "{engine:?}"
        );
    });
}
