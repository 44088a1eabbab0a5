//! Limits hold, and what ends a container because of one says so.

use std::time::Duration;

use atoll_runtime::RuntimeClass;
use atoll_wire::guest::SignalRequest;
use atoll_wire::log::{LogRecord, LogStream};
use atoll_wire::record::ExitReason;
use atoll_wire::shim::ShimEvent;

use crate::bench::{Bench, MIB, command};

pub(crate) async fn memory_limit(bench: &mut Bench) {
    let mut plan = bench.plan("");
    plan.containers[0].limits.memory_bytes = 64 * MIB;
    // Keeps a line that never ends.
    plan.containers[0].process = command(&["tail", "/dev/zero"]);
    let mut running = bench.launch(plan).await;
    let exit = running.exit("main").await;
    assert_eq!(exit.reason, ExitReason::OutOfMemory, "{exit:?}");
    running.ended().await;
}

pub(crate) async fn cpu_limit(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].limits.cpu_millis = 200;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let busy = "(while :; do :; done) & (while :; do :; done) & sleep 2; kill -9 $! %1 2>/dev/null; exit 0";
    let group = bench.cgroups().unwrap().find(&running.uid, None).unwrap();
    let used = || group.stats().unwrap().cpu_usage_us.unwrap();
    let (before, begun) = (used(), std::time::Instant::now());
    running.script(busy).await;
    let (after, took) = (used(), begun.elapsed());
    let share = (after - before) as f64 / took.as_micros() as f64;
    // Two loops would use two cores; a quota period may be overrun at both ends.
    assert!(share < 0.4, "used {share:.2} cores, where 0.2 are allowed");
    assert!(share > 0.05, "used {share:.2} cores: the loops did not run");
}

pub(crate) async fn pids_limit(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].limits.pids = 30;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let bomb =
        "i=0; while [ $i -lt 100 ]; do sleep 20 & i=$((i+1)); done 2>/dev/null; echo made; exit 0";
    let outcome = running.script(bomb).await;
    // EAGAIN for the shell, or an end with its reason: in both cases no more than these live.
    // The workload's own, and the few that atoll has in a container: guest, a helper.
    let at_most = 30 + 3;
    let live = match running.sandbox.processes("main").await {
        Ok(processes) => processes.len(),
        Err(_) => {
            assert_eq!(running.exit("main").await.reason, ExitReason::PidsLimit);
            0
        }
    };
    assert!(live <= at_most, "{live} processes live, with a limit of 30: {outcome:?}");
    // Many that fork at once, and fork again whatever became of the others.
    let mut plan = bench.plan("(bomb() { bomb | bomb & }; bomb) 2>/dev/null & exec sleep 1000");
    plan.containers[0].limits.pids = 30;
    let mut bombed = bench.launch(plan).await;
    bombed.started("main").await;
    for _ in 0..10 {
        let live = bombed.sandbox.processes("main").await.unwrap().len();
        assert!(live <= at_most, "{live} processes of a fork bomb live, with a limit of 30");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bombed.sandbox.stop(0).await.unwrap();
    assert_eq!(bombed.exit("main").await.reason, ExitReason::Stopped);
    // The rest of the host, and other sandboxes, are not concerned.
    let mut other = bench.launch(bench.plan("exit 0")).await;
    assert_eq!(other.exit("main").await.reason, ExitReason::Completed);
}

pub(crate) async fn disk_limit(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    // Less memory than disk: what is written must not be charged to it.
    plan.containers[0].disk_bytes = 128 * MIB;
    plan.containers[0].limits.memory_bytes = 64 * MIB;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let fits = running.script("dd if=/dev/zero of=/big bs=1M count=90 && stat -c %s /big").await;
    assert_eq!(fits.text(), "94371840\n", "{}", fits.errors());
    let full = running.script("dd if=/dev/zero of=/tmp/more bs=1M count=90").await;
    assert_ne!(full.code(), Some(0), "root and /tmp share one disk of 128 MiB");
    assert!(full.errors().contains("No space left"), "{}", full.errors());
    let after = running.script("rm /big /tmp/more && echo room > /again && cat /again").await;
    assert_eq!(after.text(), "room\n", "a full disk harms nobody: {}", after.errors());
}

/// What a disk holds is told for each container, and is what its files take.
pub(crate) async fn disk_usage(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].disk_bytes = 64 * MIB;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let empty = running.sandbox.disk("main").await.unwrap().expect("it is counted");
    assert!(empty.limit_bytes > 48 * MIB && empty.limit_bytes <= 64 * MIB, "{empty:?}");
    assert!(empty.used_bytes < 4 * MIB, "{empty:?}");
    let written = running.script("dd if=/dev/zero of=/tmp/big bs=1M count=20 conv=fsync").await;
    assert_eq!(written.code(), Some(0), "{}", written.errors());
    let held = running.sandbox.disk("main").await.unwrap().expect("it is counted");
    let grown = held.used_bytes - empty.used_bytes;
    assert!((20 * MIB..24 * MIB).contains(&grown), "{held:?} after {empty:?}");
    assert_eq!(held.limit_bytes, empty.limit_bytes);
    assert!(running.sandbox.disk("other").await.is_err());
}

/// Files of no size fill a disk too.
pub(crate) async fn inode_limit(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].disk_bytes = 16 * MIB;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let fill = "mkdir /d; i=0; while : > /d/$i; do i=$((i+1)); done; echo never";
    let full = running.script(fill).await;
    assert_ne!(full.text(), "never\n");
    assert!(full.errors().contains("No space left"), "{}", full.errors());
    let tmp = running.script("mkdir /tmp/one").await;
    assert!(tmp.errors().contains("No space left"), "/tmp is the same disk: {}", tmp.errors());
    let after = running.script("rm -r /d && echo room > /again && cat /again").await;
    assert_eq!(after.text(), "room\n", "it is whole again: {}", after.errors());
    let mut other = bench.launch(bench.plan("echo x > /x && cat /x")).await;
    assert_eq!(other.exit("main").await.reason, ExitReason::Completed, "nobody else is concerned");
}

/// A file may be as large as it likes: what counts is what is in it.
pub(crate) async fn sparse_file(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].disk_bytes = 32 * MIB;
    plan.containers[0].limits.memory_bytes = 64 * MIB;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let sparse = "truncate -s 100G /huge && dd if=/dev/zero of=/huge bs=1M seek=100000 count=1 conv=notrunc 2>/dev/null; \
                  stat -c %s /huge; dd if=/dev/zero of=/more bs=1M count=16 2>/dev/null && rm /more && echo small";
    let ran = running.script(sparse).await;
    assert_eq!(ran.text(), "107374182400\nsmall\n", "{}", ran.errors());
    let full = running.script("dd if=/dev/zero of=/huge bs=1M count=90 conv=notrunc").await;
    assert!(full.errors().contains("No space left"), "{}", full.errors());
    let after = running.script("rm /huge && echo room > /again && cat /again").await;
    assert_eq!(after.text(), "room\n", "{}", after.errors());
}

/// Orphans are reaped by the first process; children that their own parent never reaps count as long as they are kept.
pub(crate) async fn zombies(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].limits.pids = 30;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let orphans = "i=0; while [ $i -lt 60 ]; do sh -c 'true & exit 0' || echo $i; i=$((i+1)); done; echo made";
    let ran = running.script(orphans).await;
    assert_eq!(ran.text(), "made\n", "{}", ran.errors());
    // The shell becomes a program that knows nothing of the children it has, before they die.
    let keeps = "i=0; while [ $i -lt 20 ]; do sleep 2 & i=$((i+1)); done; exec sleep 1000";
    let keeper = command(&["sh", "-c", keeps]);
    let keeper = running.sandbox.exec("main", keeper).await.unwrap();
    let more = "until [ $(grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l) = 20 ]; do sleep 0.05; done; echo dead; \
                i=0; while [ $i -lt 15 ]; do sleep 20 & i=$((i+1)); done; echo made; exit 0";
    let ran = running.script(more).await;
    assert_eq!(ran.text(), "dead\n", "20 dead and 15 alive, with a limit of 30");
    assert!(ran.errors().contains("fork"), "{}", ran.errors());
    drop(keeper);
    running.sandbox.signal("main", SignalRequest { signal: 9, everyone: true }).await.unwrap();
    assert_eq!(running.exit("main").await.signal, Some(9), "nobody is left, dead or alive");
}

pub(crate) async fn shm_limit(bench: &mut Bench) {
    let running = bench.start("sleep 1000").await;
    let fits = running.script("dd if=/dev/zero of=/dev/shm/a bs=1M count=3").await;
    assert_eq!(fits.code(), Some(0), "{}", fits.errors());
    let large = running.script("dd if=/dev/zero of=/dev/shm/b bs=1M count=8").await;
    assert_ne!(large.code(), Some(0), "/dev/shm has 4 MiB");
    assert!(large.errors().contains("No space left"), "{}", large.errors());
}

pub(crate) async fn log_limit(bench: &mut Bench) {
    let lines = if bench.class == RuntimeClass::Gvisor { 60_000 } else { 100_000 };
    let mut plan = bench.plan(&format!("seq 1 {lines}; echo last; sleep 1000"));
    plan.containers[0].log_bytes = 256 * 1024;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let path = running.sandbox.log_path("main").unwrap();
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    let records = loop {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let records: Vec<LogRecord> =
            bytes.split(|byte| *byte == b'\n').filter_map(LogRecord::parse).collect();
        if records.iter().any(|record| record.text == b"last") {
            break records;
        }
        assert!(std::time::Instant::now() < deadline, "the last line never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(records.iter().all(|record| record.stream != LogStream::Stderr));
    let older = path.with_extension("log.1");
    let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let kept = size(&path) + size(&older);
    assert!(kept <= 256 * 1024, "{kept} bytes are kept of 256 KiB");
    assert!(kept > 64 * 1024, "{kept} bytes are all that is kept");
    running.sandbox.stop(0).await.unwrap();
    running.ended().await;
    let dropped = running.seen.iter().rev().find_map(|event| match event {
        ShimEvent::LogDropped { dropped_bytes, .. } => Some(*dropped_bytes),
        _ => None,
    });
    assert!(
        dropped.is_some_and(|bytes| bytes > 0),
        "what rotation dropped is counted: {:?}",
        running.seen
    );
}
