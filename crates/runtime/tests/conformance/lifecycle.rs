//! Beginning, running, ending.

use std::time::Instant;

use atoll_wire::record::ExitReason;
use atoll_wire::shim::ShimEvent;

use crate::bench::{Bench, command};

pub(crate) async fn lifecycle(bench: &mut Bench) {
    let before = atoll_sys::clock::monotonic_micros();
    let mut running = bench.start("echo up; sleep 1000").await;
    let marks: Vec<(&str, u64)> = running
        .seen
        .iter()
        .map(|event| match event {
            ShimEvent::Spawned { at_monotonic_micros } => ("spawned", *at_monotonic_micros),
            ShimEvent::Isolated { at_monotonic_micros, .. } => ("isolated", *at_monotonic_micros),
            ShimEvent::Started { at_monotonic_micros, .. } => ("started", *at_monotonic_micros),
            other => panic!("unexpected before the start: {other:?}"),
        })
        .collect();
    let names: Vec<&str> = marks.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["spawned", "isolated", "started"]);
    assert!(before <= marks[0].1 && marks.is_sorted_by_key(|(_, at)| *at), "{before} {marks:?}");
    assert_eq!(bench.runtime.inventory().await.unwrap(), [running.uid.clone()]);
    running.sandbox.stop(10_000).await.unwrap();
    let exit = running.exit("main").await;
    assert_eq!((exit.reason, exit.signal), (ExitReason::Stopped, Some(15)), "{exit:?}");
    assert!(exit.finished_at_unix_micros.is_some());
    running.ended().await;
    bench.runtime.destroy(&running.uid).await.unwrap();
    bench.runtime.destroy(&running.uid).await.unwrap();
    assert!(bench.runtime.inventory().await.unwrap().is_empty(), "destroyed is gone");
    assert!(!bench.directory(&running.uid).exists());
}

pub(crate) async fn exit_codes(bench: &mut Bench) {
    let cases = [
        ("exit 0", Some(0), None, ExitReason::Completed),
        ("exit 7", Some(7), None, ExitReason::Error),
        ("exit 255", Some(255), None, ExitReason::Error),
        ("kill -9 $$", None, Some(9), ExitReason::Error),
        ("kill -15 $$", None, Some(15), ExitReason::Error),
    ];
    for (script, code, signal, reason) in cases {
        let mut running = bench.launch(bench.plan(script)).await;
        let exit = running.exit("main").await;
        assert_eq!((exit.code, exit.signal, exit.reason), (code, signal, reason), "{script}");
        running.ended().await;
        bench.runtime.destroy(&running.uid).await.unwrap();
    }
}

pub(crate) async fn command_not_found(bench: &mut Bench) {
    let mut plan = bench.plan("");
    plan.containers[0].process = command(&["no-such-program"]);
    let mut running = bench.launch(plan).await;
    let exit = running.exit("main").await;
    assert_eq!((exit.code, exit.reason), (Some(127), ExitReason::StartFailed), "{exit:?}");
    assert!(exit.message.contains("no-such-program"), "{:?} names it", exit.message);
    running.ended().await;
    let started = |event: &ShimEvent| matches!(event, ShimEvent::Started { .. });
    assert!(!running.seen.iter().any(started), "it never was started");
}

pub(crate) async fn stop_with_grace(bench: &mut Bench) {
    const GRACE_MILLIS: u64 = 400;
    let mut running = bench.start("trap '' TERM; sleep 1000").await;
    // The trap is set a moment after the start.
    let ready = "sleep 0.2";
    assert_eq!(running.script(ready).await.code(), Some(0));
    let asked = Instant::now();
    running.sandbox.stop(GRACE_MILLIS).await.unwrap();
    let exit = running.exit("main").await;
    assert_eq!((exit.reason, exit.signal), (ExitReason::Stopped, Some(9)), "{exit:?}");
    let took = asked.elapsed().as_millis();
    assert!(took >= u128::from(GRACE_MILLIS), "killed after {took} ms, before its time was over");
    running.ended().await;
}

pub(crate) async fn containers_end_apart(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers.push(bench.container("short", "exit 3"));
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let exit = running.exit("short").await;
    assert_eq!((exit.code, exit.reason), (Some(3), ExitReason::Error));
    let outcome = running.script("echo still here").await;
    assert_eq!(outcome.text(), "still here\n", "the other container goes on");
    assert!(!running.seen.contains(&ShimEvent::Ended));
    running.sandbox.stop(0).await.unwrap();
    let exit = running.exit("main").await;
    assert_eq!(exit.reason, ExitReason::Stopped);
    running.ended().await;
}

pub(crate) async fn containers_share(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers
        .push(bench.container("other", "while :; do echo from the other | nc -l -p 8080; done"));
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    running.started("other").await;
    let hostname = running.script("hostname").await;
    assert_eq!(hostname.text(), "conformance\n");
    assert_eq!(running.exec("other", command(&["hostname"]), b"").await.text(), "conformance\n");
    let written = running.script("echo shared > /dev/shm/note").await;
    assert_eq!(written.code(), Some(0), "{}", written.errors());
    let read = running.exec("other", command(&["cat", "/dev/shm/note"]), b"").await;
    assert_eq!(read.text(), "shared\n", "/dev/shm is one: {}", read.errors());
    let asked =
        running.script("for i in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 8080 && exit 0; usleep 100000; done; exit 1").await;
    assert_eq!(asked.text(), "from the other\n", "loopback is one: {}", asked.errors());
    let roots = running.script("touch /mine").await;
    assert_eq!(roots.code(), Some(0));
    let other = running.exec("other", command(&["ls", "/mine"]), b"").await;
    assert_ne!(other.code(), Some(0), "file systems are two");
}
