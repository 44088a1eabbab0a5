//! How long it takes to let a sandbox into the network and to publish its ports, with few sandboxes there and with many.
//!
//! ```text
//! cargo run --release -p atoll-network --example admission_speed [SLOTS]...     (default: 1 100 1000; as root)
//! ```
//!
//! Runs on a host of its own (a network namespace). Prints one JSON line for each number of slots that are there already.

#![allow(clippy::print_stdout, reason = "a program whose product is its output")]

use std::time::{Duration, Instant};

use atoll_network::{
    Network, NetworkError, OpenOptions, Policy, Protocol, PublishedPort, Reach, Slot,
};
use rustix::thread::UnshareFlags;

/// Measured for each number.
const RUNS: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Result<Vec<usize>, _> = std::env::args().skip(1).map(|it| it.parse()).collect();
    let wanted = match wanted? {
        none if none.is_empty() => vec![1, 100, 1000],
        some => some,
    };
    atoll_sys::clone::unshare(UnshareFlags::NEWNET)?;
    let directory = std::env::temp_dir().join(format!("atoll-admission-{}", std::process::id()));
    let options =
        OpenOptions { directory: directory.clone(), instance: "admission".into(), subnet: None };
    let (network, _) = Network::open(&options, &[])?;
    let measured = wanted.iter().try_for_each(|slots| measure(&network, *slots));
    network.remove()?;
    std::fs::remove_dir_all(directory)?;
    Ok(measured?)
}

fn measure(network: &Network, others: usize) -> Result<(), NetworkError> {
    let mut there: Vec<Slot> = Vec::with_capacity(others);
    for number in 0..others {
        let slot = network.prepare_slot()?;
        network.admit(slot.number, &policy())?;
        network.publish(slot.number, &[port(number, 80)])?;
        there.push(slot);
    }
    let mut times: [Vec<Duration>; 4] = Default::default();
    for run in 0..RUNS {
        let [prepared, admitted, published, released] = &mut times;
        let slot = timed(prepared, || network.prepare_slot())?;
        timed(admitted, || network.admit(slot.number, &policy()))?;
        timed(published, || network.publish(slot.number, &[port(others + run % 2, 80)]))?;
        timed(released, || network.release(slot.number))?;
    }
    for slot in there {
        network.release(slot.number)?;
    }
    let names = ["prepare", "admit", "publish", "release"];
    let stages: Vec<String> = names.iter().zip(times).map(|(name, it)| summary(name, it)).collect();
    println!("{{\"others\":{others},{}}}", stages.join(","));
    Ok(())
}

fn policy() -> Policy {
    Policy { reach: Reach::World, grants: Vec::new() }
}

fn port(number: usize, slot_port: u16) -> PublishedPort {
    let host_port = u16::try_from(10_000 + number).unwrap_or(u16::MAX);
    PublishedPort { protocol: Protocol::Tcp, host_port, slot_port }
}

fn timed<T>(
    times: &mut Vec<Duration>,
    work: impl FnOnce() -> Result<T, NetworkError>,
) -> Result<T, NetworkError> {
    let begun = Instant::now();
    let done = work()?;
    times.push(begun.elapsed());
    Ok(done)
}

/// Median and 99th percentile in microseconds.
fn summary(name: &str, mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_micros();
    format!("\"{name}_micros\":{{\"p50\":{},\"p99\":{}}}", at(50), at(99))
}
