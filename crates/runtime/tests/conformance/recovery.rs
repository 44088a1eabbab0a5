//! Anybody may die at any time: what runs goes on, what ended is known, what is half-made is removed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_runtime::{Adoption, RuntimeError};
use atoll_sys::process::{ProcessIdentity, send_signal};
use atoll_wire::record::{EndRecord, ExitReason, ShimRecord};
use atoll_wire::shim::ShimState;
use rustix::process::Signal;

use crate::bench::{Bench, PATIENCE};
use crate::running::Running;

fn shim_record(directory: &Path) -> ShimRecord {
    let bytes =
        fs::read(directory.join("shim.json")).expect("a shim of a started sandbox has its record");
    serde_json::from_slice(&bytes).unwrap()
}

/// Kills exactly this process and waits until it is gone.
async fn kill_process(pid: i32, start_time_ticks: u64) {
    use std::os::fd::AsFd;
    let boot_id = atoll_sys::process::boot_id().unwrap();
    let identity = ProcessIdentity { pid, start_time_ticks, boot_id };
    let Some(pidfd) = identity.open().unwrap() else { return };
    send_signal(pidfd.as_fd(), 9).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let patience = rustix::event::Timespec::try_from(PATIENCE).unwrap();
        let mut wait = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut wait, Some(&patience)).unwrap()
    });
    assert_eq!(ended.await.unwrap(), 1, "a killed process ends");
}

pub(crate) async fn kill_shim(bench: &Bench, uid: &str) {
    if let Some(sim) = &bench.sim {
        assert!(sim.lose_shim(uid));
        return;
    }
    let shim = shim_record(&bench.directory(uid)).shim;
    kill_process(shim.pid, shim.start_time_ticks).await;
}

pub(crate) async fn adopt_running(bench: &Bench, uid: &str) -> (Running, ShimState) {
    match bench.runtime.adopt(uid).await {
        Ok(Adoption::Running(sandbox, state, events)) => {
            (Running::new(uid.to_owned(), sandbox, events), state)
        }
        Ok(Adoption::Ended(end)) => panic!("it runs, and was taken for ended: {end:?}"),
        Ok(Adoption::Gone { reason }) => panic!("it runs, and was taken for gone: {reason}"),
        Ok(Adoption::Quarantined { reason, .. }) => panic!("it runs, and was set aside: {reason}"),
        Err(error) => panic!("it runs, and was not adopted: {error}"),
    }
}

/// Adopts until it has ended.
async fn adopt_ended(bench: &Bench, uid: &str) -> EndRecord {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bench.runtime.adopt(uid).await.unwrap() {
            Adoption::Ended(end) => return end,
            Adoption::Running(_, _, mut events) => while events.recv().await.is_some() {},
            Adoption::Gone { reason } => panic!("it ended, and was taken for gone: {reason}"),
            Adoption::Quarantined { reason, .. } => panic!("set aside: {reason}"),
        }
        assert!(Instant::now() < deadline, "its end was never recorded");
    }
}

pub(crate) async fn server_restarted(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    let pid = running.started("main").await;
    bench.restart().await;
    let (mut adopted, state) = adopt_running(bench, &running.uid).await;
    assert!(!state.adopted, "its shim lives");
    assert_eq!(state.containers[0].host_pid, Some(pid), "the same process");
    assert!(state.containers[0].started_at_unix_micros.is_some());
    assert_eq!(adopted.script("echo back").await.text(), "back\n");
    adopted.sandbox.stop(5_000).await.unwrap();
    assert_eq!(adopted.exit("main").await.reason, ExitReason::Stopped);
    adopted.ended().await;
}

pub(crate) async fn ended_while_away(bench: &mut Bench) {
    let running = bench.start("sleep 0.5; echo words; exit 5").await;
    let uid = running.uid.clone();
    drop(running);
    bench.restart().await;
    let end = adopt_ended(bench, &uid).await;
    let exit = &end.containers[0];
    assert_eq!((exit.code, exit.reason), (Some(5), ExitReason::Error), "{end:?}");
    if bench.sim.is_none() {
        let log = fs::read_to_string(bench.directory(&uid).join("logs/main.log")).unwrap();
        assert!(log.contains("words"), "its output is all there: {log:?}");
    }
    // Again, as often as one likes.
    assert_eq!(adopt_ended(bench, &uid).await, end);
}

/// Writes all the time: who writes must not be killed by the loss of its reader.
const CHATTY: &str = "while :; do echo tick; usleep 20000; done";

pub(crate) async fn shim_killed(bench: &mut Bench) {
    let script = if bench.sim.is_some() { "sleep 1000" } else { CHATTY };
    let mut running = bench.start(script).await;
    let pid = running.started("main").await;
    kill_shim(bench, &running.uid).await;
    running.closed().await;
    // Long enough for many lines without a reader.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut adopted, state) = adopt_running(bench, &running.uid).await;
    assert!(state.adopted, "another shim took over");
    assert_eq!(state.containers[0].host_pid, Some(pid), "the same process");
    assert_eq!(adopted.script("echo alive").await.text(), "alive\n");
    adopted.sandbox.stop(5_000).await.unwrap();
    let exit = adopted.exit("main").await;
    assert_eq!(exit.reason, ExitReason::Stopped, "{exit:?}");
    adopted.ended().await;
}

/// A guest that does not answer another shim: its state is not known, and is when it goes on.
pub(crate) async fn guest_silent(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    let pid = running.started("main").await;
    let init = shim_record(&bench.directory(&running.uid)).containers[0].init.clone();
    signal_process(init.pid, init.start_time_ticks, Signal::STOP);
    kill_shim(bench, &running.uid).await;
    running.closed().await;
    for _ in 0..2 {
        match bench.runtime.adopt(&running.uid).await {
            Err(RuntimeError::Unreachable { message, .. }) => {
                assert!(message.contains("does not answer"), "{message}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a state that nobody can know"),
        }
    }
    signal_process(init.pid, init.start_time_ticks, Signal::CONT);
    let deadline = Instant::now() + PATIENCE;
    while bench.runtime.adopt(&running.uid).await.is_err() {
        assert!(Instant::now() < deadline, "it goes on and is not adopted");
    }
    let (adopted, state) = adopt_running(bench, &running.uid).await;
    assert_eq!(state.containers[0].host_pid, Some(pid), "the same process");
    assert_eq!(adopted.script("echo alive").await.text(), "alive\n");
}

fn signal_process(pid: i32, start_time_ticks: u64, signal: Signal) {
    use std::os::fd::AsFd;
    let boot_id = atoll_sys::process::boot_id().unwrap();
    let pidfd = ProcessIdentity { pid, start_time_ticks, boot_id }.open().unwrap();
    send_signal(pidfd.expect("it runs").as_fd(), signal.as_raw()).unwrap();
}

pub(crate) async fn ended_without_shim(bench: &mut Bench) {
    let mut running = bench.start("sleep 1; exit 9").await;
    kill_shim(bench, &running.uid).await;
    running.closed().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let end = adopt_ended(bench, &running.uid).await;
    let exit = &end.containers[0];
    // The guest kept it; what nobody kept is unknown, never another code.
    assert_eq!((exit.code, exit.reason), (Some(9), ExitReason::Error), "{end:?}");
}

pub(crate) async fn guest_killed(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    if let Some(sim) = &bench.sim {
        assert!(sim.end_container(&running.uid, "main", ExitReason::GuestDied));
    } else {
        let init = shim_record(&bench.directory(&running.uid)).containers[0].init.clone();
        kill_process(init.pid, init.start_time_ticks).await;
    }
    let exit = running.exit("main").await;
    assert_eq!((exit.reason, exit.code), (ExitReason::GuestDied, None), "{exit:?}");
    running.ended().await;
}

pub(crate) async fn sentry_killed(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    let init = shim_record(&bench.directory(&running.uid)).containers[0].init.clone();
    kill_process(init.pid, init.start_time_ticks).await;
    let exit = running.exit("main").await;
    assert_eq!((exit.reason, exit.code), (ExitReason::SentryDied, None), "{exit:?}");
    running.ended().await;
}

pub(crate) async fn all_killed(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    kill_everything(bench, &running.uid).await;
    running.closed().await;
    bench.restart().await;
    match bench.runtime.adopt(&running.uid).await.unwrap() {
        Adoption::Gone { reason } => assert!(!reason.is_empty()),
        _ => panic!("nothing of it runs and nobody recorded its end"),
    }
    bench.runtime.destroy(&running.uid).await.unwrap();
    assert!(bench.runtime.inventory().await.unwrap().is_empty());
}

async fn kill_everything(bench: &Bench, uid: &str) {
    if let Some(sim) = &bench.sim {
        assert!(sim.lose_sandbox(uid, "killed by a test"));
        return;
    }
    kill_shim(bench, uid).await;
    let group = bench.cgroups().unwrap().find(uid, None).unwrap();
    tokio::task::spawn_blocking(move || {
        group.kill_all().unwrap();
        group.wait_empty(PATIENCE).unwrap();
    })
    .await
    .unwrap();
}

pub(crate) async fn damaged_directory(bench: &mut Bench) {
    let mut running = bench.start("sleep 1000").await;
    let other = bench.start("sleep 1000").await;
    if let Some(sim) = &bench.sim {
        assert!(sim.corrupt(&running.uid, "damaged by a test"));
    } else {
        kill_shim(bench, &running.uid).await;
        fs::write(bench.directory(&running.uid).join("launch.json"), "{\"version\":").unwrap();
    }
    running.closed().await;
    bench.restart().await;
    match bench.runtime.adopt(&running.uid).await.unwrap() {
        Adoption::Quarantined { directory, reason } => {
            assert!(!reason.is_empty());
            assert!(bench.sim.is_some() || directory.join("launch.json").exists(), "whole, aside");
        }
        _ => panic!("a damaged directory must be set aside"),
    }
    let left = bench.runtime.inventory().await.unwrap();
    assert_eq!(left, std::slice::from_ref(&other.uid), "nothing of it runs");
    let (adopted, _) = adopt_running(bench, &other.uid).await;
    assert_eq!(adopted.script("echo others go on").await.text(), "others go on\n");
}

pub(crate) async fn host_started_anew(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    kill_everything(bench, &running.uid).await;
    let path = bench.directory(&running.uid).join("shim.json");
    let boot_id = atoll_sys::process::boot_id().unwrap();
    let earlier = fs::read_to_string(&path).unwrap().replace(&boot_id, "an-earlier-boot");
    fs::write(&path, earlier).unwrap();
    bench.restart().await;
    match bench.runtime.adopt(&running.uid).await.unwrap() {
        Adoption::Gone { reason } => assert!(reason.contains("anew"), "{reason}"),
        _ => panic!("what ran before the host was started anew is gone"),
    }
}

pub(crate) async fn launch_given_up(bench: &mut Bench) {
    for micros in [0, 100, 500, 1000, 2000, 4000, 8000, 16_000] {
        let plan = bench.plan("sleep 1000");
        let launch = bench.runtime.launch(plan);
        // A handle that arrives in time is dropped: then the sandbox is its owner's to destroy.
        drop(tokio::time::timeout(Duration::from_micros(micros), launch).await);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = bench.runtime.inventory().await.unwrap();
        let mut unowned = Vec::new();
        for uid in left {
            match bench.runtime.adopt(&uid).await {
                // It arrived: it runs.
                Ok(Adoption::Running(..)) => bench.runtime.destroy(&uid).await.unwrap(),
                _ => unowned.push(uid),
            }
        }
        if unowned.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "given up, and still there: {unowned:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Who destroys what was given up need not wait for it: nothing of it comes afterwards.
    for micros in [0, 100, 1000, 4000] {
        let plan = bench.plan("sleep 1000");
        let uid = plan.uid.clone();
        let launch = bench.runtime.launch(plan);
        drop(tokio::time::timeout(Duration::from_micros(micros), launch).await);
        bench.runtime.destroy(&uid).await.unwrap();
        let left = bench.runtime.inventory().await.unwrap();
        assert!(left.is_empty(), "given up after {micros} µs, destroyed, and there: {left:?}");
    }
}

pub(crate) async fn destroyed_at_any_time(bench: &mut Bench) {
    for micros in [0, 500, 2000, 5000, 10_000, 50_000] {
        let running = bench.launch(bench.plan("sleep 1000")).await;
        tokio::time::sleep(Duration::from_micros(micros)).await;
        bench.runtime.destroy(&running.uid).await.unwrap();
        assert!(bench.runtime.inventory().await.unwrap().is_empty(), "after {micros} µs");
    }
    // Half a directory, and a group without one.
    let uid = crate::bench::new_uid();
    if bench.sim.is_none() {
        fs::create_dir_all(bench.directory(&uid).join("container.main")).unwrap();
        let root = bench.cgroups().unwrap();
        let orphan = crate::bench::new_uid();
        root.create(&orphan, Some("main")).unwrap();
        let mut known = bench.runtime.inventory().await.unwrap();
        known.sort();
        let mut expected = [uid.clone(), orphan.clone()];
        expected.sort();
        assert_eq!(known, expected, "half-made ones are seen");
        bench.runtime.destroy(&orphan).await.unwrap();
    }
    bench.runtime.destroy(&uid).await.unwrap();
    bench.runtime.destroy("../../etc").await.unwrap();
    assert!(bench.runtime.inventory().await.unwrap().is_empty());
}

pub(crate) async fn spawner_killed(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    for _ in 0..5 {
        for pid in bench.host.as_ref().unwrap().spawner_pids() {
            let identity = ProcessIdentity::of(pid).unwrap();
            if let Some(identity) = identity {
                kill_process(identity.pid, identity.start_time_ticks).await;
            }
        }
        let mut next = bench.launch(bench.plan("exit 6")).await;
        assert_eq!(next.exit("main").await.code, Some(6), "another spawner takes the request");
        next.ended().await;
        bench.runtime.destroy(&next.uid).await.unwrap();
    }
    assert_eq!(running.script("echo unharmed").await.text(), "unharmed\n");
}
