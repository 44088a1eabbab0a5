//! What every backend of disks promises: one limit for root and /tmp that holds for each sandbox alone, is no memory, and goes with it.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use atoll_runtime::disk::DiskChoice;
use atoll_runtime::shim::ShimHost;
use atoll_runtime::{FoundVolume, RuntimeClass, VolumeDisks};
use atoll_sys::project_quota;
use atoll_wire::record::ExitReason;
use atoll_wire::shim::{DiskBackend, VolumeMountPlan, VolumePlan, VolumeSource};

use crate::bench::{Bench, MIB};
use crate::disk_place::{Place, run_tool};
use crate::running::Running;

/// Tells a copy of this program to begin and end sandboxes until it is killed.
const CHURN: &str = "ATOLL_DISK_CHURN";

async fn begin(bench: &Bench, disk_bytes: u64, read_only_root: bool) -> Running {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].disk_bytes = disk_bytes;
    plan.containers[0].read_only_root = read_only_root;
    if bench.class == RuntimeClass::Container {
        plan.containers[0].limits.memory_bytes = 24 * MIB;
    }
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    running
}

/// Root and /tmp have one limit; what is written, ten times the memory, is not charged to that.
pub(crate) async fn full(bench: &mut Bench, place: &Place) {
    let mut running = begin(bench, 64 * MIB, false).await;
    let fits = running.script("dd if=/dev/zero of=/big bs=1M count=48 && stat -c %s /big").await;
    assert_eq!(fits.text(), "50331648\n", "{}", fits.errors());
    // Removed before: what is written over an old file stands beside it for a moment where a file system copies on write.
    let again = "for n in 1 2 3 4; do rm /big; dd if=/dev/zero of=/big bs=1M count=48 || exit; done; echo written";
    let again = running.script(again).await;
    assert_eq!(again.text(), "written\n", "{}", again.errors());
    used_is_told(&running, place).await;
    let full = running.script("dd if=/dev/zero of=/tmp/more bs=1M count=48").await;
    assert_ne!(full.code(), Some(0), "root and /tmp share one disk of 64 MiB");
    assert!(full.errors().contains(place.full()), "{}", full.errors());
    let after = running.script("rm /big /tmp/more && echo room > /again && cat /again").await;
    assert_eq!(after.text(), "room\n", "a full disk harms nobody: {}", after.errors());
    running.sandbox.stop(0).await.unwrap();
    assert_eq!(running.exit("main").await.reason, ExitReason::Stopped);

    // With a read-only root, /tmp has the disk to itself, and no way around its limit.
    let running = begin(bench, 32 * MIB, true).await;
    let escape = running.script("echo x > /tmp/x; chattr -p 7 /tmp/x").await;
    assert_ne!(escape.code(), Some(0), "a file left its project");
    let full = running.script("dd if=/dev/zero of=/tmp/more bs=1M count=48").await;
    assert!(full.errors().contains(place.full()), "{}", full.errors());
}

/// 48 of 64 MiB are in use. btrfs counts when it commits, which the place does each second.
async fn used_is_told(running: &Running, place: &Place) {
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    loop {
        let usage = running.sandbox.disk("main").await.unwrap().expect("it is counted");
        assert_eq!(usage.backend, place.backend);
        assert!(usage.limit_bytes > 48 * MIB && usage.limit_bytes <= 64 * MIB, "{usage:?}");
        if (48 * MIB..=56 * MIB).contains(&usage.used_bytes) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{usage:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A full disk is full for its sandbox alone.
pub(crate) async fn apart(bench: &mut Bench, place: &Place) {
    let (one, other) = (begin(bench, 32 * MIB, false).await, begin(bench, 32 * MIB, false).await);
    let full = one.script("dd if=/dev/zero of=/big bs=1M count=40").await;
    assert!(full.errors().contains(place.full()), "{}", full.errors());
    let fits = other.script("dd if=/dev/zero of=/big bs=1M count=20 && echo fits").await;
    assert_eq!(fits.text(), "fits\n", "{}", fits.errors());
}

/// A named volume has the backend's limit for all its users together, is shared by them, and outlives them and the server.
pub(crate) async fn volume(bench: &mut Bench, place: &Place) {
    let disks: Arc<ShimHost> = bench.host.clone().expect("a class with shims");
    let (uid, size) = (crate::bench::new_uid(), 32 * MIB);
    disks.make(&uid, size).await.unwrap();
    disks.make(&uid, size).await.expect("what is there stays as it is");
    let (one, other) = (begin_with(bench, &uid).await, begin_with(bench, &uid).await);
    let full =
        one.script("echo kept > /data/file && dd if=/dev/zero of=/data/big bs=1M count=40").await;
    assert!(full.errors().contains(place.full()), "{}", full.errors());
    let full = other.script("cat /data/file; dd if=/dev/zero of=/data/more bs=1M count=20").await;
    assert_eq!(full.text(), "kept\n");
    assert!(full.errors().contains(place.full()), "{}", full.errors());
    let own = other.script("dd if=/dev/zero of=/own bs=1M count=8 && echo own").await;
    assert_eq!(own.text(), "own\n", "{}", own.errors());
    let usage = disks.usage(&uid, size).await.unwrap().expect("it is counted");
    assert_eq!(usage.backend, place.backend);
    assert!(usage.limit_bytes <= size, "{usage:?}");
    bench.runtime.destroy(&one.uid).await.unwrap();
    bench.runtime.destroy(&other.uid).await.unwrap();
    drop(disks);
    bench.restart().await;
    let disks: Arc<ShimHost> = bench.host.clone().expect("a class with shims");
    assert_eq!(disks.all().await.unwrap(), [FoundVolume { uid: uid.clone(), condemned: false }]);
    let next = begin_with(bench, &uid).await;
    // The limit is still there.
    let script =
        "rm -f /data/big /data/more; cat /data/file; dd if=/dev/zero of=/data/big bs=1M count=40";
    let seen = next.script(script).await;
    assert_eq!(seen.text(), "kept\n");
    assert!(seen.errors().contains(place.full()), "{}", seen.errors());
    bench.runtime.destroy(&next.uid).await.unwrap();
    disks.condemn(&uid).await.unwrap();
    assert_eq!(disks.all().await.unwrap(), [FoundVolume { uid: uid.clone(), condemned: true }]);
    disks.remove(&uid).await.unwrap();
    disks.remove(&uid).await.expect("gone is what was wanted");
    assert_eq!(disks.all().await.unwrap(), []);
    assert!(disks.usage(&uid, size).await.is_err());
}

async fn begin_with(bench: &Bench, volume: &str) -> Running {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].disk_bytes = 32 * MIB;
    let (name, source) = ("data".to_owned(), VolumeSource::Named(volume.to_owned()));
    plan.volumes = vec![VolumePlan { name: name.clone(), size_bytes: 0, source }];
    plan.containers[0].volume_mounts =
        vec![VolumeMountPlan { volume: name, path: "/data".into(), read_only: false }];
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    running
}

/// Files without contents are bounded too.
pub(crate) async fn files(bench: &mut Bench, place: &Place) {
    let (one, other) = (begin(bench, 8 * MIB, false).await, begin(bench, 8 * MIB, false).await);
    // 255 ends xargs: a full disk answers the rest no faster.
    let many = "mkdir /many && cd /many && seq 1 100000 | xargs -n 1000 sh -c 'touch \"$@\" || exit 255' touch";
    let full = one.script(many).await;
    assert_ne!(full.code(), Some(0), "100,000 files are too many for 8 MiB");
    assert!(full.errors().contains(place.full()), "{}", full.errors());
    let fits =
        other.script("mkdir /some && cd /some && seq 1 200 | xargs touch && ls | wc -l").await;
    assert_eq!(fits.text(), "200\n", "{}", fits.errors());
    let after = one.script("rm -r /many && mkdir /again && touch /again/file && echo room").await;
    assert_eq!(after.text(), "room\n", "{}", after.errors());
}

/// What a sandbox wrote goes with it, however deep it lies, and the space is there again.
pub(crate) async fn many_and_deep(bench: &mut Bench, place: &Place) {
    let running = begin(bench, 64 * MIB, false).await;
    let deep = "cd /tmp && mkdir -p $(seq 1 1500 | sed 's/.*/d/' | tr '\\n' '/') && echo deep";
    let deep = running.script(deep).await;
    assert_eq!(deep.text(), "deep\n", "{}", deep.errors());
    let used =
        running.script("dd if=/dev/urandom of=/big bs=1M count=40 conv=fsync && echo used").await;
    assert_eq!(used.text(), "used\n", "{}", used.errors());
    let free_before = free_bytes(place);
    bench.runtime.destroy(&running.uid).await.unwrap();
    assert!(!bench.directory(&running.uid).exists());
    // The kernel cleans up behind files at its leisure.
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    while free_bytes(place) < free_before + 30 * MIB {
        assert!(std::time::Instant::now() < deadline, "the space does not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn free_bytes(place: &Place) -> u64 {
    // File systems count what they have written.
    run_tool("sync", &["-f", place.mount.to_str().unwrap()]).unwrap();
    let stat = rustix::fs::statvfs(&place.mount).unwrap();
    stat.f_bfree * stat.f_frsize
}

/// A sandbox outlives a restart with another backend, and is removed by it.
pub(crate) async fn another_choice(bench: &mut Bench, place: &Place) {
    let running = begin(bench, 16 * MIB, false).await;
    let told = running.script("echo here > /file").await;
    assert_eq!(told.code(), Some(0), "{}", told.errors());
    let uid = running.uid.clone();
    assert_eq!(backend_of(bench, &uid), place.backend.name());
    drop(running);
    let other = match place.backend {
        DiskBackend::Image => DiskBackend::Btrfs,
        DiskBackend::Btrfs | DiskBackend::ProjectQuota => DiskBackend::Image,
    };
    bench.disks = DiskChoice::Only(other);
    bench.restart().await;
    let adopted = match bench.runtime.adopt(&uid).await.unwrap() {
        atoll_runtime::Adoption::Running(sandbox, _, events) => {
            Running::new(uid.clone(), sandbox, events)
        }
        _ => panic!("it does not run any more"),
    };
    assert_eq!(adopted.script("cat /file").await.text(), "here\n");
    let new = begin(bench, 16 * MIB, false).await;
    assert_eq!(backend_of(bench, &new.uid), other.name());
    bench.runtime.destroy(&uid).await.unwrap();
    assert!(!bench.directory(&uid).exists());
}

fn backend_of(bench: &Bench, uid: &str) -> String {
    let launch = std::fs::read(bench.directory(uid).join("launch.json")).unwrap();
    let launch: serde_json::Value = serde_json::from_slice(&launch).unwrap();
    launch["placement"]["disk_backend"].as_str().unwrap().to_owned()
}

/// Servers that are killed at any moment leave nothing that the next one does not take away.
pub(crate) async fn killed(bench: &mut Bench, place: &Place) {
    bench.runtime.shutdown().await;
    for round in 1..=4_u64 {
        let mut server = server_on(bench);
        tokio::time::sleep(Duration::from_millis(150 * round)).await;
        server.kill().unwrap();
        server.wait().unwrap();
    }
    bench.restart().await;
    for uid in bench.runtime.inventory().await.unwrap() {
        bench.runtime.destroy(&uid).await.unwrap();
    }
    // What is in the pool is the new server's; after its end nothing may be left.
    assert_eq!(std::fs::read_dir(bench.data.path().join("sandboxes")).unwrap().count(), 0);
    if place.backend == DiskBackend::ProjectQuota {
        // Killed between limits and directory.
        let place = std::fs::File::open(bench.data.path()).unwrap();
        let range = std::fs::read_to_string(bench.data.path().join("project-ids")).unwrap();
        let id = range.trim().parse::<u32>().unwrap() + 60_000;
        project_quota::set_limits(place.as_fd(), id, MIB, 10).unwrap();
        bench.restart().await;
        assert_eq!(project_quota::quota(place.as_fd(), id).unwrap().limit_bytes, 0);
    }
}

/// A copy of this program that serves the bench's data directory.
fn server_on(bench: &Bench) -> Child {
    let thread = std::thread::current();
    let test = std::env::args().find(|argument| argument.contains("::"));
    let test = test.or_else(|| thread.name().map(str::to_owned)).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(CHURN, bench.data.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// In that copy: begins and ends sandboxes until it is killed, and no longer than this.
pub(crate) fn churn(class: RuntimeClass, place: &Place) -> bool {
    let Some(data) = std::env::var_os(CHURN) else { return false };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let disks = DiskChoice::Only(place.backend);
        let bench = Bench::at(Path::new(&data), &place.mount, disks, class);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while std::time::Instant::now() < end {
            let running = bench.launch(bench.plan("sleep 1000")).await;
            let spared = bench.launch(bench.plan("sleep 1000")).await;
            bench.runtime.destroy(&running.uid).await.unwrap();
            drop(spared);
        }
    });
    true
}

/// Ends what runs, and lets later servers take away what the kernel only lets go of once it has cleaned up: quota groups.
pub(crate) async fn settle(bench: &mut Bench, place: &Place) {
    if place.file_system() != "btrfs" {
        return;
    }
    for uid in bench.runtime.inventory().await.unwrap() {
        bench.runtime.destroy(&uid).await.unwrap();
    }
    // Makes no quota groups of its own.
    bench.disks = DiskChoice::Only(DiskBackend::Image);
    let mount = place.mount.to_str().unwrap();
    let deadline = std::time::Instant::now() + crate::bench::PATIENCE;
    loop {
        bench.restart().await;
        let groups = run_tool("btrfs", &["qgroup", "show", mount]).unwrap();
        let own = |line: &&str| line.starts_with("0/") && !line.starts_with("0/5 ");
        let left: Vec<&str> = groups.lines().filter(own).collect();
        if left.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "quota groups stay: {left:?}");
        run_tool("btrfs", &["filesystem", "sync", mount]).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// After the last server: neither disks nor limits that the kernel keeps of them.
pub(crate) fn assert_nothing_left(place: &Place) {
    let mount = place.mount.to_str().unwrap();
    if place.file_system() == "btrfs" {
        assert_eq!(run_tool("btrfs", &["subvolume", "list", mount]).unwrap(), "");
        return;
    }
    let place = std::fs::File::open(mount).unwrap();
    let mut from = 1;
    while let Some((id, quota)) = project_quota::next_known(place.as_fd(), from).unwrap() {
        assert_eq!((quota.limit_bytes, quota.used_inodes), (0, 0), "project {id} stays");
        from = id + 1;
    }
}
