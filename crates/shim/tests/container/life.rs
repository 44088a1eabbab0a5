//! A container's life: kill, take-over by another shim, removal at any moment, several containers in one sandbox.

use std::fs;

use atoll_sys::process::{ProcessIdentity, ProcessState};
use atoll_wire::record::{ContainerRecord, ProcessId, RECORD_VERSION, ShimRecord};
use atoll_wire::shim::{Init, VolumeMountPlan, VolumePlan};

use super::harness::{Prepared, can_run, container, process};

/// The identity in the answer to `begin`.
fn identity(answer: &str) -> ProcessIdentity {
    let fields: Vec<&str> = answer.split(' ').collect();
    ProcessIdentity {
        pid: fields[0].parse().unwrap(),
        start_time_ticks: fields[1].parse().unwrap(),
        boot_id: fields[2].into(),
    }
}

#[test]
fn a_killed_container_is_gone_with_all_it_started() {
    if !can_run("kill") {
        return;
    }
    let mut sandbox = Prepared::new("sleep 600 & sleep 600 & sleep 600").start();
    sandbox.ok("prepare");
    let init = identity(&sandbox.ok("begin 0"));
    assert_eq!(init.state().unwrap(), ProcessState::Running);
    sandbox.ok("kill 0");
    sandbox.ok("wait 0");
    assert!(sandbox.ok("evidence 0").contains("init_exit: Some(Signal(9))"));
    sandbox.ok("kill 0");
    assert_eq!(init.state().unwrap(), ProcessState::Zombie, "reaped only when all is recorded");
    sandbox.ok("remove");
    assert_eq!(init.state().unwrap(), ProcessState::Gone);
    sandbox.assert_nothing_left();
    sandbox.ok("remove");
}

#[test]
fn a_signal_reaches_the_first_process_and_its_exit_code_is_told() {
    if !can_run("signal") {
        return;
    }
    let mut sandbox =
        Prepared::new("trap 'exit 42' TERM; echo ready; while true; do sleep 0.01; done").start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    while sandbox.output("0").is_empty() {
        std::thread::yield_now();
    }
    sandbox.ok("signal 0 15");
    sandbox.ok("wait 0");
    assert!(sandbox.ok("evidence 0").contains("init_exit: Some(Code(42))"));
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn removal_at_any_moment_leaves_nothing() {
    if !can_run("removal") {
        return;
    }
    for commands in [&[][..], &["prepare"], &["prepare", "begin 0"], &["begin 0"]] {
        let mut sandbox = Prepared::new("sleep 600 & exec sleep 600").start();
        for command in commands {
            sandbox.command(command);
        }
        sandbox.ok("remove");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn the_containers_of_a_sandbox_share_network_ipc_hostname_and_volumes_but_not_processes_or_files() {
    if !can_run("several") {
        return;
    }
    let show = "for kind in net ipc uts user pid mnt cgroup; do echo $kind $(readlink /proc/self/ns/$kind); done; cat /proc/self/mountinfo > /dev/shm/$0";
    let mut prepared = Prepared::new(&format!(
        "{show}; echo hello > /data/greeting; echo private > /private; sleep 600"
    ));
    std::os::unix::fs::symlink("busybox", prepared.layer().join("bin/readlink")).unwrap();
    let layer = prepared.layer();
    let second = container(
        "second",
        &layer,
        &format!(
            "{show}; cat /data/greeting; (echo x > /data/y) 2>&1; ls /private; ps; ls /dev/shm"
        ),
    );
    prepared.launch.plan.containers.push(second);
    prepared.launch.plan.volumes.push(VolumePlan {
        name: "data".into(),
        size_bytes: 1 << 20,
        ..VolumePlan::default()
    });
    for (plan, read_only) in prepared.launch.plan.containers.iter_mut().zip([false, true]) {
        let volume = "data".to_owned();
        plan.volume_mounts.push(VolumeMountPlan { volume, path: "/data".into(), read_only });
    }
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    while !sandbox.output("0").contains("cgroup ") {
        std::thread::yield_now();
    }
    let spec =
        serde_json::to_string(&process("while [ ! -e /private ]; do sleep 0.01; done")).unwrap();
    sandbox.ok(&format!("exec 0 {spec}"));
    sandbox.ok("begin 1");
    sandbox.ok("wait 1");
    let (first, second) = (sandbox.output("0"), sandbox.output("1"));
    let of = |output: &str, kind: &str| {
        let line = output.lines().find(|line| line.starts_with(kind)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{kind} in {output}"))
    };
    for kind in ["net", "ipc", "uts", "user"] {
        assert_eq!(of(&first, kind), of(&second, kind));
    }
    for kind in ["pid", "mnt", "cgroup"] {
        assert_ne!(of(&first, kind), of(&second, kind));
    }
    assert!(second.contains("hello\n"), "{second}");
    assert!(second.contains("Read-only file system"), "{second}");
    assert!(second.contains("/private: No such file"), "{second}");
    assert!(!second.contains("sleep 600"), "{second}");
    // The end of one is not the end of the other.
    let spec = serde_json::to_string(&process("echo alive")).unwrap();
    assert_eq!(sandbox.ok(&format!("exec 0 {spec}")), "Some(Code(0))");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn another_shim_takes_over_what_runs_and_only_that() {
    if !can_run("adopt") {
        return;
    }
    let mut prepared = Prepared::new("sleep 600");
    let layer = prepared.layer();
    prepared.launch.plan.containers.push(container("second", &layer, "true"));
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    let (first, second) = (identity(&sandbox.ok("begin 0")), identity(&sandbox.ok("begin 1")));
    sandbox.ok("wait 1");
    sandbox.kill_driver();
    assert_eq!(first.state().unwrap(), ProcessState::Running, "it outlives its shim");

    let mut sandbox = sandbox.replace_driver();
    let record = |name: &str, init: &ProcessIdentity| ContainerRecord {
        name: name.into(),
        init: ProcessId {
            pid: init.pid,
            start_time_ticks: init.start_time_ticks,
            boot_id: init.boot_id.clone(),
        },
        started_at_unix_micros: None,
        exit: None,
        released: false,
    };
    let mut liar = first.clone();
    liar.start_time_ticks += 1;
    let records = |init: &ProcessIdentity| ShimRecord {
        version: RECORD_VERSION,
        shim: record("shim", init).init,
        containers: vec![record("main", init), record("second", &second)],
    };
    let adopt = |record: ShimRecord| format!("adopt {}", serde_json::to_string(&record).unwrap());
    assert_eq!(sandbox.ok(&adopt(records(&liar))), "[false, false]");
    assert_eq!(sandbox.ok(&adopt(records(&first))), "[true, false]");
    let spec = serde_json::to_string(&process("ps; hostname")).unwrap();
    assert_eq!(sandbox.ok(&format!("exec 0 {spec}")), "Some(Code(0))");
    assert!(sandbox.output("exec").contains("sleep 600"), "{}", sandbox.output("exec"));
    sandbox.ok("kill 0");
    sandbox.ok("wait 0");
    sandbox.ok("remove");
    assert_ne!(first.state().unwrap(), ProcessState::Running);
    sandbox.assert_nothing_left();
}

#[test]
fn the_guest_begins_with_its_streams_an_empty_environment_and_the_rights_it_needs() {
    if !can_run("guest") {
        return;
    }
    let mut prepared = Prepared::new("unused");
    let guest = prepared.directory.path().join("sh");
    fs::copy(prepared.layer().join("bin/busybox"), &guest).unwrap();
    prepared.main().init = Init::Guest;
    prepared.main().limits.pids = 1;
    prepared.launch.placement.guest_binary = guest;
    let script = "/bin/echo pid $$; /bin/cat /proc/1/environ; /bin/grep Cap /proc/self/status\n";
    fs::write(prepared.launch.placement.directory.join("0.in"), script).unwrap();
    let output = prepared.run().output;
    assert!(output.starts_with("pid 1\nCapInh:"), "an empty environment: {output}");
    // The default set, and SYS_ADMIN and SYS_RESOURCE of its own user namespace.
    assert!(output.contains("CapEff:\t00000000012405fb"), "{output}");
    assert!(output.contains("CapBnd:\t00000000012405fb"), "{output}");
}
