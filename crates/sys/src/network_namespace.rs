//! Network namespaces prepared ahead: loopback up, nothing else, and a sysfs that shows just that.
//!
//! Owns making them by system call (about 0.4 ms each). A namespace lives through its descriptors and the processes in it, never
//! through a path: when its last holder dies, it is gone.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::UnshareFlags;

use crate::clone::{self, CloneError};
use crate::mount;

/// A network namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkNamespaceError {
    /// The kernel makes no more of them.
    #[error("cannot make a network namespace: {0}")]
    Unshare(CloneError),
    /// A step in the new namespace failed.
    #[error("cannot {operation} a new network namespace")]
    Step {
        /// The step, as a verb.
        operation: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A setting of the new namespace.
    #[error("cannot write {}", path.display())]
    Setting {
        /// Its file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl NetworkNamespaceError {
    fn step(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Step { operation, source: errno.into() }
    }
}

/// A network namespace with loopback up. Owned by the caller's user namespace: root of a sandbox may not change it.
#[derive(Debug)]
pub struct PreparedNetwork {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Its sysfs: read-only, mounted nowhere.
    pub sysfs: OwnedFd,
}

/// Settings of each namespace: its ports and its echo sockets are for whoever lives in it, privileged or not; no capability
/// has to be given away for a server on port 80 or for `ping`. SOURCE: ip(7), icmp(7).
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Makes one and leaves the calling thread in it: call it on a thread that exists for this alone.
///
/// # Errors
/// [`NetworkNamespaceError`]; the thread may then be in a half-made namespace.
pub fn prepare() -> Result<PreparedNetwork, NetworkNamespaceError> {
    clone::unshare(UnshareFlags::NEWNET).map_err(NetworkNamespaceError::Unshare)?;
    bring_loopback_up().map_err(NetworkNamespaceError::step("bring up loopback in"))?;
    for (path, value) in SETTINGS {
        match fs::write(path, value) {
            // A kernel without the setting (IPv4 is not built in) has nothing to loosen.
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetworkNamespaceError::Setting { path: path.into(), source });
            }
            _ => {}
        }
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let sysfs = mount::new_file_system("sysfs", &[], attributes)
        .map_err(NetworkNamespaceError::step("make a sysfs of"))?;
    let path = Path::new("/proc/thread-self/ns/net");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(NetworkNamespaceError::step("open"))?;
    Ok(PreparedNetwork { namespace, sysfs })
}

fn bring_loopback_up() -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeros are a valid value of this structure of numbers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which lives until the call returns, and writes nothing.
    let answer = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
    };
    match answer {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn loopback_works_in_it_and_nothing_else_is_there() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: network_namespace::loopback_works_in_it: needs root");
            return;
        }
        let thread = std::thread::spawn(|| {
            let first = prepare().unwrap();
            let second = prepare().unwrap();
            let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
            assert_ne!(inode(&first.namespace), inode(&second.namespace));
            let listener = TcpListener::bind("127.0.0.1:80").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"ping").unwrap();
            drop(client);
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "ping");
            let outside = "192.0.2.1:80".parse().unwrap();
            assert!(TcpStream::connect_timeout(&outside, Duration::from_millis(200)).is_err());
            let open = |name: &str, flags| {
                rustix::fs::openat(&second.sysfs, name, flags | OFlags::CLOEXEC, Mode::empty())
            };
            let names: Vec<String> =
                rustix::fs::Dir::read_from(open("class/net", OFlags::RDONLY).unwrap())
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                    .filter(|name| !name.starts_with('.'))
                    .collect();
            assert_eq!(names, ["lo"]);
            let written = open("class/net/lo/mtu", OFlags::WRONLY);
            assert_eq!(written.unwrap_err(), Errno::ROFS);
        });
        thread.join().unwrap();
    }
}
