//! With a terminal: script(1) gives one.

use std::process::Command;

use crate::support::{IMAGE, Instance, finish, in_each_class, skipped};

/// Runs atoll on a terminal of its own, with this typed.
fn on_a_terminal(
    instance: &Instance,
    arguments: &[&str],
    typed: &str,
) -> Option<(Option<i32>, String)> {
    let quoted: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "stty rows 33 cols 101; stty -g > \"$BEFORE\"; {} {}; code=$?; stty -g > \"$AFTER\"; exit $code",
        env!("CARGO_BIN_EXE_atoll"),
        quoted.join(" ")
    );
    let states = tempfile::tempdir().unwrap();
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    command.env("ATOLL_DATA_DIR", instance.data_dir());
    command.env("BEFORE", states.path().join("before"));
    command.env("AFTER", states.path().join("after"));
    command.env("TERM", "xterm");
    if Command::new("script").arg("--version").output().is_err() {
        skipped("terminal", "script (bsdutils) is not installed");
        return None;
    }
    let finished = finish(command, typed.as_bytes());
    let read = |name: &str| std::fs::read_to_string(states.path().join(name)).unwrap_or_default();
    assert_eq!(read("before"), read("after"), "the terminal is as it was: {finished:?}");
    Some((finished.code, finished.text()))
}

#[test]
fn a_terminal_inside_has_the_size_and_the_echo_of_the_one_outside() {
    in_each_class("terminal", |instance, class| {
        let run = ["run", "-it", "--class", class, IMAGE, "--"];
        let with = |command: &[&'static str]| {
            let mut all = run.to_vec();
            all.extend(command);
            all
        };
        let Some((code, text)) = on_a_terminal(
            instance,
            &with(&[
                "sh",
                "-c",
                "tty; while [ \"$(stty size)\" = \"24 80\" ]; do sleep 0.02; done; stty size; echo $TERM; exit 4",
            ]),
            "",
        ) else {
            return;
        };
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains("/dev/pts/") || text.contains("/dev/console"), "{text}");
        assert!(text.contains("33 101") && text.contains("xterm"), "{text}");
        let Some((code, text)) = on_a_terminal(instance, &with(&["cat"]), "typed\n\u{4}") else {
            return;
        };
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("typed"), "{text}");
        instance.has_no_sandboxes();
    });
}

#[test]
fn without_a_terminal_none_is_pretended() {
    in_each_class("no_terminal", |instance, class| {
        let refused = instance.atoll(["run", "-t", "--class", class, IMAGE, "--", "true"]);
        assert_ne!(refused.code, Some(0));
        refused.complains("-t needs a terminal");
        instance.has_no_sandboxes();
    });
}
