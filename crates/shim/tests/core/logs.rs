//! Logs: bounded whatever is written, and a full disk harms nobody.

use std::fs;
use std::process::Command;

use atoll_wire::log::LogStream;
use atoll_wire::shim::{ShimEvent, ShimRequest};

use crate::harness::{Sandbox, Spawner, container, exec};

#[test]
fn a_flood_of_output_stays_within_the_bound_and_harms_nobody() {
    let spawner = Spawner::start();
    let begun = std::time::Instant::now();
    let bytes: u64 = 200 << 20;
    let mut plan = container("main", &format!("head -c {bytes} /dev/zero | tr '\\0' '\\377'"));
    plan.log_bytes = 1 << 20;
    let sandbox = Sandbox::new(vec![plan, container("other", "sleep 1000")]);
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    client.until_started();
    let resident_kib = || {
        let status = fs::read_to_string(format!("/proc/{}/status", sandbox.shim().pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    for _ in 0..5 {
        assert_eq!(exec(&sandbox, "other", "echo alive").text(), "alive\n");
        assert!(resident_kib() < 16 * 1024, "{} KiB", resident_kib());
    }
    let events = client.events_until(|event| matches!(event, ShimEvent::Exited { .. }));
    let dropped = events.iter().rev().find_map(|event| match event {
        ShimEvent::LogDropped { dropped_bytes, .. } => Some(*dropped_bytes),
        _ => None,
    });
    let kept: u64 = sandbox.log("main").iter().map(|record| record.text.len() as u64).sum();
    assert_eq!(kept + dropped.unwrap(), bytes);
    let told = events.iter().filter(|event| matches!(event, ShimEvent::LogDropped { .. })).count();
    assert!(told as u64 <= begun.elapsed().as_secs() + 2, "{told} events: at most one a second");
    for name in ["logs/main.log", "logs/main.log.1"] {
        assert!(fs::metadata(sandbox.path(name)).unwrap().len() <= 1 << 19);
    }
    sandbox.connect().request(&ShimRequest::Stop { grace_millis: 0 });
    client.until_ended();
    assert_eq!(sandbox.end().unwrap().log_dropped_bytes, [dropped.unwrap(), 0]);
}

/// A file system of its own for one directory; unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_output_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a_full_disk_costs_output_and_nothing_else: needs root to mount");
        return;
    }
    let spawner = Spawner::start();
    let sandbox =
        Sandbox::of_script("echo before; read _; echo during; read _; echo after; exit 3");
    let disk = SmallDisk::mount(sandbox.path("logs"), "64k");
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    crate::harness::wait_until("it is logged", || sandbox.log_text("main") == "before\n");
    let filler = sandbox.path("logs/filler");
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
    let line = || atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec());
    let full = fs::write(&filler, vec![0; 1 << 20]);
    assert!(full.is_err(), "the disk is full");
    // What is in the log's last page can still be written: make that full as well.
    let log = fs::OpenOptions::new().append(true).open(sandbox.path("logs/main.log")).unwrap();
    let length = log.metadata().unwrap().len();
    let page = std::io::Write::write(&mut &log, &[b'\n'; 4096]).unwrap_or(0) as u64;
    attached.send(line());
    let awaited = client.events_until(|event| matches!(event, ShimEvent::LogDropped { .. }));
    let Some(ShimEvent::LogDropped { dropped_bytes, .. }) = awaited.last() else { unreachable!() };
    assert_eq!(
        *dropped_bytes, 7,
        "'during' and its line end; the page was full after {length} + {page}"
    );
    fs::remove_file(&filler).unwrap();
    attached.send(line());
    assert_eq!(attached.finish().code(), Some(3));
    client.until_ended();
    let records = sandbox.log("main");
    let seen: Vec<_> = records
        .iter()
        .map(|record| (record.stream, String::from_utf8_lossy(&record.text).into_owned()))
        .collect();
    assert_eq!(
        seen,
        [
            (LogStream::Stdout, "before".into()),
            (LogStream::Gap, "7 bytes of output are missing here".into()),
            (LogStream::Stdout, "after".into()),
        ]
    );
    assert_eq!(sandbox.end().unwrap().containers[0].code, Some(3));
    drop(disk);
}

#[test]
fn a_full_disk_costs_no_exit() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a_full_disk_costs_no_exit: needs root to mount");
        return;
    }
    let spawner = Spawner::start();
    let sandbox = Sandbox::of_script("read _; exit 3");
    let launch = fs::read(sandbox.path("launch.json")).unwrap();
    let disk = SmallDisk::mount(sandbox.directory.clone(), "512k");
    fs::write(sandbox.path("launch.json"), launch).unwrap();
    let mut client = spawner.request(&sandbox.directory, false);
    client.until_started();
    let mut attached = sandbox.connect();
    attached.request(&ShimRequest::Attach { container: "main".into(), from_start: false });
    assert!(fs::write(sandbox.path("filler"), vec![0; 1 << 20]).is_err(), "the disk is full");
    attached.send(atoll_wire::guest::HostMessage::Stdin(b"\n".to_vec()));
    client.until_ended();
    assert_eq!(sandbox.end().unwrap().containers[0].code, Some(3));
    drop(disk);
}
