//! Sandboxes with a network, on a host of the test's own that has a world behind it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use rustix::thread::UnshareFlags;
use serde_json::Value;

use crate::support::{IMAGE, Instance, archive, import, in_each_class_of, skipped};

/// The host as the world sees it, and the world as the host does.
const HOST: &str = "8.8.4.1";
const WORLD: &str = "8.8.4.4";
/// Behind the world, and nobody's business.
const PRIVATE: &str = "192.168.77.7";

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

/// Answers every question for a name with the world's own address, in the calling thread's namespace.
fn serve_names() {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            // SOURCE: RFC 1035, 4.1: header, the question as it came, and one address for the name at offset 12.
            let name = question[12..count].iter().position(|byte| *byte == 0).unwrap();
            let asked = &question[12..12 + name + 5];
            let is_address = asked.ends_with(&[0, 1, 0, 1]);
            let mut answer = question[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
            answer.extend(asked);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(WORLD.parse::<Ipv4Addr>().unwrap().octets());
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// Leaves the calling thread on a host of its own, with a world that greets whoever connects to port 80 and knows names.
fn move_to_a_host_with_a_world() {
    let unshare = || atoll_sys::clone::unshare(UnshareFlags::NEWNET).unwrap();
    unshare();
    // The host's own /etc/resolv.conf, seen by nobody else.
    atoll_sys::clone::unshare(UnshareFlags::NEWNS).unwrap();
    sh(&format!(
        "ip link set lo up; mount --make-rprivate /; mount -t tmpfs tmpfs /mnt
         echo nameserver {WORLD} >/mnt/resolv.conf; mount --bind /mnt/resolv.conf /etc/resolv.conf"
    ));
    let host = namespace();
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
}

/// On a host of its own: for each class that this machine has.
fn on_a_host(test: &'static str, run: impl Fn(&Instance, &str) + Send + 'static) {
    let (true, Some(archive)) = (rustix::process::geteuid().is_root(), archive()) else {
        return skipped(test, "needs root and busybox");
    };
    let there = std::thread::spawn(move || {
        move_to_a_host_with_a_world();
        let mut instance = Instance::not_started();
        instance.set_server_environment("ATOLL_NETWORK", "true");
        instance.up();
        import(&instance, archive);
        in_each_class_of(&instance, test, run);
        instance.end();
        let left = Command::new("sh").args(["-c", "ip -o link; nft list tables"]).output().unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(!left.contains("at-") && !left.contains("atoll"), "{left}");
    });
    if let Err(panic) = there.join() {
        std::panic::resume_unwind(panic);
    }
}

fn say(class: &str, egress: bool, to: &str) -> Vec<String> {
    let mut arguments = vec!["run", "--class", class];
    arguments.extend(egress.then_some("--egress"));
    let script = format!("echo | timeout 5 nc {to} 80");
    arguments.extend([IMAGE, "--", "sh", "-c", &script]);
    arguments.into_iter().map(str::to_owned).collect()
}

#[test]
fn who_asks_for_egress_reaches_the_world_and_nobody_else_does() {
    on_a_host("who_asks_for_egress_reaches_the_world", |instance, class| {
        let world = instance.atoll(say(class, true, WORLD));
        assert_eq!(world.succeeded(), format!("hello {HOST}\n"), "as the host");
        for (egress, to) in [(true, PRIVATE), (true, HOST), (false, WORLD), (false, PRIVATE)] {
            let refused = instance.atoll(say(class, egress, to));
            assert_ne!(refused.code, Some(0), "{egress} {to}");
            assert_eq!(refused.text(), "", "{egress} {to}");
        }
    });
}

#[test]
fn names_are_resolved_for_who_has_egress_and_refused_at_once_for_others() {
    on_a_host("names_are_resolved_for_who_has_egress", |instance, class| {
        let look_up = |more: &[&str]| {
            let look_up = [IMAGE, "--", "nslookup", "-type=a", "world.example"];
            let run = ["run", "--class", class];
            instance.atoll(run.iter().chain(more).chain(&look_up))
        };
        let found = look_up(&["--egress"]);
        assert!(found.succeeded().contains(&format!("Address: {WORLD}")), "{found:?}");
        assert_ne!(look_up(&[]).code, Some(0));
    });
}

#[test]
fn a_sandbox_has_an_address_of_its_own_that_it_knows_and_the_status_shows() {
    on_a_host("a_sandbox_has_an_address_of_its_own", |instance, class| {
        let begin = |name: &str| {
            let arguments =
                ["run", "--keep", "--egress", "--class", class, "--name", name, IMAGE, "--"];
            let script = ["sh", "-c", "cat /etc/hosts; sleep 1000"];
            instance.begin(arguments.iter().chain(&script))
        };
        let mut first = begin("first");
        first.line_with("ip6-localhost");
        let address = |name: &str| match instance.sandbox(name) {
            Some(Value::Object(sandbox)) => sandbox["status"]["ip"].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        let own = address("first");
        assert!(first.line_with("first").starts_with(&format!("{own}\t")), "{own}");
        let mut second = begin("second");
        second.line_with("ip6-localhost");
        assert_ne!(own, address("second"));
        let meet = format!("echo | timeout 5 nc {own} 80");
        let meet = ["exec", "second", "--", "sh", "-c", &meet];
        assert_ne!(instance.atoll(meet).code, Some(0), "sandboxes do not meet");
        instance.kill_server();
        instance.up();
        let say = format!("echo | timeout 5 nc {WORLD} 80");
        let still = instance.atoll(["exec", "second", "--", "sh", "-c", &say]);
        assert_eq!(still.succeeded(), format!("hello {HOST}\n"), "after a restart of the server");
        assert_eq!(address("first"), own);
        for name in ["sandbox/first", "sandbox/second"] {
            instance.atoll(["delete", name]).succeeded();
        }
    });
}
