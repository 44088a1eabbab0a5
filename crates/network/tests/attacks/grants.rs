//! What a sandbox reaches because it was granted, and what no grant opens.

use std::net::IpAddr;

use atoll_network::{Grant, Protocol, Reach};

use crate::lab::{Echo, HOST4, HOST6, Lab, WORLD4, WORLD6};

fn grant(first: &str, last: &str, protocol: Protocol, port: u16) -> Grant {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    Grant { addresses: address(first)..=address(last), protocol, ports: port..=port }
}

#[test]
fn a_grant_opens_its_addresses_ports_and_protocol_to_its_sandbox_alone() {
    let Some(lab) = Lab::new("attacks::a_grant_opens_its_addresses") else { return };
    let (_slot, granted) = lab.granted(vec![
        grant("192.168.77.0", "192.168.77.255", Protocol::Tcp, 80),
        grant("192.168.77.2", "192.168.77.2", Protocol::Udp, 81),
        grant("fd99::", "fd99::ffff", Protocol::Tcp, 80),
    ]);
    let (_slot, other) = lab.sandbox(Reach::World);
    let _servers = [Echo::serve(&lab.world, 80), Echo::serve(&lab.world, 81)];
    for (to, port, tcp, udp) in [
        ("192.168.77.2", 80, true, false),
        ("192.168.77.2", 81, false, true),
        ("10.9.9.9", 80, false, false),
        ("fd99::9", 80, true, false),
        ("fd99::9", 81, false, false),
        (WORLD4, 80, false, false),
        (WORLD6, 81, false, false),
    ] {
        assert_eq!(
            (granted.connects(to, port), granted.hears(to, port)),
            (tcp, udp),
            "{to} {port}"
        );
    }
    for to in ["192.168.77.2", "fd99::9"] {
        assert!(!other.connects(to, 80) && !other.hears(to, 81), "{to}: granted to another");
    }
}

#[test]
fn the_widest_grant_opens_no_metadata_no_host_and_no_sandbox() {
    let Some(lab) = Lab::new("attacks::the_widest_grant_opens_no_metadata") else { return };
    let everything = |protocol| {
        let four =
            Grant { ports: 1..=u16::MAX, ..grant("0.0.0.0", "255.255.255.255", protocol, 1) };
        let ffff = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        [four.clone(), Grant { ports: 1..=u16::MAX, ..grant("::", ffff, protocol, 1) }]
    };
    let all = [everything(Protocol::Tcp), everything(Protocol::Udp)].concat();
    let (_slot, granted) = lab.granted(all);
    let (near, other) = lab.sandbox(Reach::World);
    let _servers =
        [Echo::serve(&lab.world, 80), Echo::serve(&lab.host, 80), Echo::serve(&other, 80)];
    for to in [WORLD4, WORLD6, "192.168.77.2", "10.9.9.9", "fd99::9"] {
        assert!(granted.connects(to, 80), "{to}");
    }
    for to in ["169.254.169.254", HOST4, HOST6, "192.168.77.1"] {
        assert!(!granted.connects(to, 80) && !granted.hears(to, 80), "{to}");
    }
    for to in near.addresses.both() {
        let to = to.to_string();
        assert!(!granted.connects(&to, 80) && !granted.hears(&to, 80), "{to}");
    }
}

#[test]
fn a_datagram_in_fragments_goes_where_a_whole_one_goes() {
    let Some(lab) = Lab::new("attacks::a_datagram_in_fragments") else { return };
    let (near, other) = lab.sandbox(Reach::World);
    let (_slot, sandbox) = lab.sandbox(Reach::World);
    let _servers =
        [Echo::serve(&lab.world, 80), Echo::serve(&lab.host, 80), Echo::serve(&other, 80)];
    let large = vec![b'x'; 8000];
    for to in [WORLD4, WORLD6] {
        assert!(sandbox.hears_of(to, 80, &large), "{to}");
    }
    let [near4, near6] = near.addresses.both().map(|it| it.to_string());
    for to in [HOST4, HOST6, "192.168.77.2", "169.254.169.254", "fd99::9", &near4, &near6] {
        assert!(!sandbox.hears_of(to, 80, &large), "{to}");
    }
}

#[test]
fn other_resolvers_than_atolls_are_not_reached() {
    let Some(lab) = Lab::new("attacks::other_resolvers_than_atolls") else { return };
    let (_slot, sandbox) = lab.sandbox(Reach::World);
    let _servers = [Echo::serve(&lab.world, 53), Echo::serve(&lab.world, 853)];
    for (to, port) in [(WORLD4, 53), (WORLD6, 53), (WORLD4, 853), (WORLD6, 853)] {
        assert!(!sandbox.connects(to, port) && !sandbox.hears(to, port), "{to} {port}");
    }
}
