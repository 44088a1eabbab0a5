//! The guest as an ordinary process: what a host can rely on in the protocol.

use std::time::Duration;

use crate::support::*;
use atoll_wire::frame::{Frame, MAX_DATA_BYTES};
use atoll_wire::guest::*;

#[test]
fn a_command_runs_and_its_exit_is_the_guests_own() {
    let mut host = Host::booted();
    host.send(0, HostMessage::Start(shell("echo out; echo err >&2; exit 7")));
    let ran = host.follow(0);
    assert_eq!((ran.text(), ran.stderr.as_slice(), ran.code()), ("out\n", &b"err\n"[..], Some(7)));
    assert!(ran.pid.is_some_and(|pid| pid > 0));
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(7));
}

#[test]
fn a_command_ended_by_a_signal_is_told_as_a_shell_tells() {
    let mut host = Host::booted();
    host.send(0, HostMessage::Start(spec(&["sleep", "1000"])));
    assert!(matches!(host.event(0), GuestMessage::Started(_)));
    host.send(0, HostMessage::Signal(SignalRequest { signal: 15, everyone: false }));
    let exited = Exited { code: None, signal: Some(15), pids_limit: false };
    assert_eq!(host.event(0), GuestMessage::Exited(exited));
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(143));
}

#[test]
fn a_megabyte_goes_through_and_comes_back_whole() {
    let mut host = Host::booted();
    let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    host.send(1, HostMessage::Exec(ProcessSpec { stdin: true, ..spec(&["cat"]) }));
    let mut window = INITIAL_STDIN_WINDOW_BYTES as usize;
    let (mut rest, mut received, mut ended) = (sent.as_slice(), Vec::new(), false);
    let exited = loop {
        let part = rest.len().min(window).min(MAX_DATA_BYTES);
        if part > 0 {
            host.send(1, HostMessage::Stdin(rest[..part].to_vec()));
            rest = &rest[part..];
            window -= part;
        } else if rest.is_empty() && !ended {
            host.send(1, HostMessage::StdinEnd);
            ended = true;
        }
        match host.message_within(Duration::from_millis(if part > 0 { 0 } else { 20_000 })) {
            Some((1, GuestMessage::Credit(bytes))) => window += bytes as usize,
            Some((1, GuestMessage::Stdout { offset, data })) => {
                assert_eq!(offset, received.len() as u64);
                host.send(1, HostMessage::Credit(data.len() as u32));
                received.extend(data);
            }
            Some((1, GuestMessage::Exited(exited))) => break exited,
            Some((1, GuestMessage::Started(_))) | None => {}
            other => panic!("unexpected: {other:?}"),
        }
    };
    assert_eq!(exited, SUCCESS);
    assert!(received == sent, "every byte came back");
}

#[test]
fn output_stops_at_the_window_and_goes_on_with_credit() {
    let mut host = Host::booted();
    host.send(1, HostMessage::Exec(shell("head -c 1000000 /dev/zero")));
    let mut received = 0;
    while received < INITIAL_WINDOW_BYTES as usize {
        if let (1, GuestMessage::Stdout { data, .. }) = host.next_message() {
            received += data.len();
        }
    }
    assert_eq!(received, INITIAL_WINDOW_BYTES as usize, "no byte more than granted");
    assert_eq!(host.message_within(Duration::from_millis(100)), None);
    // Another stream is not held up by it.
    let ran = host.run(2, shell("echo free"));
    assert_eq!(ran.text(), "free\n");
    host.send(1, HostMessage::Credit(10));
    let GuestMessage::Stdout { data, .. } = host.next_message().1 else { panic!("no output") };
    assert_eq!(data.len(), 10);
    host.send(1, HostMessage::Credit(1_000_000));
    assert_eq!(host.event(1), GuestMessage::Exited(SUCCESS), "the exit comes after all output");
}

#[test]
fn every_failure_to_start_is_told_by_its_kind() {
    let mut host = Host::booted();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("plain"), "#!/bin/sh\n").unwrap();
    let large = ProcessSpec {
        env: vec!["A=B".into(), "X".repeat(40_000), "Y\0".into()],
        ..spec(&["true"])
    };
    let cases = [
        (spec(&["no-such-program"]), StartFailureKind::NotFound, 127),
        (spec(&["/no/such/program"]), StartFailureKind::NotFound, 127),
        (spec(&[&path("plain")]), StartFailureKind::NotExecutable, 126),
        (spec(&["/tmp"]), StartFailureKind::NotExecutable, 126),
        (spec(&[]), StartFailureKind::BadRequest, 125),
        (spec(&[""]), StartFailureKind::BadRequest, 125),
        (large, StartFailureKind::BadRequest, 125),
        (
            ProcessSpec { working_directory: path("missing"), ..spec(&["true"]) },
            StartFailureKind::WorkingDirectory,
            125,
        ),
        (
            ProcessSpec { working_directory: "relative".into(), ..spec(&["true"]) },
            StartFailureKind::BadRequest,
            125,
        ),
    ];
    for (stream, (spec, kind, code)) in (1..).zip(cases) {
        let ran = host.run(stream, spec);
        let failure = ran.failure.unwrap_or_else(|| panic!("{kind:?} expected"));
        assert_eq!((failure.kind, failure.kind.exit_code()), (kind, code), "{}", failure.message);
    }
    let made = ProcessSpec {
        working_directory: path("a/b"),
        make_working_directory: true,
        ..spec(&["pwd"])
    };
    assert_eq!(host.run(100, made).text().trim_end(), path("a/b"));
}

#[test]
fn a_command_that_cannot_be_started_is_kept_until_it_is_acknowledged() {
    let mut host = Host::booted();
    host.send(0, HostMessage::Start(spec(&["no-such-program"])));
    assert!(matches!(host.event(0), GuestMessage::StartFailed(_)));
    let ack = host.take_over(9);
    let exited = Exited { code: Some(127), signal: None, pids_limit: false };
    assert_eq!(ack.streams.len(), 1);
    assert_eq!((ack.streams[0].pid, ack.streams[0].exited), (None, Some(exited)));
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(127));
}

#[test]
fn a_new_host_finds_everything_where_it_was() {
    let mut host = Host::booted();
    host.send(
        0,
        HostMessage::Start(ProcessSpec {
            stdin: true,
            ..shell("echo begun; read line; echo $line")
        }),
    );
    let GuestMessage::Started(started) = host.event(0) else { panic!("not started") };
    // What it says first comes when its shell has come so far.
    let begun = GuestMessage::Stdout { offset: 0, data: b"begun\n".to_vec() };
    while host.next_message() != (0, begun.clone()) {}
    let ran = host.run(1, shell("exit 3"));
    assert_eq!(ran.code(), Some(3));
    host.send(2, HostMessage::Exec(shell("exit 4")));
    assert!(matches!(host.event(2), GuestMessage::Started(_)));
    assert!(matches!(host.event(2), GuestMessage::Exited(_)));
    // The old host dies in the middle of a frame that holds what looks like another frame.
    let mut forged = Vec::new();
    HostMessage::Signal(SignalRequest { signal: 9, everyone: false })
        .into_frame(0)
        .unwrap()
        .encode(&mut forged)
        .unwrap();
    forged.resize(5000, 0);
    let mut cut = Vec::new();
    HostMessage::Stdin(forged).into_frame(0).unwrap().encode(&mut cut).unwrap();
    std::io::Write::write_all(&mut host.to_guest, &cut[..3000]).unwrap();

    let ack = host.take_over(u64::MAX);
    assert_eq!((ack.version, ack.booted), (PROTOCOL_VERSION, true));
    let [main, exec] = ack.streams.as_slice() else { panic!("two streams: {:?}", ack.streams) };
    assert_eq!((main.stream, main.pid, main.exited), (0, Some(started.pid), None));
    assert_eq!(main.stdout_sent_bytes, 6);
    assert_eq!((exec.stream, exec.exited.and_then(|exited| exited.code)), (2, Some(4)));
    assert_eq!(host.next_message(), (0, GuestMessage::Credit(INITIAL_STDIN_WINDOW_BYTES)));
    host.send(2, HostMessage::ExitAck);
    host.send(0, HostMessage::Stdin(b"still here\n".to_vec()));
    assert_eq!(host.next_message(), (0, GuestMessage::Credit(11)));
    let output = GuestMessage::Stdout { offset: 6, data: b"still here\n".to_vec() };
    assert_eq!(host.next_message(), (0, output));
    assert_eq!(host.event(0), GuestMessage::Exited(SUCCESS));
}

#[test]
fn with_the_host_gone_the_workload_waits_and_nothing_is_lost_of_its_exit() {
    let mut host = Host::booted();
    host.send(0, HostMessage::Start(shell("head -c 100000 /dev/zero; exit 5")));
    // Nobody reads: the exit cannot come before its output, and what does not fit waits.
    let ack = host.take_over(2);
    let state = ack.streams[0].clone();
    if state.exited.is_none() {
        assert_eq!(host.follow_from(0, state.stdout_sent_bytes), (100_000, Some(5)));
    } else {
        assert_eq!(state.stdout_sent_bytes, 100_000);
    }
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(5));
}

#[test]
fn a_version_that_is_not_known_is_refused_and_nothing_is_obeyed() {
    let mut host = Host::begin(&mut std::process::Command::new(env!("CARGO_BIN_EXE_atoll-guest")));
    host.send(0, HostMessage::Boot(boot()));
    host.send(0, HostMessage::Hello(Hello { versions: vec![2, 77], epoch: 5 }));
    let GuestMessage::HelloAck(ack) = host.event(0) else { panic!("no answer") };
    assert_eq!((ack.version, ack.epoch, ack.booted), (0, 5, false));
    host.send(0, HostMessage::Boot(boot()));
    host.send(0, HostMessage::Start(spec(&["true"])));
    host.send(0, HostMessage::Hello(Hello { versions: vec![2, 1], epoch: 6 }));
    let GuestMessage::HelloAck(ack) = host.event(0) else { panic!("no answer") };
    assert_eq!((ack.version, ack.epoch, ack.booted, ack.streams.len()), (1, 6, false, 0));
}

#[test]
fn nothing_starts_without_a_boot_that_could_be_applied() {
    let mut host = Host::begin(&mut std::process::Command::new(env!("CARGO_BIN_EXE_atoll-guest")));
    host.hello(1);
    for filter in ["not base64!", "AAAA"] {
        host.send(0, HostMessage::Boot(Boot { seccomp_filter_base64: filter.into(), ..boot() }));
        assert!(matches!(host.event(0), GuestMessage::Refused(_)));
    }
    let failure = host.run(1, spec(&["true"])).failure.unwrap();
    assert_eq!(failure.kind, StartFailureKind::BadRequest);
    host.send(0, HostMessage::Boot(boot()));
    assert_eq!(host.run(2, spec(&["true"])).exited, Some(SUCCESS));
}

#[test]
fn two_hundred_quick_processes_leave_nothing_open() {
    let mut host = Host::booted();
    host.run(1, spec(&["true"]));
    let before = host.open_descriptors();
    for stream in 2..=201 {
        assert_eq!(host.run(stream, spec(&["true"])).exited, Some(SUCCESS));
    }
    host.send(300, HostMessage::ListProcesses);
    assert!(matches!(host.event(300), GuestMessage::Processes(_)));
    assert_eq!(host.open_descriptors(), before);
    assert!(descendants(host.guest.id()).is_empty(), "every child was reaped");
}

#[test]
fn one_more_than_the_most_streams_is_refused_and_the_others_live() {
    let mut host = Host::booted();
    let most = u32::try_from(MAX_STREAMS).unwrap();
    for stream in 1..=most {
        host.send(stream, HostMessage::Exec(ProcessSpec { stdin: true, ..spec(&["cat"]) }));
    }
    let mut started = 0;
    while started < most {
        if let (_, GuestMessage::Started(_)) = host.next_message() {
            started += 1;
        }
    }
    assert_eq!(
        host.run(most + 1, spec(&["true"])).failure.unwrap().kind,
        StartFailureKind::TooManyProcesses
    );
    for stream in 1..=most {
        host.send(stream, HostMessage::Stdin(stream.to_le_bytes().to_vec()));
        host.send(stream, HostMessage::StdinEnd);
    }
    let mut ended = 0;
    while ended < most {
        match host.next_message() {
            (stream, GuestMessage::Stdout { data, .. }) => assert_eq!(data, stream.to_le_bytes()),
            (_, GuestMessage::Exited(exited)) => {
                assert_eq!(exited, SUCCESS);
                ended += 1;
            }
            _ => {}
        }
    }
    assert_eq!(
        host.take_over(1).streams.len(),
        MAX_STREAMS,
        "and all of that fits into one answer"
    );
}

#[test]
fn a_grandchild_that_keeps_the_pipe_delays_nothing_and_is_not_killed_for_it() {
    let mut host = Host::booted();
    let script = "(while read line; do echo $line; done; echo done > $1) < $2 & echo first";
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("lines"), "text\n".repeat(100_000)).unwrap();
    let background = spec(&["sh", "-c", script, "sh", &path("done"), &path("lines")]);
    let ran = host.run(1, background);
    assert_eq!(ran.exited, Some(SUCCESS));
    assert!(ran.text().starts_with("first\n") || ran.text().starts_with("text\n"));
    // Half a megabyte goes to a pipe that nobody listens to any more, without SIGPIPE and without waiting.
    for _ in 0..2000 {
        if std::path::Path::new(&path("done")).exists() {
            return;
        }
        host.send(2, HostMessage::ListProcesses);
        host.event(2);
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the process in the background did not come to its end");
}

#[test]
fn who_detaches_ends_the_input_and_the_process_goes_on() {
    let mut host = Host::booted();
    host.send(
        1,
        HostMessage::Exec(ProcessSpec {
            stdin: true,
            ..shell("cat; head -c 1000000 /dev/zero; exit 9")
        }),
    );
    assert!(matches!(host.event(1), GuestMessage::Started(_)));
    host.send(1, HostMessage::Detach);
    let exited = Exited { code: Some(9), signal: None, pids_limit: false };
    assert_eq!(host.next_message(), (1, GuestMessage::Exited(exited)), "no output, but the end");
}

#[test]
fn input_that_nobody_reads_is_granted_again() {
    let mut host = Host::booted();
    host.send(
        1,
        HostMessage::Exec(ProcessSpec {
            stdin: true,
            ..shell("exec <&-; echo closed; exec sleep 1000")
        }),
    );
    while !matches!(host.next_message(), (1, GuestMessage::Stdout { .. })) {}
    let mut granted = 0;
    for _ in 0..10 {
        host.send(1, HostMessage::Stdin(vec![b'x'; MAX_DATA_BYTES]));
        if let (1, GuestMessage::Credit(bytes)) = host.next_message() {
            granted += bytes as usize;
        }
    }
    assert_eq!(granted, 10 * MAX_DATA_BYTES);
}

#[test]
fn hostile_frames_change_nothing() {
    let mut host = Host::booted();
    let mut bytes = Vec::new();
    for kind in 0..=255 {
        for payload in [Vec::new(), b"{}".to_vec(), b"[1,2".to_vec(), vec![0xff; 9]] {
            // Hello, Boot, ExitAck and lists are answered or passed over; none of these may end the guest.
            Frame { kind, stream: u32::from(kind) + 1, payload }.encode(&mut bytes).unwrap();
        }
    }
    bytes.extend_from_slice(b"aTl1aTl1aTl1 rubbish");
    std::io::Write::write_all(&mut host.to_guest, &bytes).unwrap();
    let ack = host.take_over(3);
    assert_eq!((ack.version, ack.streams.len()), (1, 0));
    assert_eq!(host.run(1000, shell("exit 6")).code(), Some(6));
}

impl Host {
    /// Follows output from an offset on: how far it went, and the exit code.
    fn follow_from(&mut self, stream: u32, mut at: u64) -> (u64, Option<i32>) {
        loop {
            match self.next_message() {
                (from, GuestMessage::Stdout { offset, data }) if from == stream => {
                    assert_eq!(offset, at);
                    at += data.len() as u64;
                }
                (from, GuestMessage::Exited(exited)) if from == stream => return (at, exited.code),
                _ => {}
            }
        }
    }
}
