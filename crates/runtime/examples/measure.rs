//! Measures class `container` on this host without server and store: how long a launch takes and where, an exec, and what an idle sandbox
//! costs in memory beyond its workload. A benchmark: it prints and judges nothing.
//!
//! ```text
//! measure ROOT_FILE_SYSTEM [LAUNCHES]     a directory with /bin/true and /bin/sleep; 100 launches by default. As root.
//! ```
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_runtime::disk::DiskChoice;
use atoll_runtime::shim::{PoolSizes, ShimHost, ShimHostConfig, ShimRuntime};
use atoll_runtime::{EventReceiver, Runtime, Sandbox, container_host};
use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::clock::monotonic_micros;
use atoll_wire::guest::{ProcessSpec, UserIds};
use atoll_wire::record::ShimRecord;
use atoll_wire::shim::{ContainerLimits, ContainerPlan, Init, SandboxPlan, ShimEvent};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// Sandboxes whose memory is taken: enough for what they share to count little.
const IDLE: usize = 20;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let layer =
        PathBuf::from(arguments.next().ok_or("usage: measure ROOT_FILE_SYSTEM [LAUNCHES]")?);
    let layer = layer.canonicalize()?;
    let launches = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let data = tempfile::tempdir()?;
    let detail = container_host::report(data.path(), DiskChoice::Auto).container()?;
    println!("class container: {detail}");
    let host = ShimHost::open(ShimHostConfig {
        data_dir: data.path().to_owned(),
        guest_program: atoll_programs::GUEST,
        shim_program: atoll_programs::SHIM,
        spawners: None,
        pools: PoolSizes::default(),
        network: None,
        keeper_program: std::path::PathBuf::new(),
        disks: DiskChoice::Auto,
    })?;
    let runtime = ShimRuntime::container(host, detail);
    let executor = tokio::runtime::Runtime::new()?;
    let measured = executor.block_on(async {
        runtime.prewarm(128 * MIB).await;
        // The pools fill.
        tokio::time::sleep(Duration::from_secs(2)).await;
        measure_launches(&runtime, &layer, launches).await?;
        measure_idle(&runtime, &layer, data.path()).await
    });
    executor.block_on(async {
        for uid in runtime.inventory().await? {
            runtime.destroy(&uid).await?;
        }
        runtime.shutdown().await;
        measured
    })
}

async fn measure_launches(runtime: &ShimRuntime, layer: &Path, count: usize) -> Outcome<()> {
    let names =
        ["prepare", "spawn", "sandbox", "command", "launch to started", "exec of true", "destroy"];
    let mut columns: Vec<Vec<u64>> = names.iter().map(|_| Vec::new()).collect();
    for number in 0..count {
        let begun = monotonic_micros();
        let (sandbox, events) = runtime.launch(plan(number, layer)).await?;
        let prepared = sandbox.prepared_at_monotonic_micros().unwrap_or(begun);
        let marks = marks(events).await?;
        let exec_begun = Instant::now();
        run_true(&*sandbox).await?;
        let exec = exec_begun.elapsed();
        let destroy_begun = Instant::now();
        runtime.destroy(sandbox.uid()).await?;
        let [spawned, isolated, started] = marks;
        let figures = [
            prepared - begun,
            spawned.saturating_sub(prepared),
            isolated - spawned,
            started - isolated,
            started - begun,
            u64::try_from(exec.as_micros())?,
            u64::try_from(destroy_begun.elapsed().as_micros())?,
        ];
        for (column, figure) in columns.iter_mut().zip(figures) {
            column.push(figure);
        }
    }
    println!("{count} launches, microseconds {:>10} {:>8} {:>8} {:>8}", "p50", "p95", "p99", "max");
    for (name, column) in names.iter().zip(&mut columns) {
        column.sort_unstable();
        let at = |part: usize| column[(column.len() - 1) * part / 100];
        println!("  {name:<26} {:>8} {:>8} {:>8} {:>8}", at(50), at(95), at(99), at(100));
    }
    Ok(())
}

async fn marks(mut events: EventReceiver) -> Outcome<[u64; 3]> {
    let mut marks = [0; 3];
    while let Some(event) = events.recv().await {
        match event {
            ShimEvent::Spawned { at_monotonic_micros } => marks[0] = at_monotonic_micros,
            ShimEvent::Isolated { at_monotonic_micros, .. } => marks[1] = at_monotonic_micros,
            ShimEvent::Started { at_monotonic_micros, .. } => {
                marks[2] = at_monotonic_micros;
                return Ok(marks);
            }
            other => return Err(format!("unexpected: {other:?}").into()),
        }
    }
    Err("the events ended".into())
}

async fn run_true(sandbox: &dyn Sandbox) -> Outcome<()> {
    let mut stream = sandbox.exec("main", process(&["true"])).await?;
    let mut last = None;
    while let Some(told) = stream.output.recv().await {
        last = Some(told);
    }
    match last {
        Some(atoll_runtime::ProcessOutput::Exited(exited)) if exited.code == Some(0) => Ok(()),
        other => Err(format!("true ended with {other:?}").into()),
    }
}

/// What an idle sandbox costs: shim and guest, by their proportional share (what all of them share counts little for each) and by what is
/// theirs alone.
async fn measure_idle(runtime: &ShimRuntime, layer: &Path, data: &Path) -> Outcome<()> {
    let mut running: Vec<(Arc<dyn Sandbox>, EventReceiver)> = Vec::new();
    for number in 0..IDLE {
        let (sandbox, mut events) = runtime.launch(plan(1_000_000 + number, layer)).await?;
        while !matches!(events.recv().await, Some(ShimEvent::Started { .. }) | None) {}
        running.push((sandbox, events));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut sums = [[0_u64; 2]; 2];
    for (sandbox, _) in &running {
        let path = data.join("sandboxes").join(sandbox.uid()).join("shim.json");
        let record: ShimRecord = serde_json::from_slice(&fs::read(path)?)?;
        let guest = record.containers.first().ok_or("no container is recorded")?.init.pid;
        for (sum, pid) in sums.iter_mut().zip([record.shim.pid, guest]) {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum[0] += kib(&rollup, "Pss:");
            sum[1] += kib(&rollup, "Private_Dirty:") + kib(&rollup, "Private_Clean:");
        }
    }
    println!("memory of an idle sandbox, KiB, mean of {IDLE}:");
    for (name, [pss, private]) in ["shim", "guest"].iter().zip(sums) {
        let count = IDLE as u64;
        println!(
            "  {name:<6} proportional share {:>6}   its alone {:>6}",
            pss / count,
            private / count
        );
    }
    let own = fs::read_to_string("/proc/self/status")?;
    println!("  this process, with {IDLE} sandboxes: resident {} KiB", kib(&own, "VmRSS:"));
    Ok(())
}

fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn plan(number: usize, layer: &Path) -> SandboxPlan {
    SandboxPlan {
        uid: format!("{number:016x}"),
        hostname: "measure".into(),
        containers: vec![ContainerPlan {
            name: "main".into(),
            layers: vec![layer.to_owned()],
            read_only_root: false,
            disk_bytes: 128 * MIB,
            log_bytes: 8 * MIB,
            process: process(&["sleep", "1000"]),
            init: Init::Guest,
            limits: ContainerLimits { cpu_millis: 1000, memory_bytes: 256 * MIB, pids: 256 },
            tmpfs: Vec::new(),
            volume_mounts: Vec::new(),
            stop_signal: 15,
            await_attach: false,
            held: false,
        }],
        volumes: Vec::new(),
        shm_bytes: 64 * MIB,
        boost_millis: 0,
        network: atoll_wire::shim::NetworkPlan::Loopback,
        grants: Vec::new(),
        ports: Vec::new(),
    }
}

fn process(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        working_directory: "/".into(),
        make_working_directory: false,
        user: UserIds::default(),
        capabilities: CapabilitySet::container_default().mask(),
        no_new_privileges: true,
        stdin: false,
        terminal: None,
        umask: 0o022,
        oom_score_adj: 100,
        open_files: None,
    }
}
