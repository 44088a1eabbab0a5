//! Which servers the host itself asks for names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// SOURCE: resolv.conf(5) says 3; more are written by people who do not know.
const MAX_SERVERS: usize = 3;
/// Longest file that is read.
const MAX_BYTES: usize = 64 * 1024;
/// What systemd-resolved asks, where /etc/resolv.conf names only itself. SOURCE: systemd-resolved(8).
const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";

/// The host's servers, read again when their file has changed.
#[derive(Debug)]
pub struct Servers {
    files: Vec<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    changed: Vec<Option<SystemTime>>,
    servers: Vec<SocketAddr>,
}

impl Servers {
    /// Those of `/etc/resolv.conf`.
    #[must_use]
    pub fn of_host() -> Self {
        Self::of_files(vec!["/etc/resolv.conf".into(), SYSTEMD.into()])
    }

    /// Those of the first of these files; where it names loopback alone, those of the next.
    #[must_use]
    pub fn of_files(files: Vec<PathBuf>) -> Self {
        Self { files, known: Mutex::default() }
    }

    /// These and no others.
    #[must_use]
    pub fn fixed(servers: Vec<SocketAddr>) -> Self {
        let known = Mutex::new(Known { changed: Vec::new(), servers });
        Self { files: Vec::new(), known }
    }

    /// The servers as of now.
    pub(super) fn now(&self) -> Vec<SocketAddr> {
        let changed: Vec<_> = self
            .files
            .iter()
            .map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok())
            .collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if changed != known.changed {
            known.servers = self.read();
            known.changed = changed;
        }
        known.servers.clone()
    }

    fn read(&self) -> Vec<SocketAddr> {
        let lists = self.files.iter().map(|file| {
            let text = std::fs::read(file).unwrap_or_default();
            parse(&String::from_utf8_lossy(&text[..text.len().min(MAX_BYTES)]))
        });
        let mut stub = Vec::new();
        for list in lists {
            if list.iter().any(|server| !server.ip().is_loopback()) {
                return list;
            }
            if stub.is_empty() {
                // Better than nothing: it is this host that asks, and for it loopback is right.
                stub = list;
            }
        }
        stub
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { return None };
        // A zone would name an interface of the host.
        let address: IpAddr = address.split('%').next()?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_people_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 8.8.8.8 \nnameserver\t2001:db8::1\nnameserver nonsense\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["8.8.8.8:53", "[2001:db8::1]:53"]);
        assert!(parse("").is_empty());
        assert_eq!(parse(&"nameserver 8.8.8.8\n".repeat(100)).len(), MAX_SERVERS);
    }

    #[test]
    fn a_stub_is_passed_over_where_the_truth_is_known() {
        let directory = std::env::temp_dir().join(format!("atoll-servers-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (stub, truth) = (directory.join("stub"), directory.join("truth"));
        std::fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        let servers = Servers::of_files(vec![stub.clone(), truth.clone()]);
        assert_eq!(servers.now(), ["127.0.0.53:53".parse().unwrap()]);
        std::fs::write(&truth, "nameserver 9.9.9.9\n").unwrap();
        assert_eq!(servers.now(), ["9.9.9.9:53".parse().unwrap()], "read again when it changes");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
