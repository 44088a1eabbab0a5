//! The command line itself: help, completion, exit codes, which atoll is meant, output for people and for programs.

use std::process::Command;

use crate::support::{IMAGE, Instance, atoll, finish, instance_with_image, skipped};

/// Every command that a user sees.
const COMMANDS: [&str; 28] = [
    "up",
    "down",
    "run",
    "exec",
    "attach",
    "cp",
    "logs",
    "create",
    "get",
    "describe",
    "wait",
    "delete",
    "events",
    "image",
    "image import",
    "image pull",
    "image ls",
    "image inspect",
    "image rm",
    "image gc",
    "login",
    "logout",
    "bench",
    "bench provision",
    "bench exec",
    "doctor",
    "version",
    "completion",
];
/// Those whose flags explain themselves.
const WITHOUT_EXAMPLE: [&str; 8] =
    ["image", "image ls", "image inspect", "image rm", "image gc", "logout", "bench", "version"];

#[test]
fn every_command_says_in_a_line_what_it_does_and_shows_how() {
    let all = finish(atoll(["--help"]), b"").succeeded();
    for command in COMMANDS {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = finish(atoll(&words), b"").succeeded();
        let first = help.lines().next().unwrap_or_default();
        assert!(first.len() > 10 && !first.starts_with("Usage"), "{command}: {help}");
        assert!(help.contains(&format!("Usage: atoll {command}")), "{command}: {help}");
        let shows = help.lines().any(|line| line.contains("atoll ") && line.starts_with("  "));
        assert_eq!(shows, !WITHOUT_EXAMPLE.contains(&command), "{command}: {help}");
        if !command.contains(' ') {
            let listed =
                all.lines().any(|line| line.trim_start().starts_with(&format!("{command} ")));
            assert!(listed, "{command} is missing in {all}");
        }
    }
}

#[test]
fn completions_load_in_their_shells_and_complete() {
    let directory = tempfile::tempdir().unwrap();
    let script = |shell: &str| {
        let path = directory.path().join(format!("completion.{shell}"));
        std::fs::write(&path, finish(atoll(["completion", shell]), b"").succeeded()).unwrap();
        path
    };
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", directory.path());
        let finished = finish(command, b"");
        assert_eq!(finished.stderr, "", "{finished:?}");
        finished.succeeded()
    };
    let bash = script("bash").display().to_string();
    run("bash", &["-n", &bash]);
    // What bash does at a Tab: the words so far, and where the cursor is.
    let complete = |words: &str, count: usize| {
        let text = format!(
            ". {bash}; COMP_WORDS=({words}); COMP_CWORD={count}; $(complete -p atoll | sed 's/.*-F \\([^ ]*\\).*/\\1/') atoll \"${{COMP_WORDS[{count}]}}\" x; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        run("bash", &["-c", &text])
    };
    assert_eq!(complete("atoll desc", 1), "describe\n");
    assert!(complete("atoll image ''", 2).contains("import\n"));
    assert!(complete("atoll run --mem", 2).contains("--memory\n"));
    assert!(
        !complete("atoll ''", 1).contains("internal-unpack"),
        "what users do not call is not offered"
    );
    let zsh = script("zsh").display().to_string();
    let fish = script("fish").display().to_string();
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if there("zsh") {
        run("zsh", &["-n", &zsh]);
        let load = format!(
            "autoload -U compinit; compinit -u -d {0}/dump; . {zsh}; print ${{_comps[atoll]}}",
            directory.path().display()
        );
        assert_eq!(run("zsh", &["-f", "-c", &load]), "_atoll\n");
    } else {
        skipped("completion_zsh", "zsh is not installed");
    }
    if there("fish") {
        run("fish", &["--no-execute", &fish]);
        let load = format!("source {fish}; complete -C 'atoll desc'");
        assert!(run("fish", &["--no-config", "-c", &load]).starts_with("describe"));
    } else {
        skipped("completion_fish", "fish is not installed");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_always_a_2() {
    let directory = tempfile::tempdir().unwrap();
    for wrong in [
        &[][..],
        &["frobnicate"],
        &["--frobnicate"],
        &["get"],
        &["get", "pods"],
        &["get", "sandboxes", "-o", "xml"],
        &["describe"],
        &["describe", "work"],
        &["create"],
        &["delete"],
        &["wait", "sandbox/x"],
        &["wait", "sandbox/x", "--for", "glory"],
        &["wait", "sandbox/x", "--for", "ready", "--timeout", "soon"],
        &["wait", "sandbox/x", "--for", "ready", "--timeout", "-1s"],
        &["logs"],
        &["logs", "--tail", "-1", "x"],
        &["exec"],
        &["exec", "x"],
        &["attach"],
        &["cp", "x:/a"],
        &["run"],
        &["run", "--timeout", "soon", "busybox"],
        &["run", "--pull", "perhaps", "busybox"],
        &["image"],
        &["image", "pull"],
        &["image", "rm"],
        &["login"],
        &["up", "--listen", "nonsense"],
        &["down", "--timeout", "5"],
        &["completion", "tcsh"],
        &["doctor", "extra"],
        &["bench"],
        &["version", "--output", "yaml"],
    ] {
        let mut command = atoll(wrong);
        command.env("ATOLL_DATA_DIR", directory.path());
        let finished = finish(command, b"");
        assert_eq!(finished.code, Some(2), "{wrong:?}: {finished:?}");
        assert_eq!(finished.text(), "", "{wrong:?}: what went wrong is no output");
        assert!(
            finished.stderr.contains("Usage") || finished.stderr.contains("--help"),
            "{finished:?}"
        );
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was begun");
}

#[test]
fn what_cannot_be_done_is_always_a_1_and_says_what() {
    let instance = Instance::start();
    for wrong in [
        &["get", "sandbox/none"][..],
        &["describe", "sandbox/none"],
        &["delete", "sandbox/none"],
        &["wait", "sandbox/none", "--for", "ready", "--timeout", "5s"],
        &["logs", "none"],
        &["attach", "none"],
        &["cp", "none:/etc", "/tmp/atoll-test-none"],
        &["get", "image/none"],
        &["image", "inspect", "none"],
        &["image", "rm", "none"],
        &["image", "import", "/nonexistent/none.tar", "none"],
        &["logout", "none.example"],
        &["create", "-f", "/nonexistent/none.yaml"],
    ] {
        let finished = instance.atoll(wrong);
        assert_eq!(finished.code, Some(1), "{wrong:?}: {finished:?}");
        assert_eq!(finished.text(), "", "{wrong:?}");
        finished.complains("none");
        assert!(finished.stderr.starts_with("error: "), "{finished:?}");
    }
    // A command of a user's may end with 1 too: its not having begun is told apart.
    instance.atoll(["exec", "none", "--", "true"]).ended_with(125);
    instance.end();
}

#[test]
fn what_is_written_counts_more_than_the_environment() {
    let (one, other) = (Instance::start(), Instance::start());
    let record = std::fs::read(other.data_dir().join("server.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let address = record["address"].as_str().unwrap();
    let token = other.data_dir().join("token");
    let secret = std::fs::read_to_string(&token).unwrap();
    let directories = [one.data_dir(), other.data_dir()].map(|path| path.display().to_string());
    let pids = [&one, &other].map(|it| it.server_pid().unwrap().as_raw_nonzero().get().to_string());
    // Who answers, told by its process.
    let asked = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = atoll(arguments.iter().chain(&["get", "node", "-o", "json"]));
        command.envs(environment.iter().copied());
        finish(command, b"")
    };
    let meant = |arguments: &[&str], environment: &[(&str, &str)]| {
        asked(arguments, environment).json()["items"][0]["pid"].to_string()
    };
    let token_file = ["--token-file", token.to_str().unwrap()];
    let in_one = ("ATOLL_DATA_DIR", directories[0].as_str());
    let at_other = [("ATOLL_SERVER", address), ("ATOLL_TOKEN", secret.trim())];
    assert_eq!(meant(&[], &[in_one]), pids[0]);
    assert_eq!(meant(&["--data-dir", &directories[1]], &[in_one]), pids[1]);
    assert_eq!(
        meant(&[], &[in_one, at_other[0], at_other[1]]),
        pids[1],
        "an address says more than a directory"
    );
    assert_eq!(
        meant(&["--data-dir", &directories[0]], &at_other),
        pids[0],
        "a flag says more than a variable"
    );
    let server = ["--server", address, token_file[0], token_file[1]];
    assert_eq!(meant(&server, &[in_one]), pids[1]);
    assert_eq!(meant(&server, &[("ATOLL_SERVER", "http://127.0.0.1:1")]), pids[1]);
    assert_eq!(
        meant(&token_file, &[at_other[0], ("ATOLL_TOKEN", "wrong")]),
        pids[1],
        "the file counts"
    );
    asked(&[], &[at_other[0], ("ATOLL_TOKEN", "wrong")]).complains("unauthorized");
    asked(&["--token-file", "/nonexistent/token"], &at_other).complains("/nonexistent/token");
    // The same after the command's name.
    let mut command = atoll(["get", "node", "-o", "json", "--data-dir", &directories[0]]);
    command.envs(at_other);
    assert_eq!(finish(command, b"").json()["items"][0]["pid"].to_string(), pids[0]);
    one.end();
    other.end();
}

#[test]
fn every_list_can_be_had_as_json() {
    let Some(instance) = instance_with_image("json_lists") else { return };
    let text = format!(
        "kind: Sandbox\nid: one\nspec:\n  class: sim\n  containers:\n    - {{name: main, image: {IMAGE}, args: [sleep, '1000']}}\n"
    );
    let created =
        instance.atoll_with_input(["create", "--wait", "-o", "json", "-f", "-"], text.as_bytes());
    assert_eq!(created.json()["items"][0]["id"], "one");
    for list in [
        &["get", "sandboxes"][..],
        &["get", "images"],
        &["get", "nodes"],
        &["image", "ls"],
        &["events"],
        &["events", "sandbox/one"],
    ] {
        let json = instance.atoll(list.iter().chain(&["-o", "json"])).json();
        assert!(
            json["items"].as_array().is_some_and(|items| !items.is_empty()),
            "{list:?}: {json}"
        );
    }
    for one in
        [&["get", "sandbox/one"][..], &["get", "image/busybox"], &["image", "gc"], &["version"]]
    {
        let json = instance.atoll(one.iter().chain(&["-o", "json"])).json();
        assert!(json.is_object(), "{one:?}: {json}");
    }
    instance.end();
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    if Command::new("script").arg("--version").output().is_err() {
        return skipped("colours", "script (bsdutils) is not installed");
    }
    let instance = Instance::start();
    let program = env!("CARGO_BIN_EXE_atoll");
    let on_a_terminal = |environment: &[(&str, &str)]| {
        let mut command = Command::new("script");
        command.args([
            "-qec",
            &format!("{program} get nodes; {program} get sandbox/none"),
            "/dev/null",
        ]);
        command
            .env("ATOLL_DATA_DIR", instance.data_dir())
            .env_remove("NO_COLOR")
            .env("TERM", "xterm");
        command.envs(environment.iter().copied());
        finish(command, b"").text()
    };
    let coloured = |text: &str| text.contains("\x1b[1m") || text.contains("\x1b[3");
    assert!(coloured(&on_a_terminal(&[])), "{:?}", on_a_terminal(&[]));
    assert!(coloured(&on_a_terminal(&[("NO_COLOR", "")])), "an empty one means nothing");
    assert!(!coloured(&on_a_terminal(&[("NO_COLOR", "1")])));
    assert!(!coloured(&on_a_terminal(&[("TERM", "dumb")])));
    let mut piped = instance.command(["get", "nodes"]);
    piped.env_remove("NO_COLOR").env("TERM", "xterm");
    assert!(!finish(piped, b"").succeeded().contains('\x1b'));
    let mut piped = instance.command(["get", "sandbox/none"]);
    piped.env_remove("NO_COLOR").env("TERM", "xterm");
    assert!(!finish(piped, b"").stderr.contains('\x1b'));
    instance.end();
}
