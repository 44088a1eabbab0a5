//! Published ports: open while they are, from outside and from the host, never from sandboxes, and never somebody else's.

use std::io::{Read, Write};

use atoll_network::{Protocol, PublishedPort, Reach};

use crate::lab::{Echo, HOST4, HOST6, Lab, WORLD4, WORLD6, comes_true};

const HOST_PORT: u16 = 20_000;

fn both(slot_port: u16) -> [PublishedPort; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| PublishedPort {
        protocol,
        host_port: HOST_PORT,
        slot_port,
    })
}

#[test]
fn a_published_port_is_open_while_it_is_published_and_shows_who_came() {
    let Some(lab) = Lab::new("attacks::a_published_port_is_open_while_it_is_published") else {
        return;
    };
    let (slot, sandbox) = lab.sandbox(Reach::Isolated);
    let server = Echo::serve(&sandbox, 80);
    for to in [HOST4, HOST6] {
        assert!(!lab.world.connects(to, HOST_PORT), "before");
    }
    lab.network().publish(slot.number, &both(80)).unwrap();
    for (from, who) in [(&lab.world, "the world"), (&lab.host, "the host itself")] {
        for to in [HOST4, HOST6] {
            assert!(from.connects(to, HOST_PORT), "{who} {to} tcp");
            assert!(from.hears(to, HOST_PORT), "{who} {to} udp");
        }
    }
    for from in [WORLD4, WORLD6] {
        let from = from.parse().unwrap();
        comes_true("the server sees who comes", || server.visitors.lock().unwrap().contains(&from));
    }
    let mut open = lab.world.connect(HOST4, HOST_PORT);
    lab.network().unpublish(slot.number).unwrap();
    assert!(!lab.world.connects(HOST4, HOST_PORT) && !lab.host.connects(HOST6, HOST_PORT), "after");
    let mut answer = [0; 4];
    open.write_all(b"ping").unwrap();
    open.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping", "who was there stays");
}

#[test]
fn sandboxes_meet_no_published_port_of_each_other_or_their_own() {
    let Some(lab) = Lab::new("attacks::sandboxes_meet_no_published_port") else { return };
    let (slot, server) = lab.sandbox(Reach::World);
    let (_slot, client) = lab.sandbox(Reach::World);
    let _server = Echo::serve(&server, 80);
    lab.network().publish(slot.number, &both(80)).unwrap();
    for to in [HOST4, HOST6, &slot.addresses.ipv4.to_string(), &slot.addresses.ipv6.to_string()] {
        for (space, who) in [(&client, "another"), (&server, "its own")] {
            let own =
                who == "its own" && to.parse() == Ok(std::net::IpAddr::V4(slot.addresses.ipv4));
            let own = own
                || who == "its own" && to.parse() == Ok(std::net::IpAddr::V6(slot.addresses.ipv6));
            for port in [80, HOST_PORT] {
                if !(own && port == 80) {
                    assert!(!space.connects(to, port), "{who} {to}:{port}");
                }
            }
        }
    }
}

/// The reference's rules sent each connection to that port number of anybody in the world to the sandbox that published it.
#[test]
fn the_worlds_ports_of_the_same_number_are_the_worlds() {
    let Some(lab) = Lab::new("attacks::the_worlds_ports_of_the_same_number") else { return };
    let (slot, server) = lab.sandbox(Reach::World);
    let (_slot, client) = lab.sandbox(Reach::World);
    let inside = Echo::serve(&server, 80);
    let outside = Echo::serve(&lab.world, HOST_PORT);
    lab.network().publish(slot.number, &both(80)).unwrap();
    for to in [WORLD4, WORLD6] {
        assert!(client.connects(to, HOST_PORT) && lab.host.connects(to, HOST_PORT), "{to}");
    }
    comes_true("the world had all visitors", || outside.visitors.lock().unwrap().len() == 4);
    assert!(inside.visitors.lock().unwrap().is_empty());
}

/// The reference let everything into the host that came from the number of a published port.
#[test]
fn a_source_port_opens_nothing() {
    let Some(lab) = Lab::new("attacks::a_source_port_opens_nothing") else { return };
    let (slot, sandbox) = lab.sandbox(Reach::Isolated);
    let (other, _other) = lab.sandbox(Reach::Isolated);
    let _host = Echo::serve(&lab.host, 8081);
    lab.network().publish(slot.number, &both(80)).unwrap();
    let [other, _] = other.addresses.both();
    for to in [HOST4, "192.168.77.1", &other.to_string(), WORLD4] {
        let to: std::net::IpAddr = to.parse().unwrap();
        let connected = sandbox.inside(|| {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            )
            .unwrap();
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            rustix::net::bind(&socket, &std::net::SocketAddr::from(([0, 0, 0, 0], 80))).unwrap();
            rustix::net::connect(&socket, &std::net::SocketAddr::new(to, 8081)).is_ok()
        });
        assert!(!connected, "{to}");
    }
}

#[test]
fn a_port_has_one_owner_and_comes_back_with_its_end() {
    let Some(lab) = Lab::new("attacks::a_port_has_one_owner") else { return };
    let (first, _space) = lab.sandbox(Reach::Isolated);
    let (second, space) = lab.sandbox(Reach::Isolated);
    let network = lab.network();
    network.publish(first.number, &both(80)).unwrap();
    let error = network.publish(second.number, &both(81)).unwrap_err().to_string();
    assert!(error.contains("port 20000/tcp is published by slot 0"), "{error}");
    network.release(first.number).unwrap();
    network.release(first.number).unwrap();
    network.publish(second.number, &both(81)).unwrap();
    let _server = Echo::serve(&space, 81);
    assert!(lab.world.connects(HOST4, HOST_PORT));
    let rules = lab.host.sh("nft list ruleset");
    assert!(!rules.contains(&first.addresses.ipv4.to_string()), "{rules}");
}
