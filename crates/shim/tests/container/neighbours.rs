//! What a sandbox must not take from its host or from the sandbox beside it: counts that the kernel keeps by user, CPU time, memory outside
//! of limits, names outside of its own namespaces, and the host's handler of crashes.

use std::time::{Duration, Instant};

use atoll_wire::guest::UserIds;

use super::harness::{Prepared, Sandbox, can_run, container};

/// Waits until a container has written something that ends with a line break.
fn said(sandbox: &Sandbox, name: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = sandbox.output(name);
        if output.ends_with('\n') {
            return output;
        }
        assert!(Instant::now() < deadline, "container {name} says nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn begun(prepared: Prepared) -> Sandbox {
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    sandbox
}

fn end(mut sandbox: Sandbox) {
    sandbox.ok("kill 0");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}

#[test]
fn a_sandbox_cannot_use_up_what_the_kernel_counts_for_the_hosts_root() {
    if !can_run("inotify") {
        return;
    }
    let instances = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let instances: u32 = instances.trim().parse().unwrap();
    if instances > 900 {
        println!(
            "SKIPPED: container/inotify: this host allows more instances than a process has descriptors"
        );
        return;
    }
    // Ids of their own: what is counted for one must not be counted for another, nor for the host's root.
    let mut greedy = Prepared::new("exec probe watch 1000");
    greedy.launch.placement.first_host_id = Some(700_131_072);
    let greedy = begun(greedy);
    let emfile = rustix::io::Errno::MFILE.raw_os_error();
    assert_eq!(said(&greedy, "0"), format!("watched {instances} errno {emfile}\n"));
    let mut other = Prepared::new("exec probe watch 3");
    other.launch.placement.first_host_id = Some(700_196_608);
    let other = begun(other);
    assert_eq!(said(&other, "0"), "watched 3 errno 0\n");
    rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)
        .expect("the host's root has its own");
    end(greedy);
    end(other);
}

#[test]
fn a_crash_starts_no_handler_of_the_host_and_nobody_inside_can_change_that() {
    if !can_run("core-dumps") {
        return;
    }
    for uid in [0, 65534] {
        let mut prepared = Prepared::new("exec probe crash");
        prepared.main().process.user = UserIds { uid, gid: uid, supplementary_gids: vec![] };
        let ended = prepared.run();
        // Not 0: with 0 the kernel still starts a handler.
        assert_eq!(ended.output, "core 1 1\n");
        assert!(ended.evidence.contains("Signal(11)"), "{}", ended.evidence);
    }
}

#[test]
fn nobody_gets_more_than_the_groups_share_by_priority_or_huge_pages() {
    if !can_run("priority") {
        return;
    }
    for (uid, with_users) in [(0, true), (65534, true), (0, false)] {
        let mut prepared = Prepared::new("exec probe priority");
        prepared.main().process.user = UserIds { uid, gid: uid, supplementary_gids: vec![] };
        if !with_users {
            prepared.launch.placement.first_host_id = None;
        }
        let output = prepared.run().output;
        assert_eq!(output.lines().count(), 9, "{output}");
        for line in output.lines() {
            assert!(!line.ends_with("=0"), "{line} for user {uid}, user namespace: {with_users}");
        }
    }
}

#[test]
fn names_of_ipc_are_shared_within_a_sandbox_and_with_nobody_else() {
    if !can_run("ipc") {
        return;
    }
    let names = ["segment", "semaphore", "messages", "queue", "abstract"];
    let mut prepared = Prepared::new("exec probe ipc-make 77");
    let member = container("second", &prepared.layer(), "exec probe ipc 77");
    prepared.launch.plan.containers.push(member);
    let mut sandbox = begun(prepared);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !sandbox.output("0").contains("abstract=") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let all = |errno: &str| names.map(|name| format!("{name}={errno}\n")).concat();
    assert_eq!(sandbox.output("0"), all("0"));
    sandbox.ok("begin 1");
    sandbox.ok("wait 1");
    assert_eq!(sandbox.output("1"), all("0"), "of one sandbox");
    let stranger = Prepared::new("exec probe ipc 77").run().output;
    let missing = rustix::io::Errno::NOENT.raw_os_error();
    let refused = rustix::io::Errno::CONNREFUSED.raw_os_error();
    for (line, name) in stranger.lines().zip(names) {
        let expected = if name == "abstract" { refused } else { missing };
        assert_eq!(line, format!("{name}={expected}"), "{stranger}");
    }
    assert_eq!(stranger.lines().count(), names.len());
    end(sandbox);
}

#[test]
fn the_root_has_the_owner_and_mode_that_the_topmost_layer_gives_it() {
    if !can_run("root-owner") {
        return;
    }
    for first_host_id in [Some(700_000_000), None] {
        let mut prepared = Prepared::new("stat -c '%a %u %g' /");
        prepared.launch.placement.first_host_id = first_host_id;
        let top = prepared.directory.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let (user, group) = (rustix::fs::Uid::from_raw(1000), rustix::fs::Gid::from_raw(1001));
        rustix::fs::chown(&top, Some(user), Some(group)).unwrap();
        rustix::fs::chmod(&top, rustix::fs::Mode::from_raw_mode(0o2711)).unwrap();
        let layer = prepared.layer();
        prepared.main().layers = vec![top, layer];
        assert_eq!(prepared.run().output, "2711 1000 1001\n");
    }
}
