//! Clients that go away, and clients that come when all is over.

use std::process::Command;

use rustix::process::Signal;

use crate::support::{IMAGE, Instance, Running, in_each_class, skipped, wait_until};

fn create(instance: &Instance, class: &str, name: &str, script: &str) {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes());
}

/// Whether a file is there inside.
fn there(instance: &Instance, name: &str, path: &str) -> bool {
    instance.atoll(["exec", name, "--", "test", "-e", path]).code == Some(0)
}

/// Whether a process whose number a file has is there inside.
fn alive(instance: &Instance, name: &str, path: &str) -> bool {
    let script = format!("kill -0 $(cat {path})");
    instance.atoll(["exec", name, "--", "sh", "-c", &script]).code == Some(0)
}

/// What `atoll exec --help` promises about clients that end before their command.
#[test]
fn a_client_that_ends_before_its_command_ends_itself_alone() {
    in_each_class("client_goes_away", |instance, class| {
        let name = format!("left-{class}");
        create(instance, class, &name, "sleep 1000");
        let mut plain = instance.begin([
            "exec",
            &name,
            "--",
            "sh",
            "-c",
            "echo $$ > /tmp/plain; echo ready; exec sleep 1000",
        ]);
        plain.line_with("ready");
        let mut typed = instance.begin([
            "exec",
            "-i",
            &name,
            "--",
            "sh",
            "-c",
            "echo $$ > /tmp/typed; echo ready; cat; echo done > /tmp/input-ended; exec sleep 1000",
        ]);
        typed.line_with("ready");
        for client in [plain, typed] {
            client.signal(Signal::KILL);
            client.finish();
        }
        // That the client is gone is known inside once its input has ended.
        wait_until("the input has ended", || there(instance, &name, "/tmp/input-ended"));
        assert!(alive(instance, &name, "/tmp/plain") && alive(instance, &name, "/tmp/typed"));

        // Ctrl-C goes to the command; the second one leaves it.
        let deaf = "trap \"echo heard >> /tmp/heard\" INT; echo $$ > /tmp/deaf; echo ready; while :; do sleep 0.1; done";
        let mut stubborn = instance.begin(["exec", &name, "--", "sh", "-c", deaf]);
        stubborn.line_with("ready");
        stubborn.signal(Signal::INT);
        wait_until("the command has heard it", || there(instance, &name, "/tmp/heard"));
        stubborn.signal(Signal::INT);
        stubborn.finish().ended_with(130);
        assert!(alive(instance, &name, "/tmp/deaf"));
        let polite = "trap \"echo bye; exit 9\" INT; echo ready; while :; do sleep 0.1; done";
        let mut obeyed = instance.begin(["exec", &name, "--", "sh", "-c", polite]);
        obeyed.line_with("ready");
        obeyed.signal(Signal::INT);
        assert!(obeyed.finish().ended_with(9).contains("bye"));
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        instance.has_no_sandboxes();
    });
}

#[test]
fn a_terminal_that_is_closed_hangs_its_command_up() {
    if Command::new("script").arg("--version").output().is_err() {
        return skipped("terminal_closed", "script (bsdutils) is not installed");
    }
    in_each_class("terminal_closed", |instance, class| {
        let name = format!("hung-up-{class}");
        create(instance, class, &name, "sleep 1000");
        let inside = "trap \"echo hung up > /tmp/hung-up; exit\" HUP; echo ready; while :; do sleep 0.1; done";
        let line = format!("{} exec -it {name} -- sh -c '{inside}'", env!("CARGO_BIN_EXE_atoll"));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        command.env("ATOLL_DATA_DIR", instance.data_dir()).env("TERM", "xterm");
        let mut terminal = Running::start(command);
        terminal.line_with("ready");
        // The window is gone: the kernel tells the client, the client's end tells the command.
        terminal.signal(Signal::KILL);
        terminal.finish();
        wait_until("the command was hung up", || there(instance, &name, "/tmp/hung-up"));
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn who_comes_after_the_end_is_answered_precisely_also_by_the_next_server() {
    in_each_class("after_the_end", |instance, class| {
        let name = format!("over-{class}");
        create(instance, class, &name, "echo out; echo err >&2; exit 3");
        instance
            .atoll(["wait", &format!("sandbox/{name}"), "--for", "failed", "--timeout", "60s"])
            .succeeded();
        let check = || {
            let logs = instance.atoll(["logs", &name]);
            assert_eq!((logs.succeeded().as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
            let followed = instance.atoll(["logs", "-f", &name]);
            assert_eq!(followed.succeeded(), "out\n", "it ends: nothing more can come");
            instance.atoll(["attach", &name]).ended_with(3);
            let exec = instance.atoll(["exec", &name, "--", "true"]);
            exec.ended_with(125);
            exec.complains("Failed");
            let copy =
                instance.atoll(["cp", &format!("{name}:/etc/passwd"), "/tmp/atoll-test-none"]);
            copy.ended_with(1);
            copy.complains("Failed");
            let again = instance.atoll([
                "wait",
                &format!("sandbox/{name}"),
                "--for",
                "ready",
                "--timeout",
                "5s",
            ]);
            again.ended_with(1);
            again.complains("cannot become ready");
        };
        check();
        instance.kill_server();
        instance.up();
        check();
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        for gone in [&["logs", &name][..], &["attach", &name]] {
            instance.atoll(gone).complains("there is no sandbox");
        }
    });
}
