//! How long the gvisor engine takes from `prepare` to the command's first output, beside bare `runsc run --network=sandbox` of the same
//! command in a prepared namespace, interleaved: `cargo run -p atoll-shim --example gvisor_speed [ROUNDS]` as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    dead_code,
    reason = "a measurement"
)]

#[path = "../tests/gvisor/guest_channel.rs"]
mod guest_channel;
#[path = "../tests/gvisor/harness.rs"]
mod harness;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_sys::placed_child::Place;
use atoll_wire::shim::Init;
use guest_channel::Guest;
use harness::{Sandbox, container, shell};

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(15);
    let runsc = harness::runsc("gvisor_speed").expect("runsc is installed");
    let (mut prepare, mut begin, mut total, mut bare) = (vec![], vec![], vec![], vec![]);
    let mut image = vec![];
    for round in 0..rounds {
        let one = |layer: &std::path::Path| {
            let mut one = container("main", layer, "");
            one.init = Init::Guest;
            vec![one]
        };
        let mut sandbox = Sandbox::unprepared(runsc.clone(), one, |_| {});
        let start = Instant::now();
        sandbox.engine.prepare().unwrap();
        prepare.push(start.elapsed());
        let mut guest = Guest::begin(&mut sandbox, 0);
        begin.push(start.elapsed());
        guest.start(shell("echo ready; read forever"));
        guest.follow(0, |output| output.contains("ready"));
        drop(sandbox);
        let mut sandbox = Sandbox::unprepared(
            runsc.clone(),
            |layer| vec![container("main", layer, "echo ready; read forever")],
            |_| {},
        );
        let start = Instant::now();
        sandbox.engine.prepare().unwrap();
        let (streams, _input, mut output) = harness::streams();
        sandbox.engine.begin(0, streams).unwrap();
        harness::read_until(&mut output, |text| text.contains("ready"));
        image.push(start.elapsed());
        drop(sandbox);
        // The first round fills caches.
        if round > 0 {
            total.push(start.elapsed());
            bare.push(bare_run(&runsc));
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1000.0
    };
    println!("with init: image, to first output {:.1}", median(&mut image));
    let (total, bare) = (median(&mut total), median(&mut bare));
    println!(
        "medians of {rounds} in ms: prepare {:.1}, begun {:.1}, first output {total:.1}",
        median(&mut prepare),
        median(&mut begin)
    );
    println!("bare runsc run to its first output {bare:.1}; ratio {:.2}", total / bare);
}

/// The same image and command by runsc alone.
fn bare_run(runsc: &std::path::Path) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let layer = harness::busybox_layer(directory.path());
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/busybox", "sh", "-c", "echo ready; read forever"],
            "env": ["PATH=/bin"], "cwd": "/" },
        "root": { "path": layer },
        "mounts": [ { "destination": "/proc", "type": "proc", "source": "proc" } ],
        "linux": { "namespaces": [ { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
            { "type": "network", "path": "/proc/self/ns/net" } ] },
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let network: OwnedFd = harness::new_network_namespace();
    let directory_path = directory.path().to_owned();
    let runsc = runsc.to_owned();
    std::thread::spawn(move || {
        atoll_sys::clone::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        atoll_sys::mount::isolate_propagation(true).unwrap();
        rustix::thread::move_into_link_name_space(network.as_fd(), None).unwrap();
        let empty = atoll_sys::mount::new_file_system(
            "tmpfs",
            &[],
            atoll_sys::mount::Attributes::MOUNT_ATTR_RDONLY,
        )
        .unwrap();
        atoll_sys::mount::attach_at(empty.as_fd(), rustix::fs::CWD, "/proc/sys/net").unwrap();
        let mut command = Command::new(runsc);
        command.arg("--root").arg(directory_path.join("root"));
        command.args([
            "--ignore-cgroups",
            "--network=sandbox",
            "--overlay2=none",
            "--platform=systrap",
            "run",
            "--bundle",
        ]);
        command.arg(&directory_path).arg("bare").stdin(Stdio::piped()).stdout(Stdio::piped());
        // In a group of its own, as runsc would make one: what a loaded host gives to a group is shared by all in it.
        let root = CgroupRoot::open(&CgroupLayout::detect().unwrap(), "gvisor-speed").unwrap();
        let group = root.create("bare", None).unwrap();
        Place::new(&group, None).unwrap().apply(&mut command).unwrap();
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut first = [0_u8; 5];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let took = start.elapsed();
        drop(child.stdin.take());
        child.wait().unwrap();
        group.remove().unwrap();
        root.remove().unwrap();
        took
    })
    .join()
    .unwrap()
}
