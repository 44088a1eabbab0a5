//! The `atoll` binary plays the network keeper when a server starts it so.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use atoll_keeper::{KeeperClient, PROGRAM_ARGUMENT, PortHold, Protocol, StartOptions};

const ATOLL: &str = env!("CARGO_BIN_EXE_atoll");

#[test]
fn the_binary_is_a_keeper_when_a_server_starts_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("network")).unwrap();
    let options = StartOptions::new(ATOLL, directory.path());
    let keeper = KeeperClient::start_or_attach(&options).unwrap();
    let command = std::fs::read_link(format!("/proc/{}/exe", keeper.pid())).unwrap();
    assert_eq!(command, std::fs::canonicalize(ATOLL).unwrap());
    assert!(keeper.is_new());
    // Whichever nobody has.
    let held = (20_000..21_000).find(|host_port| {
        let hold = PortHold { protocol: Protocol::Udp, host_port: *host_port };
        keeper.hold("alice", &[hold]).is_ok()
    });
    assert!(held.is_some());
    assert_eq!(keeper.inventory().unwrap().len(), 1);
    keeper.retire().unwrap();
}

#[test]
fn nobody_starts_a_keeper_by_hand_or_finds_it_in_the_help() {
    let finished = Command::new(ATOLL).arg(PROGRAM_ARGUMENT).output().unwrap();
    assert!(!finished.status.success());
    let complaint = String::from_utf8(finished.stderr).unwrap();
    assert!(complaint.contains("started by a server"), "{complaint}");
    let help = Command::new(ATOLL).arg("--help").output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains(PROGRAM_ARGUMENT));
}
