//! What a workload must not be able to do, tried by a hostile program inside: as the container's root and as nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use atoll_wire::guest::UserIds;
use atoll_wire::shim::Init;

use super::harness::{Prepared, can_run, process};

/// Results by name, from the probe's `NAME=ERRNO` lines.
fn results(output: &str) -> Vec<(&str, i32)> {
    output
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(name, errno)| Some((name, errno.parse().ok()?)))
        .collect()
}

#[test]
fn dangerous_system_calls_are_refused_to_root_and_to_nobody() {
    if !can_run("system-calls") {
        return;
    }
    for uid in [0, 65534] {
        let mut prepared = Prepared::new("exec probe syscalls");
        prepared.main().process.user = UserIds { uid, gid: uid, supplementary_gids: vec![] };
        let ended = prepared.run();
        let results = results(&ended.output);
        assert!(results.len() >= 45, "the probe tried everything: {}", ended.output);
        for (name, errno) in &results {
            assert!(*errno != 0, "{name} worked for user {uid}");
        }
        // By the filter, not by chance: these errors are the filter's own.
        for (name, expected) in [
            ("io_uring_setup", rustix::io::Errno::PERM),
            ("bpf", rustix::io::Errno::PERM),
            ("userfaultfd", rustix::io::Errno::PERM),
            ("keyctl", rustix::io::Errno::PERM),
            ("unshare_user", rustix::io::Errno::PERM),
            ("clone_new_user", rustix::io::Errno::PERM),
            ("clone3", rustix::io::Errno::NOSYS),
            ("socket_alg", rustix::io::Errno::AFNOSUPPORT),
            ("socket_vsock", rustix::io::Errno::AFNOSUPPORT),
            ("socket_packet", rustix::io::Errno::AFNOSUPPORT),
            // CVE-2024-1086 and its kin begin with a netfilter socket in a new user namespace.
            ("socket_netfilter", rustix::io::Errno::AFNOSUPPORT),
        ] {
            assert!(results.contains(&(name, expected.raw_os_error())), "{name}: {results:?}");
        }
    }
}

#[test]
fn a_process_from_outside_is_confined_like_the_first() {
    if !can_run("outside") {
        return;
    }
    let mut sandbox = Prepared::new("sleep 60").start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    let script = "probe syscalls; probe fds; cat /proc/self/status; echo oom $(cat /proc/self/oom_score_adj); cat /proc/self/cgroup; hostname; \
        ps; echo root $(stat -c %d /) $(stat -c %d /proc/1/root/)";
    let mut spec = process(script);
    spec.oom_score_adj = 321;
    let spec = serde_json::to_string(&spec).unwrap();
    assert_eq!(sandbox.ok(&format!("exec 0 {spec}")), "Some(Code(0))");
    let output = sandbox.output("exec");
    for (name, errno) in results(&output) {
        assert!(errno != 0, "{name} worked: {output}");
    }
    for expected in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t00000000000405fb",
        "sleep 60",
        "island",
        "oom 321",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(
        output
            .lines()
            .filter(|line| line.starts_with("fd "))
            .all(|line| ["fd 0", "fd 1", "fd 2"].contains(&line))
    );
    assert!(output.lines().any(|line| line == "0::/" || line.ends_with(":memory:/")), "{output}");
    sandbox.ok("kill 0");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn rights_are_the_default_set_for_root_and_none_for_nobody() {
    if !can_run("rights") {
        return;
    }
    let script = "cat /proc/self/status; id; echo oom $(cat /proc/self/oom_score_adj)";
    let mut prepared = Prepared::new(script);
    prepared.main().process.oom_score_adj = 321;
    let ended = prepared.run();
    for expected in [
        "oom 321",
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000000405fb",
        "CapEff:\t00000000000405fb",
        "CapBnd:\t00000000000405fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "uid=0(root) gid=0",
    ] {
        assert!(ended.output.contains(expected), "{expected}: {}", ended.output);
    }
    let mut prepared = Prepared::new(script);
    prepared.main().process.user =
        UserIds { uid: 65534, gid: 65534, supplementary_gids: vec![7, 8] };
    let ended = prepared.run();
    for expected in [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000000405fb",
        "Groups:\t7 8",
    ] {
        assert!(ended.output.contains(expected), "{expected}: {}", ended.output);
    }
}

#[test]
fn root_inside_is_an_unprivileged_user_of_the_host() {
    if !can_run("host-ids") {
        return;
    }
    let mut sandbox = Prepared::new("touch /mine; sleep 60").start();
    sandbox.ok("prepare");
    let answer = sandbox.ok("begin 0");
    let pid = answer.split(' ').next().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t700000000\t700000000\t700000000\t700000000"), "{status}");
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        let its = fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(own, its, "{namespace}");
    }
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn a_set_user_id_program_gains_nothing() {
    if !can_run("set-user-id") {
        return;
    }
    let mut prepared = Prepared::new("exec /bin/gain rights /secret");
    let layer = prepared.layer();
    fs::copy(layer.join("bin/probe"), layer.join("bin/gain")).unwrap();
    fs::set_permissions(layer.join("bin/gain"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(layer.join("secret"), "of root\n").unwrap();
    fs::set_permissions(layer.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    prepared.main().process.user = UserIds { uid: 1000, gid: 1000, supplementary_gids: vec![] };
    let ended = prepared.run();
    let refused = rustix::io::Errno::ACCESS.raw_os_error();
    assert_eq!(ended.output, format!("euid 1000 egid 1000\nopen={refused}\n"));
}

#[test]
fn kernel_files_are_masked_or_read_only() {
    if !can_run("kernel-files") {
        return;
    }
    let script = "for file in kcore keys latency_stats timer_list sched_debug interrupts; do
            [ -e /proc/$file ] && echo \"$file: $(head -c 10 /proc/$file | wc -c)\"; done
        for directory in acpi asound scsi; do [ -e /proc/$directory ] && echo \"$directory: $(ls /proc/$directory | wc -l)\"; done
        ls /sys/firmware | head -3
        for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/sys/vm/drop_caches \
            /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs; do
            [ -e $file ] && (echo x > $file) 2>&1; done; echo end";
    // Even as root without a user namespace, where file modes would let it through.
    for with_users in [true, false] {
        let mut prepared = Prepared::new(script);
        if !with_users {
            prepared.launch.placement.first_host_id = None;
        }
        let output = prepared.run().output;
        assert!(output.ends_with("end\n"), "{output}");
        for line in output.lines().filter(|line| line.contains(": ") && !line.contains('/')) {
            assert!(line.ends_with(": 0"), "{line} of {output}");
        }
        let refused: Vec<&str> =
            output.lines().filter(|line| line.contains("can't create")).collect();
        assert!(refused.len() >= 4, "{output}");
        for line in refused {
            let known = ["Read-only file system", "Permission denied"];
            assert!(known.iter().any(|reason| line.ends_with(reason)), "{line}");
        }
        assert!(!output.contains("write error"), "{output}");
    }
}

#[test]
fn without_a_user_namespace_all_other_walls_stand() {
    if !can_run("no-user-namespace") {
        return;
    }
    let mut prepared = Prepared::new("probe syscalls; cat /proc/self/status; exec probe fds");
    prepared.launch.placement.first_host_id = None;
    let ended = prepared.run();
    let results = results(&ended.output);
    assert!(results.len() >= 45, "{}", ended.output);
    for (name, errno) in &results {
        assert!(*errno != 0, "{name} worked: {}", ended.output);
    }
    assert!(ended.output.contains("CapEff:\t00000000000405fb"), "{}", ended.output);
}

#[test]
fn only_the_few_devices_are_there_and_no_others_work() {
    if !can_run("devices") {
        return;
    }
    let prepared = Prepared::new("ls /dev; echo x > /dev/null; cat /disk");
    // A device node in the image itself: a block device of the host.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        prepared.layer().join("disk"),
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(254, 0),
    )
    .unwrap();
    let output = prepared.run().output;
    let (devices, refusal) = output.split_once("cat: ").unwrap_or((&output, ""));
    assert!(refusal.ends_with("/disk': Permission denied\n"), "{output}");
    let known = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    assert_eq!(devices.lines().collect::<Vec<_>>(), known);
}

#[test]
fn cve_2019_5736_the_first_process_cannot_be_overwritten_through_proc() {
    if !can_run("cve-2019-5736") {
        return;
    }
    // The worst case: the program that stands in for the guest attacks itself, with all the rights that the guest has.
    let mut prepared = Prepared::new("unused");
    let guest = prepared.directory.path().join("sh");
    fs::copy(prepared.layer().join("bin/busybox"), &guest).unwrap();
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o711)).unwrap();
    let before = fs::read(&guest).unwrap();
    prepared.main().init = Init::Guest;
    prepared.launch.placement.guest_binary.clone_from(&guest);
    let attack = "export PATH=/bin; (echo broken > /proc/1/exe) 2>&1; (echo broken >> /proc/self/exe) 2>&1; (cat /proc/1/exe > /copy) 2>&1
        mount -o remount,rw / 2>&1; mount -t tmpfs none /tmp 2>&1; ls -l /proc/1/exe 2>&1
        cat /proc/1/status | grep -e CapEff -e Uid; probe fds; exit 7\n";
    fs::write(prepared.launch.placement.directory.join("0.in"), attack).unwrap();
    let ended = prepared.run_keeping(|directory| {
        assert!(fs::read(directory.join("sh")).unwrap() == before, "the guest program was changed");
    });
    assert!(ended.evidence.contains("Code(7)"), "{} {}", ended.evidence, ended.output);
    let refused = ended
        .output
        .lines()
        .filter(|line| {
            line.contains("can't create /proc/") || line.contains("can't open '/proc/1/exe'")
        })
        .count();
    assert!(refused >= 2, "{}", ended.output);
    assert!(!ended.output.contains("fd 3"), "{}", ended.output);
    let mounts = ended.output.lines().filter(|line| line.starts_with("mount: ")).count();
    assert_eq!(mounts, 2, "no mount works: {}", ended.output);
}

#[test]
fn cve_2024_21626_no_descriptor_of_the_host_is_left_and_none_is_a_working_directory() {
    if !can_run("cve-2024-21626") {
        return;
    }
    let ended = Prepared::new("exec probe fds").run();
    let descriptors: Vec<&str> = ended.output.lines().collect();
    assert_eq!(descriptors, ["fd 0", "fd 1", "fd 2"]);
    for number in 0..24 {
        let mut prepared = Prepared::new("pwd; ls ..");
        prepared.main().process.working_directory = format!("/proc/self/fd/{number}");
        let reason = prepared.refusal();
        assert!(reason.contains("working directory"), "{reason}");
    }
    // The same through a link of the image.
    let mut prepared = Prepared::new("pwd; ls ..");
    std::os::unix::fs::symlink("/proc/self/fd/7", prepared.layer().join("start")).unwrap();
    prepared.main().process.working_directory = "/start".into();
    assert!(prepared.refusal().contains("working directory"));
}
