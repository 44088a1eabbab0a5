//! An instance of a test's own, with a keeper, and servers that play sandboxes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atoll_keeper::{
    Addresses, KeeperClient, KeeperError, Member, Names, Port, PortHold, Protocol, StartOptions,
};

/// Nothing that must come takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
const PROGRAM: &str = env!("CARGO_BIN_EXE_atoll-network-keeper");

/// A data directory. Dropped, its keeper is killed and everything removed.
pub(crate) struct Instance {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Instance {
    pub(crate) fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.join("network")).unwrap();
        Self { path, _directory: directory }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Attached to a keeper that lives or begins.
    pub(crate) fn keeper(&self) -> KeeperClient {
        self.begin_with(PROGRAM).unwrap()
    }

    pub(crate) fn begin_with(&self, program: &str) -> Result<KeeperClient, KeeperError> {
        KeeperClient::start_or_attach(&StartOptions::new(program, &self.path))
    }

    pub(crate) fn attached(&self) -> KeeperClient {
        self.attached_if_there().unwrap()
    }

    pub(crate) fn attached_if_there(&self) -> Option<KeeperClient> {
        match KeeperClient::attach_only(&self.path) {
            Ok(keeper) => keeper,
            // It ends at this moment.
            Err(KeeperError::Gone(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// A server as a process of its own, which publishes a port.
    pub(crate) fn server(&self, host_port: u16, target_port: u16) -> Child {
        Command::new(PROGRAM)
            .arg("attach")
            .arg(&self.path)
            .args([host_port.to_string(), target_port.to_string()])
            .spawn()
            .unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(keeper) = self.attached_if_there() {
            drop(keeper.retire());
        }
    }
}

/// Echoes on 127.0.0.1 alone, and counts its clients.
pub(crate) fn echo_server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let clients = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&clients);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                })
                .unwrap();
        }
    });
    (port, clients)
}

/// A port that is free in both protocols and families, below those that the kernel gives to clients: nobody takes it in the meantime but another
/// test that draws the same number.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 97;
    for _ in 0..20_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + (start + step) % 20_000).unwrap();
        let free = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
            && UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no port is free")
}

pub(crate) fn member(uid: &str) -> Member {
    let addresses = Addresses { ipv4: Ipv4Addr::LOCALHOST, ipv6: Ipv6Addr::LOCALHOST };
    Member {
        uid: uid.to_owned(),
        addresses: Some(addresses),
        names: Names::Refuse,
        ports: Vec::new(),
    }
}

pub(crate) fn port(protocol: Protocol, host_port: u16, target_port: u16) -> Port {
    Port { hold: PortHold { protocol, host_port }, target_port, open: true }
}

/// A sandbox with one open port.
pub(crate) fn published(uid: &str, protocol: Protocol, target_port: u16) -> Member {
    Member { ports: vec![port(protocol, free_port(), target_port)], ..member(uid) }
}

/// Waits for what no event tells.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
