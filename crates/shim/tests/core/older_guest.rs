//! Guests of other builds of atoll: a sandbox outlives the program that began it.

use atoll_wire::frame::Frame;
use atoll_wire::guest::{GuestKind, GuestMessage, HostMessage, Started};
use atoll_wire::shim::{ShimEvent, ShimReply, ShimRequest};

use crate::harness::{Spawner, kill, shell};
use crate::rogue_guest::Rogue;

/// Says a message in the words of another build.
fn say(rogue: &mut Rogue, kind: GuestKind, stream: u32, json: &str) {
    let payload = json.as_bytes().to_vec();
    rogue.raw(&Frame { kind: kind.number(), stream, payload });
}

/// An answer to Hello of version 1 as the first release says it; `more` are fields that it does not have.
fn acknowledge(rogue: &mut Rogue, epoch: u64, version: u32, booted: bool, more: &str) {
    let streams = if booted {
        r#"[{"stream":0,"pid":5,"stdout_sent_bytes":0,"stderr_sent_bytes":0}]"#
    } else {
        "[]"
    };
    let json = format!(
        r#"{{"version":{version},"epoch":{epoch},"build":"0.0.7","booted":{booted},"streams":{streams}{more}}}"#
    );
    say(rogue, GuestKind::HelloAck, 0, &json);
}

/// Runs a process that the test itself pretends to be, in the words of the first release.
fn serves_exec(rogue: &mut Rogue) {
    let mut client = rogue.sandbox.connect();
    let request = ShimRequest::Exec { container: "main".into(), process: shell("true") };
    assert_eq!(client.request(&request), ShimReply::Ok);
    let stream = loop {
        if let (stream, HostMessage::Exec(_)) = rogue.next_request() {
            break stream;
        }
    };
    say(rogue, GuestKind::Started, stream, r#"{"pid":9}"#);
    rogue.say(stream, GuestMessage::Stdout { offset: 0, data: b"said".to_vec() });
    say(rogue, GuestKind::Exited, stream, r#"{"code":7}"#);
    let finished = client.finish();
    assert_eq!((finished.text().as_str(), finished.code()), ("said", Some(7)));
}

#[test]
fn a_guest_that_says_less_or_more_than_this_build_knows_is_served_and_taken_over() {
    for more in ["", r#","invented_later":{"a":[1,2]}"#] {
        let spawner = Spawner::start();
        let (mut rogue, epoch) = Rogue::begin(&spawner);
        acknowledge(&mut rogue, epoch, 1, false, more);
        rogue.say(0, GuestMessage::Started(Started { pid: 5 }));
        rogue.client.until_started();
        serves_exec(&mut rogue);
        // Another release of the shim finds it.
        rogue.sandbox.kill_shim();
        let mut client = spawner.request(&rogue.sandbox.directory, true);
        let epoch = rogue.hello();
        acknowledge(&mut rogue, epoch, 1, true, more);
        assert!(matches!(client.event(), Some(ShimEvent::Spawned { .. })));
        assert!(client.state().adopted);
        serves_exec(&mut rogue);
        say(&mut rogue, GuestKind::Exited, 0, r#"{"code":3,"signal":null}"#);
        while !matches!(rogue.next_request(), (0, HostMessage::ExitAck)) {}
        kill(&rogue.sandbox.first_process());
        client.until_ended();
        assert_eq!(rogue.sandbox.end().unwrap().containers[0].code, Some(3));
    }
}

#[test]
fn a_guest_of_an_unknown_version_is_refused_and_one_that_runs_is_left_alone() {
    let spawner = Spawner::start();
    let (mut rogue, epoch) = Rogue::begin(&spawner);
    acknowledge(&mut rogue, epoch, 0, false, "");
    let events = rogue.client.until_ended();
    let Some(ShimEvent::LaunchFailed { message }) = events.last() else { panic!("{events:?}") };
    assert!(message.contains("0.0.7") && message.contains("version"), "{message}");

    let (mut rogue, epoch) = Rogue::begin(&spawner);
    acknowledge(&mut rogue, epoch, 1, false, "");
    rogue.say(0, GuestMessage::Started(Started { pid: 5 }));
    rogue.client.until_started();
    rogue.sandbox.kill_shim();
    let _client = spawner.request(&rogue.sandbox.directory, true);
    let epoch = rogue.hello();
    acknowledge(&mut rogue, epoch, 2, true, "");
    let request = ShimRequest::Exec { container: "main".into(), process: shell("true") };
    let refused = loop {
        // Until the answer is read, what is said is that it does not answer.
        match rogue.sandbox.connect().request(&request) {
            ShimReply::Refused { message } if message.contains("does not answer") => {}
            reply => break reply,
        }
    };
    let told = matches!(&refused, ShimReply::Refused { message } if message.contains("0.0.7"));
    assert!(told, "{refused:?}");
    let first = rogue.sandbox.first_process();
    assert_eq!(first.state().unwrap(), atoll_sys::process::ProcessState::Running);
}
