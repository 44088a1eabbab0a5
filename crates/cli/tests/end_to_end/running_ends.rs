//! How a run ends: kept, timed out, interrupted, left by its reader, killed.

use rustix::process::Signal;

use crate::support::{IMAGE, in_each_class, instance_with_image, wait_until};

/// Says "ready", and what happens to it.
const CATCHES: &str = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done";
const GOES_ON: &str = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done";
const IGNORES: &str = "trap '' INT; echo ready; while :; do sleep 0.1; done";

#[test]
fn what_is_kept_stays_with_its_files_and_logs() {
    in_each_class("keep", |instance, class| {
        let name = format!("kept-{class}");
        let run = instance.atoll([
            "run",
            "--class",
            class,
            "--keep",
            "--name",
            &name,
            IMAGE,
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 3",
        ]);
        assert_eq!(run.ended_with(3), "out\n");
        let sandbox = instance.sandbox(&name).expect("it was kept");
        assert_eq!(sandbox["status"]["phase"], "Failed", "{sandbox}");
        assert_eq!(sandbox["status"]["containers"][0]["exit_code"], 3, "{sandbox}");
        let logs = instance.atoll(["logs", &name]);
        assert_eq!(logs.succeeded(), "out\n");
        assert_eq!(logs.stderr, "err\n");
        let again = instance.atoll(["run", "--class", class, "--name", &name, IMAGE, "--", "true"]);
        again.ended_with(125);
        again.complains(&name).complains("exist");
        assert!(instance.sandbox(&name).is_some(), "a conflict must not delete the other one");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn ctrl_c_reaches_the_command_and_twice_ends_it() {
    in_each_class("ctrl_c", |instance, class| {
        let mut run = instance.begin(["run", "--class", class, IMAGE, "--", "sh", "-c", CATCHES]);
        run.line_with("ready");
        run.signal(Signal::INT);
        let finished = run.finish();
        assert!(finished.ended_with(9).contains("caught"));
        let mut run = instance.begin(["run", "--class", class, IMAGE, "--", "sh", "-c", GOES_ON]);
        run.line_with("ready");
        run.signal(Signal::INT);
        // By then the first has been counted.
        run.line_with("caught");
        run.signal(Signal::INT);
        run.finish().ended_with(130);
        instance.has_no_sandboxes();
    });
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    in_each_class("timeout", |instance, class| {
        // Long enough for the command to write on a busy machine: that is awaited, and stays.
        let mut run = instance.begin([
            "run",
            "--class",
            class,
            "--timeout",
            "6s",
            IMAGE,
            "--",
            "sh",
            "-c",
            "echo begun; sleep 1000",
        ]);
        run.line_with("begun");
        let run = run.finish();
        assert_eq!(run.ended_with(124), "begun\n");
        run.complains("--timeout");
        instance.has_no_sandboxes();
    });
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    in_each_class("closed_output", |instance, class| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "\"$0\" run --class \"$1\" busybox -- yes | head -n 1"]);
        command.arg(env!("CARGO_BIN_EXE_atoll")).arg(class);
        command.env("ATOLL_DATA_DIR", instance.data_dir());
        let finished = crate::support::finish(command, b"");
        assert_eq!(finished.succeeded(), "y\n");
        assert_eq!(finished.stderr, "");
        wait_until("the sandbox is gone", || instance.sandboxes().is_empty());
    });
}

#[test]
fn a_run_that_is_killed_leaves_no_sandbox() {
    let Some(instance) = instance_with_image("killed_run") else { return };
    let mut run = instance.begin(["run", "--name", "orphan", IMAGE, "--", "sh", "-c", IGNORES]);
    run.line_with("ready");
    run.signal(Signal::KILL);
    run.finish();
    instance.atoll(["wait", "sandbox/orphan", "--for", "deleted", "--timeout", "60s"]).succeeded();
    instance.end();
}

#[test]
fn a_run_that_is_told_to_end_removes_its_sandbox() {
    let Some(instance) = instance_with_image("terminated_run") else { return };
    let mut run = instance.begin(["run", IMAGE, "--", "sh", "-c", IGNORES]);
    run.line_with("ready");
    run.signal(Signal::TERM);
    run.finish().ended_with(143);
    instance.has_no_sandboxes();
    instance.end();
}
