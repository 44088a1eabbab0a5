//! A container that is held starts when it is told to, once, whoever dies meanwhile.

use atoll_runtime::RuntimeError;
use atoll_wire::record::ExitReason;
use atoll_wire::shim::{SandboxPlan, ShimEvent};

use crate::bench::Bench;
use crate::recovery::{adopt_running, kill_shim};

/// Notes that it was started where no shim that is killed can lose it: output may be lost with one, and is then marked as a gap.
const WEB: &str = "echo begun >>/tmp/begun; sleep 1000";

/// `web` is held beside `main`.
fn held(bench: &Bench) -> SandboxPlan {
    let mut plan = bench.plan("sleep 1000");
    plan.containers.push(bench.container("web", WEB));
    plan.containers[1].held = true;
    plan
}

pub(crate) async fn held_container(bench: &mut Bench) {
    let mut running = bench.launch(held(bench)).await;
    running.started("main").await;
    let uid = running.uid.clone();
    let refused = running.sandbox.exec("web", crate::bench::shell("true")).await;
    assert!(matches!(refused, Err(RuntimeError::Refused { .. })), "nothing runs in it yet");
    assert_eq!(running.script("echo here").await.text(), "here\n", "its neighbour runs");

    kill_shim(bench, &uid).await;
    running.closed().await;
    let begun = |event: &ShimEvent| matches!(event, ShimEvent::Started { container, .. } if container == "web");
    assert!(!running.seen.iter().any(begun), "nobody asked for it");
    let (again, state) = adopt_running(bench, &uid).await;
    assert_eq!(state.containers[1].started_at_unix_micros, None, "nobody asked for it yet");
    again.sandbox.start_container("web").await.unwrap();
    // What was promised is remembered, whether the command had begun or not.
    kill_shim(bench, &uid).await;
    let (mut last, state) = adopt_running(bench, &uid).await;
    if state.containers[1].started_at_unix_micros.is_none() {
        last.started("web").await;
    }
    last.sandbox.start_container("web").await.unwrap();
    assert_eq!(last.exec("web", crate::bench::shell("echo there"), b"").await.text(), "there\n");
    if bench.sim.is_none() {
        let look = "until [ -s /tmp/begun ]; do sleep 0.05; done; cat /tmp/begun";
        let begun = last.exec("web", crate::bench::shell(look), b"").await.text();
        assert_eq!(begun, "begun\n", "it was started once");
    }
    last.sandbox.stop(5_000).await.unwrap();
    for name in ["main", "web"] {
        assert_eq!(last.exit(name).await.reason, ExitReason::Stopped, "{name}");
    }
    last.ended().await;
}

pub(crate) async fn held_container_stopped(bench: &mut Bench) {
    let mut running = bench.launch(held(bench)).await;
    running.started("main").await;
    // Longer than the case may take: nothing runs in `web` that could use it.
    running.sandbox.stop(600_000).await.unwrap();
    for name in ["web", "main"] {
        assert_eq!(running.exit(name).await.reason, ExitReason::Stopped, "{name}");
    }
    running.ended().await;
}
