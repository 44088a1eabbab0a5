//! A host of a test's own, with a world behind it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;

use rustix::thread::UnshareFlags;

use super::{Instance, archive, import, in_each_class_of, skipped};

/// The host as the world sees it, and the world as the host does.
pub const HOST: &str = "8.8.4.1";
pub const WORLD: &str = "8.8.4.4";
/// Behind the world, and nobody's business.
pub const PRIVATE: &str = "192.168.77.7";

/// The network namespace of the world.
pub struct World(OwnedFd);

impl World {
    /// A connection from the world.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                atoll_sys::clone::enter(&self.0).unwrap();
                TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5))
            });
            connecting.join().unwrap()
        })
    }
}

/// Runs a shell command in the calling thread's namespace; it must succeed.
fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The namespace of the calling thread.
fn namespace() -> OwnedFd {
    let flags = rustix::fs::OFlags::RDONLY;
    rustix::fs::open("/proc/thread-self/ns/net", flags, rustix::fs::Mode::empty()).unwrap()
}

/// Answers every question for a name with the world's own address, in the calling thread's namespace; for one that begins with 'inner',
/// with a private one.
fn serve_names() {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            // SOURCE: RFC 1035, 4.1: header, the question as it came, and one address for the name at offset 12.
            let name = question[12..count].iter().position(|byte| *byte == 0).unwrap();
            let asked = &question[12..12 + name + 5];
            let address = if question[12..].starts_with(b"\x05inner") { PRIVATE } else { WORLD };
            let is_address = asked.ends_with(&[0, 1, 0, 1]);
            let mut answer = question[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
            answer.extend(asked);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address.parse::<Ipv4Addr>().unwrap().octets());
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// Leaves the calling thread on a host of its own, with a world that greets whoever connects to port 80 and knows names.
fn move_to_a_host_with_a_world() -> World {
    let unshare = || atoll_sys::clone::unshare(UnshareFlags::NEWNET).unwrap();
    unshare();
    // The host's own /etc/resolv.conf, seen by nobody else.
    atoll_sys::clone::unshare(UnshareFlags::NEWNS).unwrap();
    sh(&format!(
        "ip link set lo up; mount --make-rprivate /; mount -t tmpfs tmpfs /mnt
         echo nameserver {WORLD} >/mnt/resolv.conf; mount --bind /mnt/resolv.conf /etc/resolv.conf"
    ));
    let host = namespace();
    let (told, heard) = mpsc::channel();
    let world = std::thread::spawn(move || {
        unshare();
        let peer = host.as_fd().as_raw_fd();
        rustix::io::fcntl_setfd(&host, rustix::io::FdFlags::empty()).unwrap();
        sh(&format!(
            "ip link set lo up; ip link add in type veth peer name out netns /proc/self/fd/{peer};
             ip link set in up; ip addr add {WORLD}/24 dev in; ip addr add {PRIVATE}/32 dev lo"
        ));
        serve_names();
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80));
        let listener = TcpListener::bind(anywhere).unwrap();
        told.send(namespace()).unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let greeting = format!("hello {}\n", stream.peer_addr().unwrap().ip());
                // What was sent is read first: closing over it would break the greeting off. Whoever asked may be gone.
                let _ = stream.read(&mut [0; 16]);
                let _ = stream.write_all(greeting.as_bytes());
            }
        });
    });
    world.join().unwrap();
    sh(&format!(
        "ip link set out up; ip addr add {HOST}/24 dev out; ip route add default via {WORLD}"
    ));
    World(heard.recv().unwrap())
}

/// On a host of its own: for each class that this machine has.
pub fn on_a_host(test: &'static str, run: impl Fn(&Instance, &str, &World) + Send + 'static) {
    on_one_host(test, move |instance, world| {
        in_each_class_of(instance, test, |instance, class| run(instance, class, world));
    });
}

/// On a host of its own, once.
pub fn on_one_host(test: &'static str, run: impl Fn(&Instance, &World) + Send + 'static) {
    let (true, Some(archive)) = (rustix::process::geteuid().is_root(), archive()) else {
        return skipped(test, "needs root and busybox");
    };
    let there = std::thread::spawn(move || {
        let world = move_to_a_host_with_a_world();
        let mut instance = Instance::not_started();
        instance.set_server_environment("ATOLL_NETWORK", "on");
        // Allowed by the node; opened by a manifest that asks for it, and only there.
        instance.set_server_environment("ATOLL_ALLOW_EGRESS", &format!("{PRIVATE}:80"));
        instance.up();
        import(&instance, archive);
        run(&instance, &world);
        instance.end();
        let left = Command::new("sh").args(["-c", "ip -o link; nft list tables"]).output().unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(!left.contains("at-") && !left.contains("atoll"), "{left}");
    });
    if let Err(panic) = there.join() {
        std::panic::resume_unwind(panic);
    }
}
