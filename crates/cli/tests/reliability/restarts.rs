//! A server that is killed and started again: what runs goes on, what ended while it was down is told truly.

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{IMAGE, Instance, in_each_class, processes_of, wait_until};

/// A sandbox that waits for files in /tmp before it goes on.
fn create(instance: &Instance, class: &str, name: &str, script: &str) {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

/// Pids of the shims of an instance, by their record; the shim of one sandbox.
pub(crate) fn shim_pid(instance: &Instance, name: &str) -> Pid {
    let sandbox = instance.sandbox(name).expect("the sandbox is there");
    let uid = sandbox["uid"].as_str().expect("a uid");
    let path = instance.data_dir().join("sandboxes").join(uid).join("shim.json");
    let text = std::fs::read(&path).expect("a record of the shim");
    let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let pid = record["shim"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).expect("a pid")
}

pub(crate) fn kill(instance: &Instance, pid: Pid) {
    kill_process(pid, Signal::KILL).expect("it is alive");
    wait_until("it is dead", || {
        !processes_of(&instance.data_dir()).contains(&pid.as_raw_nonzero().get())
    });
}

const COUNTS: &str =
    "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; [ -e /tmp/go ] && exit 6; done";

/// Lets [`COUNTS`] end; the exec may be ended with it before it has told its own end.
fn let_end(instance: &Instance, name: &str) {
    instance.atoll(["exec", name, "--", "touch", "/tmp/go"]);
}

#[test]
fn a_sandbox_outlives_its_server_and_is_the_same_process_afterwards() {
    in_each_class("server_restart", |instance, class| {
        let name = format!("lives-{class}");
        create(instance, class, &name, COUNTS);
        instance.atoll(["exec", &name, "--", "sh", "-c", "echo mark > /tmp/mark"]).succeeded();
        let before = instance.sandbox(&name).expect("it runs");
        let shim = shim_pid(instance, &name);
        instance.kill_server();
        instance.up();
        let after = instance.sandbox(&name).expect("it was found again");
        assert_eq!(after["status"]["phase"], "Running", "{after}");
        assert_eq!(before["uid"], after["uid"]);
        assert_eq!(
            before["status"]["containers"][0]["started_at"],
            after["status"]["containers"][0]["started_at"]
        );
        assert_eq!(before["spec"], after["spec"], "limits and all that was asked for");
        for declared in ["class", "limits_scope"] {
            assert!(before["status"][declared].is_string(), "{before}");
            assert_eq!(before["status"][declared], after["status"][declared], "{declared}");
        }
        assert_eq!(shim, shim_pid(instance, &name), "the same shim");
        assert_eq!(instance.atoll(["exec", &name, "--", "cat", "/tmp/mark"]).succeeded(), "mark\n");
        let_end(instance, &name);
        instance
            .atoll(["wait", &format!("sandbox/{name}"), "--for", "failed", "--timeout", "30s"])
            .succeeded();
        whole_count(&instance.atoll(["logs", &name]).succeeded());
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

/// Every line from the first to the last is there, once.
fn whole_count(log: &str) {
    let numbers: Vec<u32> = log
        .lines()
        .map(|line| line.trim_start_matches("line ").parse().unwrap_or_else(|_| panic!("{line:?}")))
        .collect();
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>(), "no line is missing");
}

#[test]
fn an_exit_while_the_server_is_down_is_told_with_its_code_and_all_its_output() {
    in_each_class("exit_while_down", |instance, class| {
        let name = format!("ends-{class}");
        let script =
            "n=0; while [ $n -lt 60 ]; do n=$((n+1)); echo line $n; sleep 0.05; done; exit 43";
        create(instance, class, &name, script);
        let shim = shim_pid(instance, &name);
        instance.kill_server();
        wait_until("the sandbox has ended and its shim with it", || {
            !processes_of(&instance.data_dir()).contains(&shim.as_raw_nonzero().get())
        });
        instance.up();
        let after = instance.sandbox(&name).expect("its record stays");
        let container = &after["status"]["containers"][0];
        assert_eq!(
            (&after["status"]["phase"], &container["exit_code"]),
            (&"Failed".into(), &43.into()),
            "{after}"
        );
        let log = instance.atoll(["logs", &name]).succeeded();
        whole_count(&log);
        assert_eq!(log.lines().count(), 60);
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn a_sandbox_outlives_its_shim_and_is_taken_over() {
    in_each_class("shim_killed", |instance, class| {
        let name = format!("shimless-{class}");
        create(instance, class, &name, COUNTS);
        let shim = shim_pid(instance, &name);
        kill(instance, shim);
        wait_until("another shim has taken over", || {
            instance.atoll(["exec", &name, "--", "true"]).code == Some(0)
        });
        let after = instance.sandbox(&name).expect("it is there");
        assert_eq!(after["status"]["phase"], "Running", "{after}");
        assert_ne!(shim, shim_pid(instance, &name));
        let_end(instance, &name);
        instance
            .atoll(["wait", &format!("sandbox/{name}"), "--for", "failed", "--timeout", "30s"])
            .succeeded();
        let after = instance.sandbox(&name).expect("its record stays");
        assert_eq!(after["status"]["containers"][0]["exit_code"], 6, "{after}");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

/// The first process of the sandbox's container (in gVisor: the Sentry).
fn first_process(instance: &Instance, name: &str) -> Pid {
    let uid = instance.sandbox(name).expect("it is there")["uid"].as_str().unwrap().to_owned();
    let path = instance.data_dir().join("sandboxes").join(uid).join("shim.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pid = record["containers"][0]["init"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn a_guest_that_is_silent_leaves_the_state_unknown_until_it_answers() {
    in_each_class("silent_guest", |instance, class| {
        let name = format!("silent-{class}");
        create(instance, class, &name, COUNTS);
        let guest = first_process(instance, &name);
        kill_process(guest, Signal::STOP).expect("it is alive");
        kill(instance, shim_pid(instance, &name));
        let phase = || instance.sandbox(&name).expect("it is there")["status"]["phase"].clone();
        // Said by the owner once the shim that took over has waited for the guest; before that because there is no shim.
        wait_until("the guest is known to be silent", || {
            let status = instance.sandbox(&name).expect("it is there")["status"].clone();
            assert!(status["phase"] == "Unknown" || status["phase"] == "Running", "{status}");
            status["phase"] == "Unknown" && status.to_string().contains("does not answer")
        });
        let exec = instance.atoll(["exec", &name, "--", "true"]);
        assert_ne!(exec.code, Some(0), "nothing can be started in it");
        kill_process(guest, Signal::CONT).expect("it is alive");
        wait_until("it is seen again", || phase() == "Running");
        assert_eq!(guest, first_process(instance, &name), "the same process");
        let_end(instance, &name);
        instance
            .atoll(["wait", &format!("sandbox/{name}"), "--for", "failed", "--timeout", "30s"])
            .succeeded();
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn with_server_and_shim_killed_an_exit_is_the_guests_record_or_unknown() {
    in_each_class("all_killed", |instance, class| {
        let name = format!("alone-{class}");
        create(
            instance,
            class,
            &name,
            "while [ ! -e /tmp/go ]; do sleep 0.05; done; sleep 1; exit 17",
        );
        let shim = shim_pid(instance, &name);
        let_end(instance, &name);
        instance.kill_server();
        kill(instance, shim);
        // Server and shim are dead, and nobody else can tell when the command has ended: it takes a second.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        instance.up();
        let over = || instance.sandbox(&name).is_some_and(|it| it["status"]["phase"] != "Running");
        wait_until("its end is known", over);
        let after = instance.sandbox(&name).expect("its record stays");
        let container = &after["status"]["containers"][0];
        let code = &container["exit_code"];
        assert!(
            code == 17 || (code.is_null() && container["reason"] == "Unknown"),
            "neither the true code nor unknown: {after}"
        );
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}
