//! Groups for real where root and the host allow it, and a made-up v2 tree where the host has none.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

/// An instance of its own for each test; killed and removed whatever happens.
struct Instance(CgroupRoot);

impl Instance {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: container/cgroup: control groups need root");
            return None;
        }
        let layout = CgroupLayout::detect().unwrap();
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match CgroupRoot::open(&layout, &name) {
            Ok(root) => Some(Self(root)),
            Err(error @ CgroupError::Missing { .. }) => {
                println!("SKIPPED: container/cgroup: {error}");
                None
            }
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for uid in self.0.list().unwrap() {
            self.0.find(&uid, None).unwrap().remove().unwrap();
        }
        self.0.remove().unwrap();
    }
}

/// A shell that runs `script` once it was put into a group.
fn start_in(group: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read _ && {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    group.attach(i32::try_from(child.id()).unwrap()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

#[test]
fn a_nested_group_is_made_listed_and_removed_in_every_hierarchy() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid-1", Some("main")).unwrap();
    assert!(group.exists());
    assert_eq!(instance.0.create("uid-1", Some("main")).unwrap(), group, "made twice is found");
    instance.0.create("uid-2", None).unwrap();
    assert_eq!(instance.0.list().unwrap(), ["uid-1", "uid-2"]);
    assert_eq!(group.processes().unwrap(), Vec::<i32>::new());
    let sandbox = instance.0.find("uid-1", None).unwrap();
    sandbox.remove().unwrap();
    sandbox.remove().unwrap();
    assert!(!group.exists());
    assert_eq!(instance.0.list().unwrap(), ["uid-2"]);
}

#[test]
fn limits_reach_the_kernel_and_can_be_raised_lowered_and_lifted() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", Some("main")).unwrap();
    for mebibytes in [64_u64, 128, 32] {
        let limits = Limits {
            memory_bytes: Some(mebibytes << 20),
            pids: Some(mebibytes),
            cpu_weight: Some(50),
            ..Limits::default()
        };
        group.set(&limits.with_cpu_millis(250)).unwrap();
        let memory = match group.groups.memory.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let memory = files::read_number(&group.groups.memory.file(memory)).unwrap();
        assert_eq!(memory, mebibytes << 20);
        assert_eq!(files::read_number(&group.groups.pids.file("pids.max")).unwrap(), mebibytes);
    }
}

#[test]
fn kill_all_ends_processes_of_the_groups_below_too() {
    let Some(instance) = Instance::new() else { return };
    let mut children: Vec<Child> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let group = instance.0.create("uid", Some(name)).unwrap();
            start_in(&group, "sleep 1000 & sleep 1000")
        })
        .collect();
    let sandbox = instance.0.find("uid", None).unwrap();
    let pids = sandbox.processes().unwrap();
    assert!(children.iter().all(|child| pids.contains(&i32::try_from(child.id()).unwrap())));
    assert!(sandbox.stats().unwrap().pids_current >= 2);
    sandbox.kill_all().unwrap();
    sandbox.wait_empty(Duration::from_secs(10)).unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    assert_eq!(sandbox.processes().unwrap(), Vec::<i32>::new());
}

#[test]
fn killing_one_by_one_works_on_kernels_without_cgroup_kill() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", None).unwrap();
    let mut child = start_in(&group, "while :; do sleep 1000 & sleep 0.01; done");
    group.kill_one_by_one().unwrap();
    group.wait_empty(Duration::from_secs(10)).unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn the_v1_freezer_freezes_kills_and_tells_emptiness() {
    let mut layout = CgroupLayout::detect().unwrap();
    if layout.freezer.is_none() || !rustix::process::geteuid().is_root() {
        println!("SKIPPED: sys/v1-freezer: needs root and a v1 freezer");
        return;
    }
    layout.unified = None;
    let name = format!("test-{}-v1", std::process::id());
    let instance = Instance(CgroupRoot::open(&layout, &name).unwrap());
    let group = instance.0.create("uid", None).unwrap();
    assert!(group.v2_fd().unwrap().is_none());
    let mut child = start_in(&group, "while :; do sleep 1000 & sleep 0.01; done");
    group.freeze().unwrap();
    group.thaw().unwrap();
    group.remove().unwrap();
    assert!(!group.exists());
    assert!(!child.wait().unwrap().success());
}

#[test]
fn running_out_of_memory_is_counted() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", Some("main")).unwrap();
    group.set(&Limits { memory_bytes: Some(16 << 20), ..Limits::default() }).unwrap();
    assert_eq!(group.oom_kills().unwrap(), 0);
    // tail keeps a line without end in memory.
    let mut child = start_in(&group, "head -c 200M /dev/zero | tail >/dev/null");
    child.wait().unwrap();
    assert!(group.oom_kills().unwrap() >= 1);
    let sandbox = instance.0.find("uid", None).unwrap();
    assert!(sandbox.oom_kills().unwrap() >= 1, "the sandbox's count includes its containers'");
}

#[test]
fn filling_the_page_cache_is_no_out_of_memory() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", None).unwrap();
    group.set(&Limits { memory_bytes: Some(16 << 20), ..Limits::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big");
    let script = format!("dd if=/dev/zero of={} bs=1M count=48", file.display());
    assert!(start_in(&group, &script).wait().unwrap().success());
    assert_eq!(group.oom_kills().unwrap(), 0);
    let stats = group.stats().unwrap();
    assert!(stats.memory_current <= 16 << 20);
    assert!(stats.memory_peak.is_none_or(|peak| peak <= 16 << 20));
}

#[test]
fn a_fork_beyond_the_pids_limit_is_counted() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", Some("main")).unwrap();
    group.set(&Limits { pids: Some(4), ..Limits::default() }).unwrap();
    assert_eq!(group.pids_limit_hits().unwrap(), 0);
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
    let mut child = start_in(&group, script);
    // The shell gives up when it cannot fork, and leaves its children behind.
    child.wait().unwrap();
    assert!(group.pids_limit_hits().unwrap() >= 1);
    group.kill_all().unwrap();
}

#[test]
fn cpu_time_and_throttling_are_counted() {
    let Some(instance) = Instance::new() else { return };
    let group = instance.0.create("uid", None).unwrap();
    group.set(&Limits::default().with_cpu_millis(100)).unwrap();
    let mut child = start_in(&group, "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done");
    assert!(child.wait().unwrap().success());
    let stats = group.stats().unwrap();
    assert!(stats.throttled_us > 0, "{stats:?}");
    assert!(stats.cpu_usage_us.is_none_or(|used| used > 10_000), "{stats:?}");
}

#[test]
fn names_that_are_not_a_directory_of_ours_are_refused() {
    for name in ["", ".", "..", ".x", "a/b", "a b", "tasks", "cgroup.procs", "memory.max", "é"] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    assert!(check_name(&"x".repeat(129)).is_err());
    assert!(check_name("01J9-main_2.a").is_ok());
}

/// A directory tree that looks like a v2 mount; its control files are plain files.
#[test]
fn under_pure_v2_controllers_are_enabled_on_the_way_down_and_limits_are_v2_words() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path();
    let line = format!("31 23 0:26 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
    let layout = CgroupLayout::from_text(&line, |_| "cpu memory pids io".into());
    let sandbox_dir = mount.join("atoll/one/uid");
    let main_dir = sandbox_dir.join("main");
    std::fs::create_dir_all(&main_dir).unwrap();
    std::fs::write(mount.join("cgroup.subtree_control"), "cpu memory pids").unwrap();
    std::fs::write(mount.join("atoll/cgroup.subtree_control"), "cpu").unwrap();
    std::fs::write(mount.join("atoll/one/cgroup.subtree_control"), "").unwrap();
    std::fs::write(sandbox_dir.join("cgroup.subtree_control"), "").unwrap();
    for file in ["memory.max", "cpu.max", "cpu.weight", "pids.max", "cgroup.procs"] {
        std::fs::write(main_dir.join(file), "").unwrap();
    }
    let root = CgroupRoot::open(&layout, "one").unwrap();
    let group = root.create("uid", Some("main")).unwrap();
    let read = |path: &str| std::fs::read_to_string(mount.join(path)).unwrap();
    assert_eq!(read("cgroup.subtree_control"), "cpu memory pids", "complete: not written");
    assert_eq!(read("atoll/cgroup.subtree_control"), "+memory +pids");
    assert_eq!(read("atoll/one/uid/cgroup.subtree_control"), "+memory +cpu +pids");
    let limits = Limits { memory_bytes: Some(1 << 20), pids: Some(7), ..Limits::default() };
    group.set(&limits.with_cpu_millis(500)).unwrap();
    assert_eq!(read("atoll/one/uid/main/memory.max"), "1048576");
    assert_eq!(read("atoll/one/uid/main/cpu.max"), "50000 100000");
    assert_eq!(read("atoll/one/uid/main/pids.max"), "7");
    group.attach(4321).unwrap();
    assert_eq!(read("atoll/one/uid/main/cgroup.procs"), "4321", "one hierarchy: one write");
    assert!(group.v2_fd().unwrap().is_some());
    for (file, text) in [
        ("memory.current", "4096\n"),
        ("memory.stat", "anon 1\ninactive_file 2\n"),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ("cpu.stat", "usage_usec 5\nuser_usec 4\nnr_throttled 1\nthrottled_usec 6\n"),
        ("pids.current", "2\n"),
        ("pids.events", "max 9\n"),
    ] {
        std::fs::write(main_dir.join(file), text).unwrap();
    }
    assert_eq!(group.oom_kills().unwrap(), 1);
    assert_eq!(group.pids_limit_hits().unwrap(), 9);
    let expected = CgroupStats {
        memory_current: 4096,
        memory_inactive_file: 2,
        memory_peak: None,
        cpu_usage_us: Some(5),
        throttled_us: 6,
        pids_current: 2,
    };
    assert_eq!(group.stats().unwrap(), expected);
}
