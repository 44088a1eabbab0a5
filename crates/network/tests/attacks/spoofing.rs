//! Sandboxes that lie about who they are, and sandboxes that take all they can. Each has every right inside its own namespace.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use atoll_network::{MAX_CONNECTIONS, Network, Reach};

use crate::lab::{Echo, HOST4, HOST6, Lab, Space, WORLD4, WORLD6, comes_true};

/// Ports of the world that nobody answers on, one a family: a child that another test forks may hold the first for a moment longer.
const QUIET: [u16; 2] = [4004, 4006];
/// To so many ports, from each of two: a hundred thousand connections.
const FLOWS: u16 = 50_000;

/// Sends a datagram from an address that the interface is given first.
fn send_from(space: &Space, from: IpAddr, to: &str, text: &[u8]) {
    let length = if from.is_ipv4() { 32 } else { 128 };
    let nodad = if from.is_ipv4() { "" } else { "nodad" };
    let port = QUIET[usize::from(from.is_ipv6())];
    space.sh(&format!("ip addr replace {from}/{length} dev eth0 {nodad}"));
    let to = SocketAddr::new(to.parse().unwrap(), port);
    space.inside(|| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
        // Refused or on its way: what arrives is what counts.
        let _ = socket.send_to(text, to);
    });
}

/// What the ring knows of its slots' addresses, and its ways.
fn ring_knows(network: &Network) -> String {
    let script = "ip -4 neigh | grep 'dev a'; ip -6 neigh | grep 'dev a'; ip -4 route; ip -6 route";
    let output = network.inside_ring(|| Command::new("sh").args(["-c", script]).output()).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_datagram_with_anothers_address_does_not_leave() {
    let Some(lab) = Lab::new("attacks::a_datagram_with_anothers_address_does_not_leave") else {
        return;
    };
    let (victim, _victim) = lab.sandbox(Reach::World);
    let (slot, liar) = lab.sandbox(Reach::World);
    let hosts = [HOST4.parse::<IpAddr>().unwrap(), HOST6.parse().unwrap()];
    let strangers = ["9.9.9.8".parse::<IpAddr>().unwrap(), "2a00::8".parse().unwrap()];
    let families = slot.addresses.both().into_iter().zip(victim.addresses.both());
    for (family, (own, anothers)) in families.enumerate() {
        let world = [WORLD4, WORLD6][family];
        let any = if own.is_ipv4() { "0.0.0.0" } else { "::" };
        let listener = lab.world.inside(|| UdpSocket::bind((any, QUIET[family])).unwrap());
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for from in [anothers, hosts[family], strangers[family]] {
            send_from(&liar, from, world, b"lie");
        }
        send_from(&liar, own, world, b"truth");
        let mut text = [0; 16];
        let (count, _) = listener.recv_from(&mut text).unwrap();
        // One way, in order: had a lie passed, it would be here first.
        assert_eq!(&text[..count], b"truth", "{own}");
    }
}

#[test]
fn nothing_is_learned_from_what_a_sandbox_says_of_neighbours_and_routes() {
    let test = "attacks::nothing_is_learned_from_what_a_sandbox_says_of_neighbours_and_routes";
    let Some(lab) = Lab::new(test) else { return };
    let (victim, victims) = lab.sandbox(Reach::World);
    let (slot, liar) = lab.sandbox(Reach::World);
    let _server = Echo::serve(&lab.world, 80);
    // A busy machine answers late: what must come true is waited for.
    comes_true("both reach the world", || liar.hears(WORLD4, 80) && victims.hears(WORLD4, 80));
    let before = ring_knows(lab.network());
    assert!(before.contains("PERMANENT"), "{before}");
    let known_to_victim = |space: &Space| space.sh("ip neigh; ip route; ip -6 route");
    let victim_before = known_to_victim(&victims);
    for claimed in victim.addresses.both().into_iter().chain(slot.gateway.both()) {
        liar.sh(&format!("python3 -c '{FRAMES}' {claimed}"));
    }
    // Ethernet address of another: its own answers no longer reach the liar, and nobody else's do.
    liar.sh("ip link set eth0 address 02:00:00:00:00:77");
    assert!(!liar.hears(WORLD4, 80), "answers go to the address that was written down");
    comes_true("the victim has its own", || victims.hears(WORLD4, 80) && victims.hears(WORLD6, 80));
    assert_eq!(ring_knows(lab.network()), before);
    assert_eq!(known_to_victim(&victims), victim_before);
}

/// Claims an address by ARP (reply and gratuitous request) or by neighbour advertisement, and advertises itself as a router.
const FRAMES: &str = r#"
import ipaddress, socket, struct, sys
claimed = ipaddress.ip_address(sys.argv[1])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
mac = b"\x02\x00\x00\x00\x00\x77"
everybody = b"\xff" * 6
def icmp6(to, body):
    source = ipaddress.ip_address("fe80::77").packed
    to = ipaddress.ip_address(to).packed
    pseudo = source + to + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack("!%dH" % (len(pseudo) // 2), pseudo))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + to
    wire.send(everybody + mac + b"\x86\xdd" + head + body)
if claimed.version == 4:
    for operation in 1, 2:
        arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + mac + claimed.packed + everybody + claimed.packed
        wire.send(everybody + mac + b"\x08\x06" + arp)
else:
    option = b"\x02\x01" + mac
    icmp6("ff02::1", struct.pack("!BBHI", 136, 0, 0, 0x20000000) + claimed.packed + option)
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 3600, 3600, 0) + ipaddress.ip_address("2a00:77::").packed
    icmp6("ff02::1", struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + b"\x01\x01" + mac + prefix)
    icmp6("ff02::1", struct.pack("!BBHI", 137, 0, 0, 0) + claimed.packed + ipaddress.ip_address("2a00::9").packed + option)
"#;

#[test]
fn one_that_takes_all_connections_takes_its_own() {
    let Some(lab) = Lab::new("attacks::one_that_takes_all_connections_takes_its_own") else {
        return;
    };
    let (_slot, other) = lab.sandbox(Reach::World);
    let (_slot, greedy) = lab.sandbox(Reach::World);
    let _server = Echo::serve(&lab.world, 80);
    comes_true("the world is there", || greedy.connects(WORLD4, 80));
    greedy.inside(|| {
        for socket in [(); 2].map(|()| UdpSocket::bind("0.0.0.0:0").unwrap()) {
            for port in 10_000..10_000 + FLOWS {
                // Refused is fine: that is the bound.
                let _ = socket.send_to(b"mine", (WORLD4, port));
            }
        }
    });
    assert!(!greedy.connects(WORLD4, 80), "the bound holds, for every protocol");
    comes_true("others have their own", || {
        other.connects(WORLD4, 80) && other.connects(WORLD6, 80)
    });
    let count = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = lab.network().inside_ring(|| std::fs::read_to_string(count)).unwrap();
    let open: u32 = text.trim().parse().unwrap();
    assert!(
        (MAX_CONNECTIONS..2 * MAX_CONNECTIONS).contains(&open),
        "{open} connections in the ring: the bound was reached, and held"
    );
}
