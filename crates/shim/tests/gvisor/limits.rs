//! Nothing in a Sentry is without a bound, and the reason of an end is told.

use std::fs::File;

use atoll_sys::capabilities::number;
use atoll_wire::shim::TmpfsPlan;

use crate::harness::{Sandbox, container, read_until, runsc, wait};

/// Writes a file until it is refused and says how many MiB went in.
fn fill(path: &str) -> String {
    format!("dd if=/dev/zero of={path} bs=64k 2>&1 | busybox grep -o 'No space left on device'")
}

#[test]
fn the_disk_bounds_root_and_tmp_with_enospc_and_is_not_memory() {
    let Some(runsc) = runsc("the_disk_bounds_root_and_tmp_with_enospc_and_is_not_memory") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        // As large as the memory limit: were it memory, the sandbox would be killed.
        let script = format!("{}; busybox rm /big; {}; echo done", fill("/big"), fill("/tmp/big"));
        let mut one = container("main", layer, &script);
        one.disk_bytes = 128 << 20;
        one.limits.memory_bytes = 16 << 20;
        one.limits.pids = 8;
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    let (output, _) = sandbox.finish(&begun);
    assert_eq!(output, "No space left on device\nNo space left on device\ndone\n");
    assert!(!sandbox.engine.evidence(0).out_of_memory);
}

#[test]
fn memory_file_systems_have_their_size() {
    let Some(runsc) = runsc("memory_file_systems_have_their_size") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let script = format!(
            "{}; busybox wc -c < /dev/shm/big; {}; busybox wc -c < /scratch/big; echo x > /fixed/x || echo refused; \
             busybox stat -c %a /scratch",
            fill("/dev/shm/big"),
            fill("/scratch/big")
        );
        let mut one = container("main", layer, &script);
        let tmpfs = |path: &str, read_only| TmpfsPlan {
            path: path.into(),
            size_bytes: 1 << 20,
            mode: 0o750,
            read_only,
            no_exec: true,
        };
        one.tmpfs = vec![tmpfs("/scratch", false), tmpfs("/fixed", true)];
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    let (output, _) = sandbox.finish(&begun);
    let full = "No space left on device";
    assert!(output.starts_with(&format!("{full}\n4194304\n{full}\n1048576\n")), "{output}");
    assert!(output.ends_with("refused\n750\n"), "{output}");
}

#[test]
fn too_much_memory_is_told_as_out_of_memory() {
    let Some(runsc) = runsc("too_much_memory_is_told_as_out_of_memory") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let mut one = container("main", layer, "busybox sort /dev/zero");
        one.limits.memory_bytes = 32 << 20;
        one.limits.pids = 8;
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    wait(&begun);
    let evidence = sandbox.engine.evidence(0);
    assert!(evidence.out_of_memory, "{evidence:?}");
}

#[test]
fn an_images_own_first_process_is_refused_more_than_its_pids() {
    let Some(runsc) = runsc("an_images_own_first_process_is_refused_more_than_its_pids") else {
        return;
    };
    for uid in [0, 1000] {
        let mut sandbox = Sandbox::prepare(runsc.clone(), |layer| {
            let script = "i=0; while [ $i -lt 20 ]; do sleep 100 & i=$((i+1)); done; echo all";
            let mut one = container("main", layer, script);
            one.process.user.uid = uid;
            one.limits.pids = 8;
            vec![one]
        });
        let (begun, _input) = sandbox.begin(0);
        let (output, exit) = sandbox.finish(&begun);
        assert!(output.contains("fork") && !output.contains("all"), "{uid}: {output} {exit:?}");
        assert!(!sandbox.engine.evidence(0).host_pids_backstop);
    }
}

#[test]
fn the_hosts_backstop_for_threads_is_told_as_such() {
    let Some(runsc) = runsc("the_hosts_backstop_for_threads_is_told_as_such") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        // An image's own first process has no guest that counts, and this one may pass over limits: only the backstop is left.
        let script = "while :; do sleep 100 & done";
        let mut one = container("main", layer, script);
        one.process.capabilities |= ["SYS_ADMIN", "SYS_RESOURCE"]
            .into_iter()
            .filter_map(number)
            .fold(0, |mask, one| mask | 1 << one);
        one.limits.pids = 8;
        one.limits.memory_bytes = 2 << 30;
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    wait(&begun);
    let evidence = sandbox.engine.evidence(0);
    assert!(evidence.host_pids_backstop && !evidence.out_of_memory, "{evidence:?}");
}

#[test]
fn the_cpu_quota_holds_once_the_boost_has_ended() {
    let Some(runsc) = runsc("the_cpu_quota_holds_once_the_boost_has_ended") else { return };
    let mut sandbox = Sandbox::prepare_with(
        runsc,
        |layer| {
            let mut one = container("main", layer, "echo up; read stop");
            one.limits.cpu_millis = 50;
            vec![one]
        },
        |launch| launch.plan.boost_millis = 10_000,
    );
    let (streams, input, mut output): (_, File, File) = crate::harness::streams();
    let begun = sandbox.engine.begin(0, streams).unwrap();
    read_until(&mut output, |text| text.contains("up\n"));
    let quota = |sandbox: &Sandbox| sandbox.group_file("cpu", &["cpu.cfs_quota_us", "cpu.max"]);
    let before = quota(&sandbox);
    assert!(before.starts_with("-1") || before.starts_with("max"), "lifted at first: {before}");
    sandbox.engine.end_boost().unwrap();
    assert!(quota(&sandbox).starts_with("5000"), "50 thousandths of 100 ms: {}", quota(&sandbox));
    drop(input);
    wait(&begun);
}
