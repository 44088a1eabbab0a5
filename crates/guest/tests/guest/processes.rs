//! The guest as an ordinary process: terminals, signals, users, orphans.

use std::time::Duration;

use crate::support::*;
use atoll_sys::capabilities::CapabilitySet;
use atoll_wire::guest::*;

fn skipped(test: &str) -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test}: needs root");
    }
    !root
}

/// Reads output of a stream until it holds that text.
fn read_until(host: &mut Host, stream: u32, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match host.next_message() {
            (from, GuestMessage::Stdout { data, .. }) if from == stream => {
                seen.push_str(&String::from_utf8_lossy(&data));
            }
            (from, GuestMessage::Exited(exited)) if from == stream => {
                panic!("{exited:?} before {text:?}; seen: {seen:?}");
            }
            _ => {}
        }
    }
    seen
}

#[test]
fn a_terminal_has_its_size_and_is_told_of_a_new_one() {
    let mut host = Host::booted();
    let script =
        "trap 'stty size; exit 4' WINCH; tty; stty size; echo ready; while :; do sleep 0.01; done";
    let terminal = Some(TerminalSize { rows: 33, columns: 101 });
    host.send(1, HostMessage::Exec(ProcessSpec { terminal, stdin: true, ..shell(script) }));
    let seen = read_until(&mut host, 1, "ready");
    assert!(seen.contains("/dev/pts/") && seen.contains("33 101\r\n"), "{seen:?}");
    host.send(1, HostMessage::Resize(TerminalSize { rows: 10, columns: 20 }));
    read_until(&mut host, 1, "10 20\r\n");
    let GuestMessage::Exited(exited) = host.event(1) else { panic!("no exit") };
    assert_eq!(exited.code, Some(4));
}

#[test]
fn a_terminal_echoes_interrupts_and_ends_as_terminals_do() {
    let mut host = Host::booted();
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let interactive = |args: &[&str]| ProcessSpec { terminal, stdin: true, ..spec(args) };
    host.send(1, HostMessage::Exec(interactive(&["cat"])));
    host.send(1, HostMessage::Stdin(b"hello\n".to_vec()));
    read_until(&mut host, 1, "hello\r\nhello\r\n");
    host.send(1, HostMessage::StdinEnd);
    assert_eq!(host.event(1), GuestMessage::Exited(SUCCESS), "the end of input is Ctrl-D");
    host.send(2, HostMessage::Exec(interactive(&["cat"])));
    host.send(2, HostMessage::Stdin(b"x\n".to_vec()));
    read_until(&mut host, 2, "x\r\nx\r\n");
    host.send(2, HostMessage::Stdin(vec![3]));
    let interrupted = Exited { code: None, signal: Some(2), pids_limit: false };
    loop {
        if let GuestMessage::Exited(exited) = host.event(2) {
            assert_eq!(exited, interrupted);
            break;
        }
    }
}

#[test]
fn who_detaches_from_a_terminal_hangs_up() {
    let mut host = Host::booted();
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    host.send(
        1,
        HostMessage::Exec(ProcessSpec { terminal, stdin: true, ..shell("echo ready; sleep 1000") }),
    );
    read_until(&mut host, 1, "ready");
    host.send(1, HostMessage::Detach);
    loop {
        if let GuestMessage::Exited(exited) = host.event(1) {
            assert_eq!(exited.signal, Some(1));
            return;
        }
    }
}

#[test]
fn all_output_of_a_terminal_comes_before_its_end() {
    let mut host = Host::booted();
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let ran = host.run(1, ProcessSpec { terminal, ..shell("seq 1 20000") });
    let lines: Vec<&str> = ran.text().split_terminator("\r\n").collect();
    assert_eq!((ran.exited, lines.len(), lines.last()), (Some(SUCCESS), 20_000, Some(&"20000")));
}

#[test]
fn a_signal_for_everyone_reaches_background_processes_of_all_streams() {
    let mut host = Host::booted();
    let script = "(sleep 1000 & echo $!; wait) & wait";
    for stream in 1..=3 {
        host.send(stream, HostMessage::Exec(shell(script)));
        while !matches!(host.next_message(), (from, GuestMessage::Stdout { .. }) if from == stream)
        {
        }
    }
    let own = std::process::Command::new("sleep").arg("1000").spawn();
    let mut bystander = own.unwrap();
    host.send(0, HostMessage::Signal(SignalRequest { signal: 9, everyone: true }));
    let killed = Exited { code: None, signal: Some(9), pids_limit: false };
    let mut ended = 0;
    while ended < 3 {
        if let (_, GuestMessage::Exited(exited)) = host.next_message() {
            assert_eq!(exited, killed);
            ended += 1;
        }
    }
    assert_eq!(bystander.try_wait().unwrap(), None, "who is not the guest's is left alone");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    wait_for_no_descendants(&mut host);
}

#[test]
fn orphans_are_reaped() {
    let mut host = Host::booted();
    for stream in 1..=20 {
        let ran = host.run(stream, shell("(sh -c 'exit 3' & sh -c 'exit 4' &) & exit 0"));
        assert_eq!(ran.exited, Some(SUCCESS));
    }
    wait_for_no_descendants(&mut host);
}

fn wait_for_no_descendants(host: &mut Host) {
    for round in 0..2000 {
        if descendants(host.guest.id()).is_empty() {
            return;
        }
        host.send(100_000 + round, HostMessage::ListProcesses);
        host.event(100_000 + round);
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("still there: {:?}", descendants(host.guest.id()));
}

#[test]
fn a_process_is_who_its_spec_says() {
    if skipped("a_process_is_who_its_spec_says") {
        return;
    }
    let mut host = Host::booted();
    let user = UserIds { uid: 65534, gid: 65533, supplementary_gids: vec![12] };
    let script = "id -u; id -g; id -G; umask; ulimit -n; echo again > /dev/stdout; grep -E 'Cap(Eff|Bnd)|NoNew' /proc/self/status; \
        cat /proc/self/oom_score_adj; env; ls /proc/self/fd | wc -l";
    let process = ProcessSpec {
        user: user.clone(),
        capabilities: 1,
        umask: 0o077,
        oom_score_adj: 321,
        open_files: Some(50),
        env: vec!["PATH=/usr/bin:/bin".into(), "A=B".into()],
        ..shell(script)
    };
    let ran = host.run(1, process);
    let expected = "65534\n65533\n65533 12\n0077\n50\nagain\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000001\nNoNewPrivs:\t1\n321\n";
    assert_eq!(
        ran.text().get(..expected.len()),
        Some(expected),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(ran.text().contains("\nA=B\n"));
    // 0, 1, 2 and the directory that ls reads.
    assert!(ran.text().ends_with("\n4\n"), "{}", ran.text());
    let invalid = ProcessSpec { user: UserIds { uid: u32::MAX, ..user }, ..spec(&["true"]) };
    assert_eq!(host.run(2, invalid).failure.unwrap().kind, StartFailureKind::BadRequest);
}

#[test]
fn the_filter_of_the_boot_holds_for_every_process() {
    let mut host = Host::begin(&mut std::process::Command::new(env!("CARGO_BIN_EXE_atoll-guest")));
    host.hello(1);
    let filter = atoll_sys::seccomp::container_filter().unwrap();
    let seccomp_filter_base64 =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, filter);
    host.send(0, HostMessage::Boot(Boot { seccomp_filter_base64, ..boot() }));
    let capabilities = CapabilitySet::container_default().mask();
    let ran = host.run(
        1,
        ProcessSpec {
            capabilities,
            ..shell("grep Seccomp: /proc/self/status; unshare -U true || echo refused")
        },
    );
    assert_eq!(ran.text(), "Seccomp:\t2\nrefused\n");
}

#[test]
fn processes_are_listed_with_what_a_person_wants_to_know() {
    let mut host = Host::booted();
    host.send(1, HostMessage::Exec(spec(&["sleep", "1000"])));
    let GuestMessage::Started(started) = host.event(1) else { panic!("not started") };
    host.send(2, HostMessage::ListProcesses);
    let GuestMessage::Processes(processes) = host.event(2) else { panic!("no list") };
    let Some(sleeper) = processes.iter().find(|process| process.pid == started.pid) else {
        // Of the whole machine only as many as one message takes are listed, lowest first.
        eprintln!("SKIPPED: processes_are_listed: too many processes on this machine");
        return;
    };
    assert_eq!(sleeper.command, "sleep 1000");
    assert_eq!(sleeper.parent_pid, host.pid());
    assert_eq!(sleeper.uid, rustix::process::getuid().as_raw());
    assert!(
        processes.iter().all(|process| process.pid != host.pid()),
        "the guest itself is not shown"
    );
}

#[test]
fn a_workload_over_its_pids_limit_is_ended_with_that_reason() {
    let mut host = Host::begin(&mut std::process::Command::new(env!("CARGO_BIN_EXE_atoll-guest")));
    host.hello(1);
    // As an ordinary process it counts all of the machine's.
    host.send(0, HostMessage::Boot(Boot { pids_limit: Some(1), ..boot() }));
    host.send(0, HostMessage::Start(shell("sleep 1000 & sleep 1000")));
    let ended = Exited { code: None, signal: Some(9), pids_limit: true };
    loop {
        if let GuestMessage::Exited(exited) = host.event(0) {
            assert_eq!(exited, ended);
            break;
        }
    }
    wait_for_no_descendants(&mut host);
}
