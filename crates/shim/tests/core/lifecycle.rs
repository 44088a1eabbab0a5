//! From a request to `end.json`.

use std::fs;

use atoll_sys::process::ProcessState;
use atoll_wire::guest::SignalRequest;
use atoll_wire::record::{ContainerExit, ExitReason};
use atoll_wire::shim::{ShimEvent, ShimReply, ShimRequest};

use crate::harness::{Client, Sandbox, Spawner, container, exec, kill, wait_until};

fn exits(events: &[ShimEvent]) -> Vec<ContainerExit> {
    events
        .iter()
        .filter_map(|event| match event {
            ShimEvent::Exited { exit } => Some(exit.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_command_runs_and_its_exit_is_on_disk_before_it_is_told() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo hello; echo error >&2; exit 3");
    let mut client = spawner.request(&sandbox.directory, false);
    assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
    assert!(matches!(client.event(), Some(ShimEvent::Isolated { .. })));
    let events = client.events_until(|event| {
        if matches!(event, ShimEvent::Exited { .. }) {
            assert!(sandbox.end().is_some(), "the record is there when the event comes");
        }
        *event == ShimEvent::Ended
    });
    let exit = exits(&events).remove(0);
    assert_eq!((exit.code, exit.reason), (Some(3), ExitReason::Error));
    assert_eq!(sandbox.end().unwrap().containers, [exit]);
    assert_eq!(client.event(), None, "nothing after the end");
    assert_eq!(sandbox.log_text("main"), "hello\nerror\n");
    let shim = sandbox.shim();
    wait_until("the shim ends", || shim.state().unwrap() == ProcessState::Gone);
}

#[test]
fn a_command_that_cannot_start_says_why() {
    let spawner = Spawner::start();
    let mut plan = container("main", "");
    plan.process.args = vec!["/no/such/program".into()];
    let sandbox = Sandbox::new(vec![plan]);
    let events = spawner.request(&sandbox.directory, false).until_ended();
    let exit = exits(&events).remove(0);
    assert_eq!((exit.code, exit.reason), (Some(127), ExitReason::StartFailed));
    assert!(!exit.message.is_empty());
    assert!(!events.iter().any(|event| matches!(event, ShimEvent::Started { .. })));
}

#[test]
fn it_ends_when_nobody_is_there_and_who_comes_later_learns_it() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo alone; sleep 0.2; exit 7");
    drop(spawner.request(&sandbox.directory, false));
    wait_until("the end is on disk", || sandbox.end().is_some());
    assert_eq!(sandbox.end().unwrap().containers[0].code, Some(7));
    assert_eq!(sandbox.log_text("main"), "alone\n");
    let shim = sandbox.shim();
    wait_until("the shim ends", || shim.state().unwrap() != ProcessState::Running);
    let mut client = spawner.request(&sandbox.directory, true);
    let events = {
        assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
        let state = client.state();
        assert_eq!(state.containers[0].exit.as_ref().unwrap().code, Some(7));
        client.until_ended()
    };
    assert_eq!(events, [ShimEvent::Ended]);
}

#[test]
fn containers_end_one_by_one_and_the_sandbox_with_the_last() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::new(vec![
        container("first", "read _; exit 1"),
        container("second", "read _; exit 2"),
    ]);
    let mut client = spawner.request(&sandbox.directory, false);
    for _ in 0..2 {
        client.until_started();
    }
    for (name, code) in [("second", 2), ("first", 1)] {
        let mut attached = sandbox.connect();
        let request = ShimRequest::Attach { container: name.into(), from_start: false };
        assert_eq!(attached.request(&request), ShimReply::Ok);
        attached.send(atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec()));
        assert_eq!(attached.finish().code(), Some(code));
        let events = client.events_until(|event| matches!(event, ShimEvent::Exited { .. }));
        assert_eq!(exits(&events)[0].container, name);
        if name == "second" {
            assert!(sandbox.end().is_none(), "the other one runs");
            assert_eq!(sandbox.record().containers[1].exit.as_ref().unwrap().code, Some(2));
            assert_eq!(exec(&sandbox, "first", "echo alive").text(), "alive\n");
        }
    }
    assert_eq!(client.until_ended(), [ShimEvent::Ended]);
    assert_eq!(sandbox.end().unwrap().containers.len(), 2);
}

#[test]
fn what_the_command_left_behind_goes_with_it() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("sleep 1000 & echo started; exit 0");
    let events = spawner.request(&sandbox.directory, false).until_ended();
    assert_eq!(exits(&events)[0].reason, ExitReason::Completed);
    let first = sandbox.first_process();
    assert_eq!(first.state().unwrap(), ProcessState::Gone, "and with it its pid namespace");
}

#[test]
fn a_killed_guest_is_told_as_such() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo ready; sleep 1000");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    kill(&sandbox.first_process());
    let exit = exits(&client.until_ended()).remove(0);
    assert_eq!((exit.code, exit.reason), (None, ExitReason::GuestDied));
    assert!(exit.message.contains("signal 9"), "{exit:?}");
}

fn stop(sandbox: &Sandbox, grace_millis: u64) {
    assert_eq!(sandbox.connect().request(&ShimRequest::Stop { grace_millis }), ShimReply::Ok);
}

fn started(spawner: &Spawner, sandbox: &Sandbox) -> Client {
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    wait_until("it says so", || sandbox.log_text("main").contains("ready"));
    client
}

#[test]
fn stop_asks_first_and_kills_what_does_not_listen() {
    let spawner = Spawner::start();
    let polite = Sandbox::of_script(
        "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done",
    );
    let mut client = started(&spawner, &polite);
    stop(&polite, 20_000);
    let exit = exits(&client.until_ended()).remove(0);
    assert_eq!((exit.code, exit.reason), (Some(5), ExitReason::Stopped));
    assert!(polite.log_text("main").contains("bye"));

    let deaf = Sandbox::of_script("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let mut client = started(&spawner, &deaf);
    stop(&deaf, 60_000);
    stop(&deaf, 100);
    stop(&deaf, 60_000);
    let exit = exits(&client.until_ended()).remove(0);
    assert_eq!((exit.signal, exit.reason), (Some(9), ExitReason::Stopped));
}

#[test]
fn a_signal_that_a_client_sent_is_no_error_of_the_command() {
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo ready; exec sleep 1000");
    let mut client = started(&spawner, &sandbox);
    let signal = SignalRequest { signal: 10, everyone: false };
    let request = ShimRequest::Signal { container: "main".into(), signal };
    assert_eq!(sandbox.connect().request(&request), ShimReply::Ok);
    let exit = exits(&client.until_ended()).remove(0);
    assert_eq!((exit.signal, exit.reason), (Some(10), ExitReason::Stopped));
}

#[test]
fn a_launch_that_cannot_be_read_or_prepared_fails_with_a_reason() {
    let spawner = Spawner::start();
    for (content, reason) in [
        ("{\"version\":1,", "launch.json is damaged"),
        ("", "launch.json is damaged"),
        ("[]", "launch.json is damaged"),
    ] {
        let sandbox = Sandbox::of_script("true");
        fs::write(sandbox.path("launch.json"), content).unwrap();
        let events = spawner.request(&sandbox.directory, false).until_ended();
        let Some(ShimEvent::LaunchFailed { message }) = events.last() else { panic!("{events:?}") };
        assert!(message.contains(reason), "{message}");
        assert_eq!(sandbox.end().unwrap().launch_failure.as_ref(), Some(message));
    }
    let sandbox = Sandbox::of_script("true");
    fs::write(sandbox.path("refuse"), "").unwrap();
    let events = spawner.request(&sandbox.directory, false).until_ended();
    let message = "cannot prepare the sandbox: the test wants it so".to_owned();
    assert_eq!(events.last(), Some(&ShimEvent::LaunchFailed { message: message.clone() }));
    assert_eq!(sandbox.end().unwrap().launch_failure, Some(message));
}

#[test]
fn the_boost_ends_by_itself_when_asked_and_after_a_takeover() {
    let spawner = Spawner::start();
    let boosted = |boost_millis| {
        let sandbox = Sandbox::with(vec![container("main", "sleep 1000")], |launch| {
            launch.plan.boost_millis = boost_millis;
        });
        spawner.request(&sandbox.directory, false).until_started();
        sandbox
    };
    let short = boosted(50);
    wait_until("it ends by itself", || short.path("boost-ended").exists());
    let long = boosted(600_000);
    assert!(!long.path("boost-ended").exists());
    assert_eq!(long.connect().request(&ShimRequest::EndBoost), ShimReply::Ok);
    assert!(long.path("boost-ended").exists());
    let taken_over = boosted(600_000);
    taken_over.kill_shim();
    let _client = spawner.request(&taken_over.directory, true);
    wait_until("it ends with the takeover", || taken_over.path("boost-ended").exists());
}

#[test]
fn shims_outlive_their_spawner() {
    let mut spawner = Spawner::start();
    let sandbox = Sandbox::of_script("echo ready; read _; echo after");
    let mut client = started(&spawner, &sandbox);
    spawner.process.kill().unwrap();
    spawner.process.wait().unwrap();
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
    attached.send(atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec()));
    assert_eq!(attached.finish().text(), "after\n");
    client.until_ended();
    assert!(sandbox.log_text("main").contains("after"));
}

#[test]
fn a_spawner_ends_with_its_socket_and_survives_rubbish() {
    use std::os::fd::AsFd;
    let mut spawner = Spawner::start();
    for packet in [&b"{}"[..], b"rubbish", &[0; 100_000]] {
        let _ = atoll_sys::packet::send_packet(spawner.socket.as_fd(), packet, &[]);
    }
    let sandbox = Sandbox::of_script("true");
    spawner.request(&sandbox.directory, false).until_ended();
    let (ours, _) = atoll_sys::packet::packet_pair().unwrap();
    drop(std::mem::replace(&mut spawner.socket, ours));
    assert!(spawner.process.wait().unwrap().success());
}

#[test]
fn two_hundred_quick_exits_leave_no_process_and_no_descriptor() {
    let spawner = Spawner::start();
    let descriptors = || {
        let path = format!("/proc/{}/fd", spawner.process.id());
        fs::read_dir(path).unwrap().count()
    };
    let first = Sandbox::of_script("true");
    spawner.request(&first.directory, false).until_ended();
    let before = descriptors();
    let mut shims = Vec::new();
    for round in 0..20 {
        let sandboxes: Vec<_> =
            (0..10).map(|at| Sandbox::of_script(&format!("exit {}", round * 10 + at))).collect();
        let clients: Vec<_> =
            sandboxes.iter().map(|one| spawner.request(&one.directory, false)).collect();
        for (at, mut client) in clients.into_iter().enumerate() {
            let exit = exits(&client.until_ended()).remove(0);
            assert_eq!(exit.code, Some(round * 10 + i32::try_from(at).unwrap()));
            shims.push(sandboxes[at].shim());
            assert_eq!(sandboxes[at].first_process().state().unwrap(), ProcessState::Gone);
        }
    }
    for shim in shims {
        wait_until("every shim is gone", || shim.state().unwrap() == ProcessState::Gone);
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn what_cannot_be_limited_after_its_start_is_ended_and_says_why() {
    let spawner = Spawner::start();
    let plans = vec![container("main", "sleep 1000")];
    let sandbox = Sandbox::with(plans, |launch| launch.plan.boost_millis = 60_000);
    // Where the engine puts a file, there is a directory: its quota fails, however often it is tried.
    std::fs::create_dir(sandbox.path("boost-ended")).unwrap();
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let refused = sandbox.connect().request(&ShimRequest::EndBoost);
    assert!(matches!(refused, ShimReply::Refused { .. }), "who asks hears it: {refused:?}");
    let events = client.until_ended();
    let exit = &exits(&events)[0];
    assert_eq!((exit.reason, exit.code), (ExitReason::HostError, None), "{exit:?}");
    assert!(exit.message.contains("could not be limited"), "{exit:?}");
    assert_eq!(sandbox.end().unwrap().containers, std::slice::from_ref(exit));
}

#[test]
fn a_quota_that_can_be_set_on_a_later_attempt_harms_nobody() {
    let spawner = Spawner::start();
    let plans = vec![container("main", "sleep 1000")];
    let sandbox = Sandbox::with(plans, |launch| launch.plan.boost_millis = 60_000);
    let place = sandbox.path("boost-ended");
    std::fs::create_dir(&place).unwrap();
    spawner.request(&sandbox.directory, false).until_started();
    let refused = sandbox.connect().request(&ShimRequest::EndBoost);
    assert!(matches!(refused, ShimReply::Refused { .. }), "{refused:?}");
    std::fs::remove_dir(&place).unwrap();
    wait_until("it is tried again", || place.is_file());
    assert_eq!(exec(&sandbox, "main", "echo works").text(), "works\n");
}
