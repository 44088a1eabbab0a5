//! Ends, deaths, take-overs, and that nothing stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use atoll_shim::engine::Resources;
use atoll_sys::process::Exit;
use atoll_wire::record::{ContainerRecord, ProcessId, RECORD_VERSION, ShimRecord};

use crate::harness::{Sandbox, container, read_until, runsc, streams, wait};

#[test]
fn signals_reach_the_first_process_and_kill_ends_it() {
    let Some(runsc) = runsc("signals_reach_the_first_process_and_kill_ends_it") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let script = "trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done";
        vec![container("main", layer, script)]
    });
    let (streams, _input, mut output) = streams();
    let begun = sandbox.engine.begin(0, streams).unwrap();
    read_until(&mut output, |text| text.contains("up\n"));
    sandbox.engine.signal(0, 15).unwrap();
    read_until(&mut output, |text| text.contains("asked\n"));
    sandbox.engine.kill(0).unwrap();
    wait(&begun);
    assert_eq!(sandbox.engine.evidence(0).init_exit, Some(Exit::Signal(9)));
    sandbox.engine.kill(0).expect("killing what has ended is no error");
}

#[test]
fn a_killed_sentry_is_told_apart_from_an_exit() {
    let Some(runsc) = runsc("a_killed_sentry_is_told_apart_from_an_exit") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| vec![container("main", layer, "read stop")]);
    let (begun, _input) = sandbox.begin(0);
    let sentry = begun.init.open().unwrap().unwrap();
    atoll_sys::process::send_signal(std::os::fd::AsFd::as_fd(&sentry), 9).unwrap();
    wait(&begun);
    let evidence = sandbox.engine.evidence(0);
    assert!(evidence.sentry_died && !evidence.out_of_memory, "{evidence:?}");
}

#[test]
fn another_shim_takes_over_what_runs_and_removes_it() {
    let Some(runsc) = runsc("another_shim_takes_over_what_runs_and_removes_it") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| vec![container("main", layer, "read stop")]);
    let (begun, _input) = sandbox.begin(0);
    let record = ShimRecord {
        version: RECORD_VERSION,
        shim: id(&atoll_sys::process::ProcessIdentity::of_self().unwrap()),
        containers: vec![ContainerRecord {
            name: "main".into(),
            init: id(&begun.init),
            started_at_unix_micros: None,
            exit: None,
            released: false,
        }],
    };
    let mut successor = atoll_shim::gvisor::engine(&sandbox.launch, Resources::default()).unwrap();
    let taken = successor.adopt(&record).unwrap().remove(0).expect("it runs");
    assert_eq!(taken.init, begun.init);
    successor.kill(0).unwrap();
    wait(&taken);
    wait(&begun);
    assert!(successor.adopt(&record).unwrap().remove(0).is_none(), "it has ended");
    successor.remove().unwrap();
    // A successor is no parent: the first shim's children are init's to reap, here the first engine's.
    let children = std::mem::take(&mut sandbox.children);
    sandbox.assert_nothing_left();
    sandbox.children = children;
    sandbox.engine.remove().unwrap();
    sandbox.assert_nothing_left();
}

fn id(identity: &atoll_sys::process::ProcessIdentity) -> ProcessId {
    ProcessId {
        pid: identity.pid,
        start_time_ticks: identity.start_time_ticks,
        boot_id: identity.boot_id.clone(),
    }
}

#[test]
fn twenty_quick_exits_leave_nothing() {
    let Some(runsc) = runsc("twenty_quick_exits_leave_nothing") else { return };
    for round in 0..20 {
        let mut sandbox = Sandbox::prepare(runsc.clone(), |layer| {
            vec![container("main", layer, &format!("exit {round}"))]
        });
        let (begun, _input) = sandbox.begin(0);
        let (_, exit) = sandbox.finish(&begun);
        assert_eq!(exit, Exit::Code(round));
        sandbox.engine.remove().unwrap();
        sandbox.assert_nothing_left();
    }
}

#[test]
fn removal_in_the_middle_leaves_nothing_and_may_be_repeated() {
    let Some(runsc) = runsc("removal_in_the_middle_leaves_nothing_and_may_be_repeated") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        vec![container("main", layer, "while :; do sleep 1 & done")]
    });
    let (_begun, _input) = sandbox.begin(0);
    for _ in 0..2 {
        sandbox.engine.remove().unwrap();
        sandbox.assert_nothing_left();
    }
}

#[test]
fn what_runsc_says_reaches_the_user_when_a_start_fails() {
    let Some(runsc) = runsc("what_runsc_says_reaches_the_user_when_a_start_fails") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let mut one = container("main", layer, "");
        one.process.args = vec!["/bin/absent".into()];
        vec![one]
    });
    let (streams, _input, _output) = streams();
    let error = sandbox.engine.begin(0, streams).unwrap_err().to_string();
    assert!(error.contains("start container main") && error.contains("/bin/absent"), "{error}");
    sandbox.engine.remove().unwrap();
    sandbox.assert_nothing_left();
}

#[test]
fn a_missing_runsc_is_told_with_what_to_do() {
    let mut sandbox = Sandbox::prepare("/nonexistent/runsc".into(), |layer| {
        vec![container("main", layer, "true")]
    });
    let (streams, _input, _output) = streams();
    let error = sandbox.engine.begin(0, streams).unwrap_err().to_string();
    assert!(error.contains("install runsc"), "{error}");
}

#[test]
fn a_broken_runsc_is_told_with_its_code() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::write(&source, "#!/bin/sh\nexit 9\n").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    let broken = directory.path().join("runsc");
    // Written by another process: see ETXTBSY in execve(2).
    let copied = std::process::Command::new("cp").arg("-p").args([&source, &broken]).status();
    assert!(copied.unwrap().success());
    let mut sandbox = Sandbox::prepare(broken, |layer| vec![container("main", layer, "true")]);
    let (streams, _input, _output) = streams();
    let error = sandbox.engine.begin(0, streams).unwrap_err().to_string();
    assert!(error.contains("exited with code 9"), "{error}");
    sandbox.engine.remove().unwrap();
    sandbox.assert_nothing_left();
}
