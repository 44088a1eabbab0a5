//! Memory, processes, disk, shared memory and CPU are bounded, and the end says by what.

use super::harness::{Prepared, can_run};
use atoll_wire::shim::TmpfsPlan;

#[test]
fn memory_over_the_limit_is_killed_and_told_as_out_of_memory() {
    if !can_run("out-of-memory") {
        return;
    }
    let ended = Prepared::new("exec probe eat 200000000").run();
    assert!(ended.evidence.contains("Signal(9)"), "{}", ended.evidence);
    assert!(ended.evidence.contains("out_of_memory: true"), "{}", ended.evidence);
    let ended = Prepared::new("exec probe eat 20000000").run();
    assert_eq!(ended.output, "ate\n");
    assert!(ended.evidence.contains("out_of_memory: false"), "{}", ended.evidence);
}

#[test]
fn a_child_that_is_killed_for_memory_is_told_while_its_parent_lives() {
    if !can_run("out-of-memory-child") {
        return;
    }
    let ended = Prepared::new("probe eat 200000000; echo status $?").run();
    assert!(ended.output.contains("status 137"), "{}", ended.output);
    assert!(ended.evidence.contains("init_exit: Some(Code(0))"), "{}", ended.evidence);
    assert!(ended.evidence.contains("out_of_memory: true"), "{}", ended.evidence);
}

#[test]
fn processes_over_the_limit_are_refused_with_eagain_and_counted() {
    if !can_run("pids") {
        return;
    }
    let ended = Prepared::new("exec probe spawn 1000").run();
    // 64 in all: the probe itself is one.
    assert_eq!(ended.output, format!("spawned 63 errno {}\n", libc_eagain()));
    assert!(ended.evidence.contains("pids_limit: true"), "{}", ended.evidence);
}

fn libc_eagain() -> i32 {
    rustix::io::Errno::AGAIN.raw_os_error()
}

#[test]
fn a_fork_bomb_is_contained_and_ended() {
    if !can_run("fork-bomb") {
        return;
    }
    let mut sandbox = Prepared::new("bomb() { bomb | bomb & }; bomb; sleep 600").start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    // The bomb has met its limit when the shell says so.
    let full = |sandbox: &super::harness::Sandbox| sandbox.output("0").contains("fork");
    for _ in 0..2000 {
        if full(&sandbox) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(full(&sandbox), "{}", sandbox.output("0"));
    sandbox.ok("kill 0");
    sandbox.ok("wait 0");
    assert!(sandbox.ok("evidence 0").contains("pids_limit: true"));
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn the_disk_bounds_the_root_and_tmp_together_and_says_no_space() {
    if !can_run("disk") {
        return;
    }
    for (script, read_only_root) in [
        ("dd if=/dev/zero of=/fill bs=1M count=64; echo status $?", false),
        ("dd if=/dev/zero of=/tmp/fill bs=1M count=64; echo status $?", false),
        ("dd if=/dev/zero of=/tmp/fill bs=1M count=64; echo status $?; touch /x", true),
    ] {
        let mut prepared = Prepared::new(script);
        prepared.main().read_only_root = read_only_root;
        let ended = prepared.run();
        assert!(ended.output.contains("No space left on device"), "{}", ended.output);
        assert!(ended.output.contains("status 1"), "{}", ended.output);
        assert_eq!(ended.output.contains("Read-only file system"), read_only_root);
        assert!(ended.evidence.contains("out_of_memory: false"), "the disk is no memory");
    }
}

#[test]
fn shared_memory_and_tmpfs_are_bounded() {
    if !can_run("shared-memory") {
        return;
    }
    let mut prepared = Prepared::new(
        "probe shm 8000000; dd if=/dev/zero of=/scratch/fill bs=64k count=100; ls -ld /scratch",
    );
    prepared.main().tmpfs.push(TmpfsPlan {
        path: "/scratch".into(),
        size_bytes: 1 << 20,
        mode: 0o1777,
        read_only: false,
        no_exec: true,
    });
    let ended = prepared.run();
    let no_space = rustix::io::Errno::NOSPC.raw_os_error();
    assert!(ended.output.contains(&format!("errno {no_space} after 1048576")), "{}", ended.output);
    assert!(ended.output.contains("No space left on device"), "{}", ended.output);
    assert!(ended.output.contains("drwxrwxrwt"), "{}", ended.output);
}

#[test]
fn the_cpu_quota_throttles_after_the_boost_and_not_before() {
    if !can_run("cpu") {
        return;
    }
    // A tenth of a CPU: 300 ms of work throttle it for sure, in any of the control group versions.
    let script = "throttled() { grep nr_throttled /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null; }
        probe spin 300; throttled; touch /dev/shm/boosted
        while [ ! -e /dev/shm/limited ]; do sleep 0.01; done
        probe spin 300; throttled";
    let mut prepared = Prepared::new(script);
    prepared.main().limits.cpu_millis = 100;
    prepared.launch.plan.boost_millis = 10_000;
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    for _ in 0..2000 {
        if sandbox.output("0").contains("nr_throttled") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    sandbox.ok("end_boost");
    let process = super::harness::process("touch /dev/shm/limited");
    sandbox.ok(&format!("exec 0 {}", serde_json::to_string(&process).unwrap()));
    sandbox.ok("wait 0");
    let output = sandbox.output("0");
    let counts: Vec<u64> =
        output.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
    assert!(matches!(counts[..], [0, after] if after > 0), "boosted, then limited: {output}");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}
