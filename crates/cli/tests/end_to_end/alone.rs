//! What works without a server.

use crate::support::{Instance, atoll, finish};

#[test]
fn without_a_server_each_command_says_how_to_start_one() {
    let instance = Instance::not_started();
    let directory = instance.data_dir();
    for arguments in [
        &["get", "sandboxes"][..],
        &["run", "busybox"],
        &["logs", "x"],
        &["delete", "sandbox/x"],
        &["image", "ls"],
    ] {
        let finished = instance.atoll(arguments);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let expected = format!(
            "no atoll runs for data directory {}: start one with `atoll up --data-dir {} --detach`",
            directory.display(),
            directory.display()
        );
        finished.complains(&expected);
    }
}

#[test]
fn a_server_that_died_is_told_like_one_that_never_ran() {
    let instance = Instance::not_started();
    let record = serde_json::json!({
        "version": 1, "address": "http://127.0.0.1:1", "build": "0", "started_at": "",
        "process": {"pid": 1, "start_time_ticks": 0, "boot_id": ""},
    });
    std::fs::write(instance.data_dir().join("server.json"), record.to_string()).unwrap();
    std::fs::write(instance.data_dir().join("token"), "t").unwrap();
    instance.atoll(["get", "sandboxes"]).complains("no atoll runs for data directory");
}

#[test]
fn an_address_without_a_token_says_where_tokens_are() {
    let finished = finish(atoll(["--server", "http://127.0.0.1:1", "get", "sandboxes"]), b"");
    assert_eq!(finished.code, Some(1));
    finished.complains("ATOLL_TOKEN");
    let mut command = atoll(["--server", "http://127.0.0.1:1", "get", "sandboxes"]);
    command.env("ATOLL_TOKEN", "t");
    finish(command, b"").complains("no atoll answers at http://127.0.0.1:1");
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_2_and_help_is_a_0() {
    for wrong in
        [&["frobnicate"][..], &["run"], &["get", "pods"], &["wait", "work", "--for", "ready"]]
    {
        assert_eq!(finish(atoll(wrong), b"").code, Some(2), "{wrong:?}");
    }
    finish(atoll(["wait", "work", "--for", "ready"]), b"").complains("sandbox/work");
    let help = finish(atoll(["--help"]), b"").succeeded();
    for command in ["up", "run", "exec", "cp", "logs", "get", "describe", "wait", "image", "doctor"]
    {
        assert!(help.contains(&format!("\n  {command}")), "{command} is missing in {help}");
    }
    assert!(!help.contains("internal-unpack"));
}

#[test]
fn files_of_this_machine_are_not_mounted() {
    let instance = Instance::not_started();
    let finished = instance.atoll(["run", "-v", "/etc:/v", "busybox"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    finished.complains("cannot be mounted").complains("-v");
}

#[test]
fn doctor_says_what_this_machine_has_without_a_server() {
    let instance = Instance::not_started();
    let text = instance.atoll(["doctor"]).text();
    for expected in ["kernel", "control groups", "gVisor", "egress", "space", "no atoll runs"] {
        assert!(text.contains(expected), "{expected} is missing in {text}");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&instance.atoll(["doctor", "-o", "json"]).stdout).unwrap();
    assert!(report["checks"].as_array().is_some_and(|checks| checks.len() > 5), "{report}");
    assert!(report["server"].is_null());
    let helper = |check: &&serde_json::Value| check["name"] == "unpacking of images";
    assert!(report["checks"].as_array().unwrap().iter().any(|check| helper(&check)), "{report}");
}

#[test]
fn doctor_lists_only_classes_that_isolate() {
    let instance = Instance::not_started();
    let finished = instance.atoll(["doctor", "--classes"]);
    let text = finished.text();
    let classes: Vec<&str> = text.lines().collect();
    let all = ["container", "gvisor"];
    let there: Vec<&str> = all.into_iter().filter(|class| classes.contains(class)).collect();
    assert_eq!(classes, there, "one a line, the weakest first, and no others");
    assert_eq!(finished.code, Some(i32::from(classes.is_empty())));
}

#[test]
fn version_and_completions_need_no_server() {
    let instance = Instance::not_started();
    let version = instance.atoll(["version"]).succeeded();
    assert!(version.starts_with(&format!("atoll {}\n", env!("CARGO_PKG_VERSION"))), "{version}");
    for (shell, expected) in
        [("bash", "_atoll"), ("zsh", "#compdef atoll"), ("fish", "complete -c atoll")]
    {
        let script = instance.atoll(["completion", shell]).succeeded();
        assert!(script.contains(expected), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_early_ends_us_quietly() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$0\" completion bash | head -c 1; echo; echo done >&2"]);
    command.arg(env!("CARGO_BIN_EXE_atoll"));
    let finished = finish(command, b"");
    assert_eq!(finished.stderr, "done\n", "nothing else is said");
}
