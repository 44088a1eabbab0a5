//! Many short lives leave nothing.

use std::fs;

use atoll_runtime::RuntimeClass;

use crate::bench::Bench;

/// What could pile up in this process and on this host for this bench.
#[derive(Debug, PartialEq, Eq)]
struct Inventory {
    sandboxes: Vec<String>,
    directories: usize,
    pool_files: usize,
    loop_devices: usize,
    mounts: usize,
    processes: usize,
}

fn take(bench: &Bench, sandboxes: Vec<String>) -> Inventory {
    let count = |name: &str| fs::read_dir(bench.data.path().join(name)).map_or(0, Iterator::count);
    // Class sim has no pool.
    let parts = fs::read_dir(bench.data.path().join("run/pool")).into_iter().flatten();
    let parts = parts.map(|part| format!("run/pool/{}", part.unwrap().file_name().display()));
    Inventory {
        sandboxes,
        directories: count("sandboxes") + count("run/trash") + count("quarantine") + count("runsc"),
        pool_files: parts.map(|part| count(&part)).sum(),
        loop_devices: bench.loop_devices().len(),
        mounts: bench.mounts().len(),
        processes: processes_of(bench),
    }
}

/// Processes that run this bench's programs or name its directory.
fn processes_of(bench: &Bench) -> usize {
    let place = bench.data.path().to_string_lossy().into_owned();
    let of_bench = |entry: fs::DirEntry| {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let link = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        link.starts_with(bench.data.path()) || line.contains(&place)
    };
    fs::read_dir("/proc").unwrap().flatten().map(of_bench).filter(|it| *it).count()
}

pub(crate) async fn quick_exits(bench: &mut Bench) {
    let count = match bench.class {
        RuntimeClass::Gvisor => 20,
        // An emulated machine: its host has run all of them.
        RuntimeClass::Container if std::env::var_os("ATOLL_TEST_SLOW_MACHINE").is_some() => 50,
        RuntimeClass::Container | RuntimeClass::Sim => 200,
    };
    let one = async |bench: &Bench, code: usize| {
        let mut running = bench.launch(bench.plan(&format!("exit {}", code % 100))).await;
        let exit = running.exit("main").await;
        assert_eq!(exit.code, i32::try_from(code % 100).ok());
        running.ended().await;
        bench.runtime.destroy(&running.uid).await.unwrap();
    };
    for code in 0..3 {
        one(bench, code).await;
    }
    let settled = async |bench: &Bench| {
        // The pools refill behind, and a shim that has said its last word is about to end.
        let mut last = take(bench, bench.runtime.inventory().await.unwrap());
        for _ in 0..200 {
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            let next = take(bench, bench.runtime.inventory().await.unwrap());
            if next == last && next.directories == 0 {
                return next;
            }
            last = next;
        }
        last
    };
    let before = settled(bench).await;
    assert!(before.sandboxes.is_empty() && before.directories == 0, "{before:?}");
    for code in 0..count {
        one(bench, code).await;
    }
    assert_eq!(settled(bench).await, before, "{count} sandboxes came and went");
}
