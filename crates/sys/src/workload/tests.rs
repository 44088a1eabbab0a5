use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::process::{Exit, Wait, reap};

fn strings(list: &[&str]) -> Vec<CString> {
    list.iter().map(|text| CString::new(*text).unwrap()).collect()
}

fn program(args: &[&str]) -> Program {
    Program {
        candidates: strings(&args[..1]),
        args: strings(args),
        env: strings(&["PATH=/usr/bin:/bin", "GREETING=hello"]),
        working_directory: c"/".into(),
        identity: Identity {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            supplementary_gids: Vec::new(),
            capabilities: u64::MAX,
            no_new_privileges: true,
            filter: None,
        },
        umask: 0o027,
        oom_score_adj: 0,
        open_files: (64, 128),
        processes: None,
        controlling_terminal: false,
    }
}

fn start(program: &Program, standard: [BorrowedFd<'_>; 3], memory: Memory) -> Starting {
    prepare(program.clone(), standard).unwrap().start(memory).unwrap()
}

fn sleeper() -> Starting {
    let null = File::open("/dev/null").unwrap();
    let standard = [null.as_fd(), null.as_fd(), null.as_fd()];
    start(&program(&["/bin/sleep", "100"]), standard, Memory::Shared)
}

/// Runs to the end, with memory of its own and without: how far it came, how it ended, what it wrote.
fn run(program: &Program) -> (Progress, Exit, String) {
    let [copied, shared] = [Memory::Copied, Memory::Shared].map(|memory| run_with(program, memory));
    assert_eq!((copied.0, copied.1), (shared.0, shared.1), "{} {}", copied.2, shared.2);
    shared
}

fn run_with(program: &Program, memory: Memory) -> (Progress, Exit, String) {
    let null = File::open("/dev/null").unwrap();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut starting = start(program, [null.as_fd(), writer.as_fd(), writer.as_fd()], memory);
    drop(writer);
    let mut output = String::new();
    File::from(reader).read_to_string(&mut output).unwrap();
    let exit = reap(starting.pid(), Wait::Block).unwrap().unwrap();
    (starting.progress(), exit, output)
}

fn skipped(test: &str) -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test}: needs root");
    }
    !root
}

#[test]
fn a_program_gets_its_arguments_environment_limits_and_nothing_else() {
    let leaked = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let script = "echo $1 $GREETING $(umask) $(ulimit -Sn) $(ulimit -Hn); cd /proc/self/fd; echo *; env | grep -c CARGO";
    let (progress, exit, output) = run(&program(&["/bin/sh", "-c", script, "sh", "argument"]));
    assert_eq!((progress, exit), (Progress::Executed, Exit::Code(1)), "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines,
        ["argument hello 0027 64 128", "0 1 2 3", "0"],
        "3 is the shell's own, reading the directory"
    );
}

#[test]
fn each_failure_names_its_step_and_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| CString::new(directory.path().join(name).to_str().unwrap()).unwrap();
    std::fs::write(directory.path().join("text"), "no program").unwrap();
    let cases = [
        (strings(&["/no/such/program"]), Errno::NOENT),
        (vec![path("text")], Errno::ACCESS),
        (vec![path("text"), path("missing")], Errno::ACCESS),
        (vec![path("text/below")], Errno::NOENT),
        (vec![path("")], Errno::ACCESS),
    ];
    for (candidates, errno) in cases {
        let (progress, exit, _) = run(&Program { candidates, ..program(&["x"]) });
        let failure = StartError { step: Step::Execute, source: errno };
        assert_eq!((progress, exit), (Progress::Failed(failure), Exit::Code(127)));
    }
    std::fs::set_permissions(directory.path().join("text"), PermissionsExt::from_mode(0o755))
        .unwrap();
    let (progress, ..) = run(&Program { candidates: vec![path("text")], ..program(&["x"]) });
    let failure = StartError { step: Step::Execute, source: Errno::NOEXEC };
    assert_eq!(progress, Progress::Failed(failure));
    let (progress, ..) =
        run(&Program { working_directory: path("missing"), ..program(&["/bin/true"]) });
    let failure = StartError { step: Step::WorkingDirectory, source: Errno::NOENT };
    assert_eq!(progress, Progress::Failed(failure));
}

#[test]
fn a_path_is_searched_in_order_past_what_is_missing() {
    let candidates = strings(&["/nowhere/true", "/dev/null/true", "/bin/true"]);
    let (progress, exit, _) = run(&Program { candidates, ..program(&["true"]) });
    assert_eq!((progress, exit), (Progress::Executed, Exit::Code(0)));
}

/// Values of the lines of /proc/self/status that begin with these names.
fn status_lines(identity: Identity, names: &[&str]) -> Vec<String> {
    let plain = program(&["/bin/cat", "/proc/self/status"]);
    let (progress, exit, output) = run(&Program { identity, ..plain });
    assert_eq!((progress, exit), (Progress::Executed, Exit::Code(0)), "{output}");
    let value = |name: &&str| {
        let line = output.lines().find(|line| line.starts_with(name));
        line.unwrap_or("").split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    names.iter().map(value).collect()
}

const CAPABILITY_LINES: [&str; 6] =
    ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:"];

#[test]
fn another_user_has_its_groups_and_no_capability_that_is_in_force() {
    if skipped("another_user_has_its_groups_and_no_capability_that_is_in_force") {
        return;
    }
    let identity = Identity {
        uid: 65534,
        gid: 65533,
        supplementary_gids: vec![7, 9],
        capabilities: 0b101,
        no_new_privileges: true,
        filter: None,
    };
    let mut names = vec!["Uid:", "Gid:", "Groups:"];
    names.extend(CAPABILITY_LINES);
    let zero = "0000000000000000";
    let expected = [
        "65534 65534 65534 65534",
        "65533 65533 65533 65533",
        "7 9",
        zero,
        zero,
        zero,
        "0000000000000005",
        zero,
        "1",
    ];
    assert_eq!(status_lines(identity, &names), expected);
}

#[test]
fn root_has_the_capabilities_it_was_given_and_no_other() {
    if skipped("root_has_the_capabilities_it_was_given_and_no_other") {
        return;
    }
    let identity =
        Identity { capabilities: 0b1001, no_new_privileges: false, ..program(&["x"]).identity };
    let (zero, some) = ("0000000000000000", "0000000000000009");
    assert_eq!(status_lines(identity, &CAPABILITY_LINES), [zero, some, some, some, zero, "0"]);
}

#[test]
fn a_filter_is_in_force_before_the_program() {
    let filter = Filter::from_bytes(crate::seccomp::container_filter().unwrap()).unwrap();
    let identity = Identity { filter: Some(filter), ..program(&["x"]).identity };
    assert_eq!(status_lines(identity, &["Seccomp:", "NoNewPrivs:"]), ["2", "1"]);
    assert!(Filter::from_bytes(&[]).is_none());
    assert!(Filter::from_bytes(&[0; 9]).is_none());
    // BPF that never returns: the kernel refuses it, and so the program is not started.
    let broken = Filter::from_bytes(&[0; 8]).unwrap();
    let identity = Identity { filter: Some(broken), ..program(&["x"]).identity };
    let (progress, ..) = run(&Program { identity, ..program(&["/bin/true"]) });
    let failure = StartError { step: Step::Filter, source: Errno::INVAL };
    assert_eq!(progress, Progress::Failed(failure));
}

#[test]
fn a_process_killed_before_it_executes_leaves_no_start_pending() {
    let mut starting = sleeper();
    let pidfd = crate::process::open_child(starting.pid()).unwrap();
    assert!(crate::process::send_signal(pidfd.as_fd(), 9).unwrap());
    assert_eq!(reap(starting.pid(), Wait::Block).unwrap(), Some(Exit::Signal(9)));
    assert_eq!(starting.progress(), Progress::Executed);
}

#[test]
fn a_helper_is_refused_where_other_threads_hold_locks() {
    let null = File::open("/dev/null").unwrap();
    let identity = program(&["x"]).identity;
    let refused =
        start_helper(&identity, [null.as_fd(), null.as_fd(), null.as_fd()], 1 << 26, || 0);
    assert_eq!(refused.unwrap_err().source, Errno::BUSY, "a test runs beside the main thread");
}

#[test]
fn a_guard_lets_all_signals_through_but_the_two_that_cannot_be_blocked() {
    // The guarded one here is a process of the test's own.
    let sleeper = sleeper();
    let guard = Filter::guarding(sleeper.pid(), true, None);
    let guarded = |script: &str| {
        let identity = Identity { filter: Some(guard.clone()), ..program(&["x"]).identity };
        run(&Program { identity, ..program(&["/bin/sh", "-c", script]) })
    };
    let pid = sleeper.pid();
    let (progress, exit, output) =
        guarded(&format!("kill -9 {pid} && kill -STOP {pid} && kill -0 {pid} && echo sent"));
    assert_eq!((progress, exit, output.as_str()), (Progress::Executed, Exit::Code(0), "sent\n"));
    assert_eq!(reap(pid, Wait::Now).unwrap(), None, "it lives");
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(!state.contains(") T "), "and was not stopped: {state}");
    let (_, exit, output) = guarded(&format!(
        "prlimit --pid {pid} --nofile=3:3 || prlimit --pid $$ --nofile=20:20 && ulimit -n"
    ));
    assert_eq!(exit, Exit::Code(0), "{output}");
    assert!(output.contains("not permitted") && output.ends_with("20\n"), "{output}");
    let (_, exit, _) = guarded("sleep 100 & kill -9 $!; wait $!");
    assert_eq!(exit, Exit::Code(137), "others are not guarded");
    guarded(&format!("kill -15 {pid}"));
    assert_eq!(reap(pid, Wait::Block).unwrap(), Some(Exit::Signal(15)));
}
