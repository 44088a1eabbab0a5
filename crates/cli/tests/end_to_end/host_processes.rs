//! The processes of an instance on its host: how many threads they have, who began them, and that none of them dies with its parent.

use std::collections::BTreeMap;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::support::{IMAGE, Instance, LIMIT, in_each_class, processes_of, wait_until};

/// What the kernel says of a process, where it is still there.
fn field(pid: i32, file: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn words(pid: i32) -> Vec<String> {
    field(pid, "cmdline").split_terminator('\0').map(str::to_owned).collect()
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Fields 3 on of its `stat`: state, parent, … SOURCE: proc(5).
fn stat(pid: i32) -> Vec<String> {
    let stat = field(pid, "stat");
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').map(str::to_owned).collect()
}

fn parent(pid: i32) -> i32 {
    stat(pid).get(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Each process with the time at which it began: a number alone may be another's by now.
fn identities(pids: impl IntoIterator<Item = i32>) -> BTreeMap<i32, String> {
    pids.into_iter().filter_map(|pid| Some((pid, stat(pid).get(19)?.clone()))).collect()
}

fn server(instance: &Instance) -> i32 {
    instance.server_pid().expect("a server runs").as_raw_nonzero().get()
}

/// `atoll-shim spawner`, begun by the server. A shim is a copy of one, by name too, but the server is not its parent for long.
fn spawners(instance: &Instance) -> Vec<i32> {
    let server = server(instance);
    let of_server =
        |pid: &i32| parent(*pid) == server && words(*pid).iter().any(|it| it == "spawner");
    processes_of(&instance.data_dir()).into_iter().filter(of_server).collect()
}

fn uid(instance: &Instance, name: &str) -> String {
    let sandbox = instance.sandbox(name).expect("it is there");
    sandbox["uid"].as_str().expect("a uid").to_owned()
}

fn shim(instance: &Instance, name: &str) -> i32 {
    let directory = instance.data_dir().join("sandboxes").join(uid(instance, name));
    let record = std::fs::read(directory.join("shim.json")).expect("the shim's record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("the shim's record");
    i32::try_from(record["shim"]["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// All that runs for a sandbox but its shim: what is in its control group, and what descends from the shim.
fn of_sandbox(instance: &Instance, name: &str) -> Vec<i32> {
    let (uid, shim) = (uid(instance, name), shim(instance, name));
    let belongs =
        |pid: &i32| *pid != shim && (field(*pid, "cgroup").contains(&uid) || parent(*pid) == shim);
    processes_of(&instance.data_dir()).into_iter().filter(belongs).collect()
}

fn create(instance: &Instance, class: &str, name: &str) {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, 'sleep 1000 & wait']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

/// Kills, and returns when all that the kernel does for the orphans is done: their signals are sent before the end is told.
fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("it is there");
    kill_process(pid, Signal::KILL).expect("it is there");
    let limit = Timespec::try_from(LIMIT).expect("a short time");
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
    assert_eq!(ended.expect("poll of a pidfd"), 1, "{pid:?} does not die");
}

#[test]
fn spawners_and_shims_have_one_thread_each_and_there_is_a_spawner_for_each_core() {
    in_each_class("one_thread", |instance, class| {
        let cores = std::thread::available_parallelism().expect("a number of cores").get();
        for name in ["first", "second"] {
            create(instance, class, name);
            let shim = shim(instance, name);
            assert_eq!(threads(shim), 1, "the shim of {name}: {:?}", words(shim));
            assert_ne!(stat(shim)[3], stat(server(instance))[3], "a session of its own");
            assert_ne!(parent(shim), server(instance));
        }
        let spawners = spawners(instance);
        assert_eq!(spawners.len(), cores, "{spawners:?}");
        for spawner in spawners {
            assert_eq!(threads(spawner), 1, "a process with threads cannot be copied safely");
        }
        // While it serves: the work for a stream begins no thread either.
        let mut client = instance.begin(["exec", "-i", "first", "--", "cat"]);
        client.write(b"here\n");
        client.line_with("here");
        assert_eq!(threads(shim(instance, "first")), 1);
        client.close_stdin();
        client.finish().succeeded();
        for name in ["first", "second"] {
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        }
    });
}

/// A parent-death signal would end a child with its parent (with the very thread that began it). Each parent dies here, one after the other.
#[test]
fn nothing_of_a_sandbox_dies_with_what_began_it() {
    in_each_class("parents_die", |instance, class| {
        create(instance, class, "orphan");
        let first_shim = shim(instance, "orphan");
        let before = identities(of_sandbox(instance, "orphan"));
        assert!(before.len() >= 2, "a guest or a Sentry, and more: {before:?}");
        let all = |with_shim: bool| {
            let mut all = before.clone();
            all.extend(identities(with_shim.then_some(first_shim)));
            assert_eq!(identities(all.keys().copied()), all, "the same processes, all of them");
        };
        // The shim's parent.
        for spawner in spawners(instance) {
            kill(spawner);
        }
        all(true);
        instance.atoll(["exec", "orphan", "--", "true"]).succeeded();
        all(true);
        // What began the spawners.
        instance.kill_server();
        all(true);
        // The parent of all that runs.
        kill(first_shim);
        all(false);
        instance.up();
        wait_until("another shim has taken over", || {
            instance.atoll(["exec", "orphan", "--", "true"]).code == Some(0)
        });
        assert_ne!(shim(instance, "orphan"), first_shim);
        all(false);
        instance.atoll(["delete", "sandbox/orphan"]).succeeded();
    });
}

/// Attached, `runsc run` would hold the sandbox by its own life: it is used by create and start alone, and is gone by then.
#[test]
fn runsc_is_never_left_attached_and_is_no_child_of_the_server() {
    in_each_class("runsc_detached", |instance, class| {
        if class != "gvisor" {
            return;
        }
        create(instance, class, "detached");
        let mut client = instance.begin(["exec", "-i", "detached", "--", "cat"]);
        client.write(b"here\n");
        client.line_with("here");
        let (shim, server) = (shim(instance, "detached"), server(instance));
        let mut seen = Vec::new();
        for pid in processes_of(&instance.data_dir()) {
            let words = words(pid);
            if !words.first().is_some_and(|it| it.contains("runsc")) {
                continue;
            }
            let verb = ["run", "create", "start", "exec", "wait", "boot", "gofer"]
                .into_iter()
                .find(|verb| words.iter().any(|word| word == verb));
            assert!(
                matches!(verb, Some("boot" | "gofer")),
                "only what the sandbox itself consists of: {words:?}"
            );
            assert_ne!(parent(pid), server, "{words:?}");
            assert_eq!(parent(pid), shim, "who is its parent learns of its end: {words:?}");
            seen.extend(verb);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, ["boot", "gofer"]);
        client.close_stdin();
        client.finish().succeeded();
        instance.atoll(["delete", "sandbox/detached"]).succeeded();
    });
}
