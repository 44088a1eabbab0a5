//! `atoll up` and `atoll down`.

use rustix::process::{Signal, kill_process};

use crate::support::{
    IMAGE, Instance, REAL_CLASSES, in_each_class, instance_with_image, wait_until,
};

#[test]
fn down_leaves_nothing_and_can_be_repeated() {
    let Some(instance) = instance_with_image("down") else { return };
    for class in
        REAL_CLASSES.iter().filter(|class| instance.available_classes().iter().any(|c| c == *class))
    {
        let text = format!(
            "kind: Sandbox\nid: stays-{class}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n"
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    }
    assert!(!instance.leftovers().is_empty(), "something runs before");
    instance.atoll(["down"]).succeeded();
    let left = instance.leftovers();
    assert!(left.is_empty(), "{left:#?}");
    let again = instance.atoll(["down"]).succeeded();
    assert!(again.contains("no atoll runs"), "{again}");
    instance.atoll(["get", "sandboxes"]).complains("atoll up --data-dir");
    instance.up();
    instance.has_no_sandboxes();
    let images = instance.atoll(["image", "ls"]).succeeded();
    assert!(images.contains(IMAGE), "images stay: {images}");
    instance.end();
}

#[test]
fn down_finds_the_sandboxes_of_a_server_that_was_killed() {
    let Some(instance) = instance_with_image("down_after_kill") else { return };
    instance.atoll(["run", "--keep", "--name", "ended", IMAGE, "--", "true"]).succeeded();
    let text = format!(
        "kind: Sandbox\nid: runs\nspec:\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    instance.kill_server();
    instance.atoll(["get", "sandboxes"]).complains("no atoll runs");
    instance.end();
}

#[test]
fn a_second_server_for_the_same_directory_is_refused() {
    let instance = Instance::start();
    let directory = instance.data_dir().display().to_string();
    let second = instance.atoll(["up", "--detach", "--listen", "127.0.0.1:0"]);
    second.ended_with(1);
    second.complains(&directory).complains("atoll down");
    instance.has_no_sandboxes();
    let elsewhere = instance.atoll(["up", "--listen", "8.8.8.8:80"]);
    assert_ne!(elsewhere.code, Some(0));
    elsewhere.complains("loopback");
    instance.end();
}

#[test]
fn in_the_foreground_it_says_where_it_serves_and_leaves_sandboxes_running() {
    let Some(instance) = instance_with_image("foreground") else { return };
    instance.atoll(["down"]).succeeded();
    let mut up = instance.begin(["up", "--network=off", "--listen", "127.0.0.1:0"]);
    let line = up.line_with("atoll serves at http://127.0.0.1:");
    let address =
        line.split_whitespace().find(|word| word.starts_with("http")).expect("an address");
    let mut remote = crate::support::atoll(["--server", address, "get", "sandboxes"]);
    let token = std::fs::read_to_string(instance.data_dir().join("token")).unwrap();
    remote.env("ATOLL_TOKEN", token.trim());
    crate::support::finish(remote, b"").succeeded();
    let mut wrong = crate::support::atoll(["--server", address, "get", "sandboxes"]);
    wrong.env("ATOLL_TOKEN", "wrong");
    let refused = crate::support::finish(wrong, b"");
    refused.ended_with(1);
    refused.complains("unauthorized");
    let text = format!(
        "kind: Sandbox\nid: stays\nspec:\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    let uid = instance.sandbox("stays").expect("it runs")["uid"].clone();
    up.signal(Signal::INT);
    up.finish().succeeded();
    assert!(!instance.leftovers().processes.is_empty(), "the sandbox goes on");
    instance.up();
    let stays = instance.sandbox("stays").expect("it was found again");
    assert_eq!((&stays["uid"], &stays["status"]["phase"]), (&uid, &"Running".into()), "{stays}");
    instance.atoll(["exec", "stays", "--", "true"]).succeeded();
    instance.end();
}

#[test]
fn the_server_goes_on_when_the_terminal_that_started_it_is_closed() {
    let instance = Instance::start();
    let pid = instance.server_pid().expect("it serves");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    let session: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    assert_eq!(session.get(3).copied(), Some(pid.as_raw_nonzero().to_string().as_str()), "{stat}");
    kill_process(pid, Signal::HUP).unwrap();
    wait_until("it answers", || instance.atoll(["get", "sandboxes"]).code == Some(0));
    instance.end();
}

#[test]
fn containers_may_have_any_name_that_a_manifest_allows() {
    in_each_class("container_names", |instance, class| {
        let long = "x".repeat(64);
        let names = ["logs", "shim.sock", &long];
        let containers: String = names
            .iter()
            .map(|name| {
                format!(
                    "    - name: {name}\n      image: {IMAGE}\n      args: [sh, -c, 'echo of {name}; sleep 1000']\n"
                )
            })
            .collect();
        let manifest = format!(
            "kind: Sandbox\nid: names-{class}\nspec:\n  class: {class}\n  containers:\n{containers}"
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], manifest.as_bytes()).succeeded();
        for name in names {
            let id = format!("names-{class}");
            let exec = instance.atoll(["exec", &id, "-c", name, "--", "echo", "inside"]);
            assert_eq!(exec.succeeded(), "inside\n");
            crate::support::wait_until("its output is in its own log", || {
                instance.atoll(["logs", &id, name]).succeeded() == format!("of {name}\n")
            });
        }
        instance.atoll(["delete", &format!("sandbox/names-{class}")]).succeeded();
    });
}

#[test]
fn a_timeline_has_every_phase_and_sums_to_its_total() {
    in_each_class("timeline", |instance, class| {
        let name = format!("timed-{class}");
        let run = ["run", "--class", class, "--keep", "--name", &name, IMAGE, "--", "true"];
        instance.atoll(run).succeeded();
        let sandbox = instance.sandbox(&name).expect("it was kept");
        let timeline = &sandbox["status"]["timeline"];
        let phases: Vec<(&str, u64)> = timeline["phases"]
            .as_array()
            .expect("phases")
            .iter()
            .map(|it| {
                let (name, micros) = (it["name"].as_str(), it["micros"].as_u64());
                (name.expect("a name"), micros.expect("a duration"))
            })
            .collect();
        let names: Vec<&str> = phases.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            ["store", "queue", "image", "prepare", "spawn", "sandbox", "command", "publish"]
        );
        for (phase, micros) in &phases {
            assert!(*micros > 0, "{phase} took no time at all: {timeline}");
        }
        let sum: u64 = phases.iter().map(|(_, micros)| micros).sum();
        assert_eq!(timeline["total_micros"], sum, "{timeline}");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}
