//! A shim is killed, and another one takes over.

use std::fs;
use std::os::fd::AsFd;

use atoll_sys::process::{ProcessIdentity, ProcessState, send_signal};
use atoll_wire::guest::HostMessage;
use atoll_wire::log::LogStream;
use atoll_wire::record::ExitReason;
use atoll_wire::shim::{ShimEvent, ShimReply, ShimRequest, ShimState};
use rustix::process::Signal;

use crate::harness::{Client, Sandbox, Spawner, container, exec, kill, shell, wait_until};

fn adopt(spawner: &Spawner, sandbox: &Sandbox) -> (Client, ShimState) {
    let mut client = spawner.request(&sandbox.directory, true);
    assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
    let state = client.state();
    assert!(state.adopted);
    (client, state)
}

fn type_line(sandbox: &Sandbox) {
    let mut attached = sandbox.connect();
    let request = ShimRequest::Attach { container: "main".into(), from_start: false };
    assert_eq!(attached.request(&request), ShimReply::Ok);
    attached.send(HostMessage::Stdin(b"\n".to_vec()));
    // Closed only after the input went on: the shim answers later requests after earlier ones.
    wait_until("the line was read", || sandbox.log_text("main").contains("after"));
}

#[test]
fn the_same_process_goes_on_and_no_output_is_lost() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo before; read _; echo after; read _; exit 4");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    let first = sandbox.first_process();
    let mut left_behind = sandbox.connect();
    let process = shell("sleep 1000");
    left_behind.request(&ShimRequest::Exec { container: "main".into(), process });
    assert!(left_behind.message().is_some(), "it runs");
    sandbox.kill_shim();
    assert_eq!(first.state().unwrap(), ProcessState::Running);

    let (mut client, state) = adopt(&spawner, &sandbox);
    assert_eq!(state.containers[0].host_pid, Some(first.pid));
    assert!(state.containers[0].started_at_unix_micros.is_some());
    assert_eq!(
        (state.containers[0].exit.clone(), state.containers[0].log_dropped_bytes),
        (None, 0)
    );
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
    type_line(&sandbox);
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
    attached.send(HostMessage::StdinEnd);
    assert_eq!(attached.finish().code(), Some(4));
    client.until_ended();
    assert_eq!(sandbox.log_text("main"), "before\nafter\n");
    assert!(sandbox.log("main").iter().all(|record| record.stream != LogStream::Gap));
}

#[test]
fn an_exit_without_a_shim_is_kept_by_the_guest_with_all_that_fits_into_its_channel() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo before; sleep 0.3; echo while away; exit 11");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    sandbox.kill_shim();
    let first = sandbox.first_process();
    // The guest stays although its command has ended.
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(first.state().unwrap(), ProcessState::Running);
    let (mut client, _) = adopt(&spawner, &sandbox);
    client.until_ended();
    let end = sandbox.end().unwrap();
    assert_eq!((end.containers[0].code, end.containers[0].reason), (Some(11), ExitReason::Error));
    assert_eq!(sandbox.log_text("main"), "before\nwhile away\n");
    assert_ne!(first.state().unwrap(), ProcessState::Running);
}

/// Stops a guest, or lets it go on.
fn signal_guest(guest: &ProcessIdentity, signal: Signal) {
    let pidfd = guest.open().unwrap().expect("it runs");
    send_signal(pidfd.as_fd(), signal.as_raw()).unwrap();
}

#[test]
fn a_guest_that_is_silent_after_a_takeover_is_told_of_and_asked_again() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo before; read _; exit 4");
    spawner.request(&sandbox.directory, false).until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    let guest = sandbox.first_process();
    signal_guest(&guest, Signal::STOP);
    sandbox.kill_shim();
    let mut client = spawner.request(&sandbox.directory, true);
    assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
    let told = |reply: ShimReply| match reply {
        ShimReply::Refused { message } => assert!(message.contains("container main"), "{message}"),
        other => panic!("a state that nobody can know: {other:?}"),
    };
    told(client.reply());
    assert!(client.frame().is_none(), "there is nothing more to hear for it");
    // Who asks while it is silent hears so at once; nothing can be asked of the container.
    told(sandbox.connect().request(&ShimRequest::Subscribe));
    let process = shell("true");
    told(sandbox.connect().request(&ShimRequest::Exec { container: "main".into(), process }));
    signal_guest(&guest, Signal::CONT);
    let mut client = sandbox.connect();
    let state = loop {
        match client.request(&ShimRequest::Subscribe) {
            ShimReply::State(state) => break state,
            reply => told(reply),
        }
    };
    assert!(state.adopted);
    assert_eq!(state.containers[0].host_pid, Some(guest.pid), "the same process");
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
    attached.send(HostMessage::StdinEnd);
    assert_eq!(attached.finish().code(), Some(4));
    client.until_ended();
}

/// The workload writes all the time, the shim dies again and again: what is in the log is in order, and what is missing is counted.
#[test]
fn under_load_the_log_and_its_gaps_add_up() {
    let spawner = Spawner::start();
    let mut plan = container("main", "seq 1 400000");
    plan.log_bytes = 1 << 30;
    let sandbox = Sandbox::new(vec![plan]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut adopted = 0;
    while adopted < 5 && sandbox.end().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        sandbox.kill_shim();
        let (again, state) = adopt(&spawner, &sandbox);
        client = again;
        adopted += 1;
        if state.containers[0].exit.is_some() {
            break;
        }
    }
    client.until_ended();
    let end = sandbox.end().unwrap();
    assert_eq!(end.containers[0].code, Some(0), "the workload never noticed");
    let wanted: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    let mut at = 0;
    let mut lost = 0;
    for record in sandbox.log("main") {
        if record.stream == LogStream::Gap {
            let text = String::from_utf8(record.text).unwrap();
            let bytes: usize = text.split(' ').next().unwrap().parse().unwrap();
            at += bytes;
            lost += bytes;
            continue;
        }
        let mut text = record.text;
        if record.full {
            text.push(b'\n');
        }
        assert!(wanted.as_bytes()[at..].starts_with(&text), "out of order at byte {at}");
        at += text.len();
    }
    assert_eq!(at, wanted.len(), "every byte is there or marked");
    assert_eq!(end.log_dropped_bytes, [lost as u64]);
}

#[test]
fn a_guest_that_died_too_leaves_an_unknown_end() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo before; sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    sandbox.kill_shim();
    let first = sandbox.first_process();
    kill(&first);
    wait_until("it is gone", || first.state().unwrap() != ProcessState::Running);
    let (mut client, state) = adopt(&spawner, &sandbox);
    let exit = state.containers[0].exit.clone().unwrap();
    assert_eq!(
        (exit.reason, exit.code, exit.finished_at_unix_micros),
        (ExitReason::Unknown, None, None)
    );
    client.until_ended();
    assert_eq!(sandbox.end().unwrap().containers, [exit]);
}

#[test]
fn one_of_two_who_take_over_at_once_is_refused() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    sandbox.kill_shim();
    let mut clients: Vec<_> = (0..4).map(|_| spawner.request(&sandbox.directory, true)).collect();
    let mut refused = 0;
    for client in &mut clients {
        let frame = client.frame().unwrap();
        if String::from_utf8_lossy(&frame.payload).contains("another shim holds") {
            refused += 1;
        } else {
            client.state();
        }
    }
    assert_eq!(refused, 3);
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}

#[test]
fn a_running_sandbox_is_not_taken_from_its_shim() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    for adopting in [true, false] {
        let mut other = spawner.request(&sandbox.directory, adopting);
        assert!(matches!(other.reply(), ShimReply::Refused { .. }));
    }
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}

#[test]
fn a_damaged_record_ends_nothing_and_is_told() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let first = sandbox.first_process();
    let whole = fs::read(sandbox.path("shim.json")).unwrap();
    sandbox.kill_shim();
    for damage in ["", "{\"version\":1", "[1]", "null"] {
        fs::write(sandbox.path("shim.json"), damage).unwrap();
        let mut client = spawner.request(&sandbox.directory, true);
        assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
        let ShimReply::Refused { message } = client.reply() else { panic!("not refused") };
        assert!(message.contains("shim.json is damaged"), "{message}");
        assert_eq!(client.event(), None);
        assert_eq!(first.state().unwrap(), ProcessState::Running);
    }
    assert!(sandbox.end().is_none());
    fs::write(sandbox.path("shim.json"), whole).unwrap();
    adopt(&spawner, &sandbox);
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}

#[test]
fn a_sandbox_whose_shim_died_before_it_wrote_its_record_is_a_failed_launch() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    let first = sandbox.first_process();
    sandbox.kill_shim();
    fs::remove_file(sandbox.path("shim.json")).unwrap();
    let (mut client, _) = adopt(&spawner, &sandbox);
    let events = client.until_ended();
    assert!(matches!(events[..], [ShimEvent::LaunchFailed { .. }]), "{events:?}");
    assert!(sandbox.end().unwrap().launch_failure.is_some());
    // This engine finds nothing without the record; the real ones have their control groups.
    kill(&first);
}

#[test]
fn several_shims_in_a_row_use_no_stream_number_twice() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000");
    spawner.request(&sandbox.directory, false).until_started();
    for round in 0..3 {
        for _ in 0..3 {
            let text = format!("round {round}\n");
            assert_eq!(exec(&sandbox, "main", &format!("echo round {round}")).text(), text);
        }
        sandbox.kill_shim();
        adopt(&spawner, &sandbox);
    }
}
