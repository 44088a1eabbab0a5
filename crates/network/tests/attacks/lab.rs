//! A host and a world of the test's own, gone with it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atoll_network::{Grant, KnownSlot, Network, OpenOptions, Policy, Reach, Slot};
use atoll_sys::clone;
use rustix::thread::UnshareFlags;

/// What the world looks like from the host.
pub(crate) const WORLD4: &str = "8.8.4.4";
pub(crate) const WORLD6: &str = "2600::4";
/// The host's own addresses on the way there.
pub(crate) const HOST4: &str = "8.8.4.1";
pub(crate) const HOST6: &str = "2600::1";
/// How long an answer is waited for. Refusals come at once; only what is dropped silently takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace.
pub(crate) struct Space(OwnedFd);

impl Space {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            clone::unshare(UnshareFlags::NEWNET).unwrap();
            let space = Self::open();
            space.sh("ip link set lo up");
            space
        });
        made.join().unwrap()
    }

    fn open() -> Self {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let path = "/proc/thread-self/ns/net";
        Self(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap())
    }

    pub(crate) fn of(slot: &Slot) -> Self {
        Self(slot.network.namespace.try_clone().unwrap())
    }

    /// Does something inside, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                clone::enter(self.0.as_fd()).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Runs a shell command inside; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (success, text) = self.try_sh(script);
        assert!(success, "{script}: {text}");
        text
    }

    /// Runs a shell command inside, for at most 20 s.
    pub(crate) fn try_sh(&self, script: &str) -> (bool, String) {
        let output = self
            .inside(|| Command::new("timeout").args(["20", "sh", "-c", script]).output().unwrap());
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether a TCP connection comes about.
    pub(crate) fn connects(&self, to: &str, port: u16) -> bool {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.inside(|| TcpStream::connect_timeout(&to, PATIENCE).is_ok())
    }

    /// Whether a datagram is answered by an [`Echo`].
    pub(crate) fn hears(&self, to: &str, port: u16) -> bool {
        self.hears_of(to, port, b"echo")
    }

    /// The same of a datagram that may be larger than a packet.
    pub(crate) fn hears_of(&self, to: &str, port: u16, datagram: &[u8]) -> bool {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.inside(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent = socket.connect(to).is_ok() && socket.send(datagram).is_ok();
            sent && socket.recv(&mut vec![0; datagram.len()]).is_ok()
        })
    }

    /// A connection that is open.
    pub(crate) fn connect(&self, to: &str, port: u16) -> TcpStream {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let stream =
            self.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }
}

/// A server that sends everything back, on TCP and UDP, over both families. Ends with its drop.
pub(crate) struct Echo {
    over: Arc<AtomicBool>,
    /// Who came, by TCP.
    pub(crate) visitors: Arc<Mutex<Vec<IpAddr>>>,
}

impl Echo {
    pub(crate) fn serve(space: &Space, port: u16) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let visitors = Arc::default();
        for any in ["0.0.0.0", "::"] {
            // One socket a family: neither depends on what the other does.
            let address = SocketAddr::new(any.parse().unwrap(), port);
            let (listener, socket) = space.inside(|| {
                let listener = listen(address);
                (listener, bind(address))
            });
            serve_tcp(listener, Arc::clone(&over), Arc::clone(&visitors));
            serve_udp(socket, Arc::clone(&over));
        }
        Self { over, visitors }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// IPv6 alone, where it is IPv6.
fn socket(address: SocketAddr, kind: rustix::net::SocketType) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
    }
    rustix::net::bind(&socket, &address).unwrap();
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = socket(address, rustix::net::SocketType::STREAM);
    rustix::net::listen(&socket, 1024).unwrap();
    TcpListener::from(socket)
}

fn bind(address: SocketAddr) -> UdpSocket {
    UdpSocket::from(socket(address, rustix::net::SocketType::DGRAM))
}

fn serve_tcp(listener: TcpListener, over: Arc<AtomicBool>, visitors: Arc<Mutex<Vec<IpAddr>>>) {
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let mut polled = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            rustix::event::poll(&mut polled, Some(&wait)).unwrap();
            let Ok((mut stream, from)) = listener.accept() else { continue };
            visitors.lock().unwrap().push(from.ip());
            stream.set_nonblocking(false).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn serve_udp(socket: UdpSocket, over: Arc<AtomicBool>) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !over.load(Ordering::Relaxed) {
            if let Ok((count, from)) = socket.recv_from(&mut buffer) {
                // Whoever asked may be gone.
                let _ = socket.send_to(&buffer[..count], from);
            }
        }
    });
}

/// Host, world and the network of an instance between them.
pub(crate) struct Lab {
    pub(crate) host: Space,
    pub(crate) world: Space,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) instance: String,
    network: Option<Network>,
}

impl Lab {
    /// `None`, and said so, where tests may not make namespaces.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: {test}: needs root");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (host, world) = (Space::new(), Space::new());
        let world_fd = world.0.try_clone().unwrap();
        host.inside(move || {
            // A pair between both, made where no other test has names.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&world_fd));
            let keep = std::fs::File::open(path).unwrap();
            rustix::io::fcntl_setfd(&keep, rustix::io::FdFlags::empty()).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&keep);
            let script = format!("ip link add out type veth peer name in netns /proc/self/fd/{fd}");
            let made = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        });
        host.sh(&format!(
            "ip link set out up; ip addr add {HOST4}/24 dev out; ip -6 addr add {HOST6}/64 dev out nodad;
             ip addr add 192.168.77.1/24 dev out; ip route add default via {WORLD4}; ip -6 route add default via {WORLD6}"
        ));
        world.sh(&format!(
            "ip link set in up; ip addr add {WORLD4}/24 dev in; ip -6 addr add {WORLD6}/64 dev in nodad;
             ip addr add 192.168.77.2/24 dev in; ip addr add 169.254.169.254/32 dev in; ip addr add 10.9.9.9/32 dev in;
             ip addr add 9.9.9.9/32 dev in; ip -6 addr add 2a00::9/128 dev in nodad; ip -6 addr add fd99::9/128 dev in nodad;
             ip route add default via {HOST4}; ip -6 route add default via {HOST6}"
        ));
        host.sh("ip route add 169.254.169.254/32 dev out; ip route add 10.9.9.9/32 dev out");
        let directory = tempfile::tempdir().unwrap();
        let instance = format!("{:08x}{number:04x}", std::process::id());
        let mut lab = Self { host, world, directory, instance, network: None };
        lab.open(&[]);
        Some(lab)
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            directory: self.directory.path().join("network"),
            instance: self.instance.clone(),
            subnet: None,
        }
    }

    /// Opens the network, as a server does that starts; whatever was open before is left as a killed server leaves it.
    pub(crate) fn open(&mut self, known: &[KnownSlot]) -> Vec<atoll_network::SlotNumber> {
        drop(self.network.take());
        let options = self.options();
        let (network, lost) = self.host.inside(|| Network::open(&options, known)).unwrap();
        self.network = Some(network);
        lost
    }

    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    /// A sandbox that reaches nothing but what it is granted.
    pub(crate) fn granted(&self, grants: Vec<Grant>) -> (Slot, Space) {
        let slot = self.network().prepare_slot().unwrap();
        let policy = Policy { reach: Reach::Isolated, grants };
        self.network().admit(slot.number, &policy).unwrap();
        let space = Space::of(&slot);
        (slot, space)
    }

    /// A slot with a policy: a sandbox.
    pub(crate) fn sandbox(&self, reach: Reach) -> (Slot, Space) {
        let slot = self.network().prepare_slot().unwrap();
        self.network().admit(slot.number, &policy(reach)).unwrap();
        let space = Space::of(&slot);
        (slot, space)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(network) = self.network.take() {
            let removed = network.remove();
            if !std::thread::panicking() {
                removed.unwrap();
                assert!(!self.directory.path().join("network/ring").exists(), "the ring is gone");
            }
        }
    }
}

pub(crate) fn policy(reach: Reach) -> Policy {
    Policy { reach, grants: Vec::new() }
}

/// Waits for something that nobody announces.
pub(crate) fn comes_true(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
