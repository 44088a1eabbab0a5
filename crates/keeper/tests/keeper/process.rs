//! The keeper as a process, and its server's side, over loopback. Every test has an instance of its own; the sandboxes are servers on loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::time::{Duration, Instant};

use crate::support::{Instance, PATIENCE, echo_server, free_port, member, published, wait_until};
use atoll_keeper::{KeeperClient, KeeperError, Member, PortHold, Protocol};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn connect(address: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What needs ports that were free. A child that another test has just forked may hold them for a moment: until its exec.
fn soon<T>(mut attempt: impl FnMut() -> Result<T, KeeperError>) -> T {
    wait_for(|| match attempt() {
        Ok(done) => Some(done),
        Err(KeeperError::Taken { .. }) => None,
        Err(error) => panic!("{error}"),
    })
}

/// Tells the keeper of a sandbox.
fn put(keeper: &KeeperClient, member: &Member) {
    soon(|| keeper.put(member));
}

/// Tells the keeper of all its sandboxes.
fn set(keeper: &KeeperClient, members: &[Member]) {
    wait_until("their ports are free", || keeper.set(members).unwrap().is_empty());
}

/// Whether what is said comes back.
fn echoes(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<bool> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    Ok(back == text)
}

#[test]
fn a_held_port_is_nobody_elses_and_refuses_at_once() {
    let instance = Instance::new("held");
    let keeper = instance.keeper();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let hold = PortHold { protocol, host_port: free_port() };
        soon(|| keeper.hold("alice", &[hold]));
        soon(|| keeper.hold("alice", &[hold]));
        for address in [
            "0.0.0.0".parse().unwrap(),
            "127.0.0.1".parse().unwrap(),
            "::".parse().unwrap(),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let there = SocketAddr::new(address, hold.host_port);
            let bound = match protocol {
                // The standard library lets listeners share with what is over.
                Protocol::Tcp => TcpListener::bind(there).map(drop),
                Protocol::Udp => UdpSocket::bind(there).map(drop),
            };
            assert_eq!(bound.unwrap_err().kind(), ErrorKind::AddrInUse, "{protocol} {there}");
        }
        for address in [V4, V6] {
            let there = SocketAddr::new(address, hold.host_port);
            let begun = Instant::now();
            let refused = match protocol {
                Protocol::Tcp => connect(address, hold.host_port).map(drop).unwrap_err(),
                Protocol::Udp => {
                    let socket = UdpSocket::bind((address, 0)).unwrap();
                    socket.connect(there).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket.send(b"hello").unwrap();
                    socket.recv(&mut [0]).unwrap_err()
                }
            };
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{protocol} {there}");
            assert!(begun.elapsed() < PATIENCE / 2);
        }
        let other = keeper.hold("bob", &[hold]).unwrap_err();
        assert!(
            matches!(&other, KeeperError::Taken { by: Some(by), .. } if by == "alice"),
            "{other}"
        );
        keeper.remove("alice").unwrap();
        soon(|| keeper.hold("bob", &[hold]));
        keeper.remove("bob").unwrap();
    }
}

#[test]
fn a_port_of_a_program_outside_is_said_to_be_taken_and_nothing_is_held() {
    let instance = Instance::new("taken");
    let keeper = instance.keeper();
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken =
        PortHold { protocol: Protocol::Tcp, host_port: outside.local_addr().unwrap().port() };
    let free = PortHold { protocol: Protocol::Tcp, host_port: free_port() };
    let error = keeper.hold("alice", &[free, taken]).unwrap_err();
    let expected = format!("{taken} of this host is taken by a program outside of atoll");
    assert_eq!(error.to_string(), expected);
    assert!(keeper.inventory().unwrap().is_empty());
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, free.host_port)).unwrap());
}

#[test]
fn an_open_port_leads_to_the_sandbox_and_closing_it_breaks_nobody() {
    let instance = Instance::new("open");
    let keeper = instance.keeper();
    let (target, _) = echo_server();
    let mut alice = published("alice", Protocol::Tcp, target);
    let port = alice.ports[0].hold.host_port;
    put(&keeper, &alice);
    let mut connections: Vec<TcpStream> =
        [V4, V6].iter().map(|address| connect(*address, port).unwrap()).collect();
    for round in 0..3 {
        alice.ports[0].open = false;
        put(&keeper, &alice);
        assert_eq!(connect(V4, port).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for connection in &mut connections {
            assert!(echoes(connection, b"still here").unwrap(), "round {round}");
        }
        alice.ports[0].open = true;
        put(&keeper, &alice);
        put(&keeper, &alice);
        connections.push(connect(V4, port).unwrap());
        assert!(echoes(connections.last_mut().unwrap(), b"new").unwrap());
    }
    assert_eq!(keeper.inventory().unwrap()[0].connections, 5);
    keeper.remove("alice").unwrap();
    for connection in &mut connections {
        let over = echoes(connection, b"over").unwrap_err().kind();
        assert!(
            matches!(
                over,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
            ),
            "{over}"
        );
    }
    assert!(keeper.inventory().unwrap().is_empty());
    assert_eq!(connect(V4, port).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// A sandbox that listens on one family is reached through the other, and one that does not listen breaks its clients off at once.
#[test]
fn a_client_is_led_to_where_the_sandbox_listens() {
    let instance = Instance::new("family");
    let keeper = instance.keeper();
    let (target, _) = echo_server();
    let alice = published("alice", Protocol::Tcp, target);
    put(&keeper, &alice);
    // The server listens on IPv4 alone.
    let mut client = connect(V6, alice.ports[0].hold.host_port).unwrap();
    assert!(echoes(&mut client, b"over the other").unwrap());
    let nobody = published("nobody", Protocol::Tcp, free_port());
    put(&keeper, &nobody);
    let begun = Instant::now();
    // The end may come before the client has looked at its connection.
    let client = connect(V4, nobody.ports[0].hold.host_port);
    let told = client.and_then(|mut client| client.read(&mut [0]));
    assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < PATIENCE / 2);
}

#[test]
fn ends_and_resets_reach_the_other_side_and_a_slow_reader_slows_the_writer() {
    let instance = Instance::new("ends");
    let keeper = instance.keeper();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let alice = published("alice", Protocol::Tcp, listener.local_addr().unwrap().port());
    put(&keeper, &alice);
    let pair = || {
        let client = connect(V4, alice.ports[0].hold.host_port).unwrap();
        let (sandbox, _) = listener.accept().unwrap();
        sandbox.set_read_timeout(Some(PATIENCE)).unwrap();
        (client, sandbox)
    };
    // One direction ends, the other goes on.
    let (mut client, mut sandbox) = pair();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut request = String::new();
    sandbox.read_to_string(&mut request).unwrap();
    assert_eq!(request, "request");
    sandbox.write_all(b"answer").unwrap();
    drop(sandbox);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    // A reset is one on the other side too, also behind an end.
    for (ended, from_client) in [(false, true), (false, false), (true, true), (true, false)] {
        let (client, sandbox) = pair();
        let (breaker, mut other) = if from_client { (client, sandbox) } else { (sandbox, client) };
        if ended {
            breaker.shutdown(Shutdown::Write).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
        }
        rustix::net::sockopt::set_socket_linger(&breaker, Some(Duration::ZERO)).unwrap();
        drop(breaker);
        if ended {
            wait_until("the reset arrives", || other.write_all(b"x").is_err());
        } else {
            assert_eq!(other.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
    // Nobody reads: the writer comes to a stop, and when somebody does, everything arrives.
    let (mut client, mut sandbox) = pair();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0_usize;
    let chunk = [7_u8; 64 * 1024];
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(500) {
        match client.write(&chunk) {
            Ok(count) => {
                sent += count;
                quiet_since = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 256 << 20, "the writer is never stopped");
        std::thread::yield_now();
    }
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = sandbox.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        assert!(buffer[..count].iter().all(|byte| *byte == 7));
        received += count;
    }
    assert_eq!(received, sent);
}

#[test]
fn connections_of_one_sandbox_are_bounded_and_cost_others_nothing() {
    let instance = Instance::new("bounded");
    let keeper = instance.keeper();
    let (target, _) = echo_server();
    let (alice, bob) =
        (published("alice", Protocol::Tcp, target), published("bob", Protocol::Tcp, target));
    put(&keeper, &alice);
    put(&keeper, &bob);
    let mut open = Vec::new();
    let refused = loop {
        // A refusal may be so quick that the client is not even told of its connection.
        let client = connect(V4, alice.ports[0].hold.host_port);
        match client.and_then(|mut client| echoes(&mut client, b"in").map(|_| client)) {
            Ok(client) => open.push(client),
            Err(error) => break error,
        }
        assert!(open.len() < 2000, "there is no bound");
    };
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
    assert_eq!(open.len(), 512);
    let mut client = connect(V4, bob.ports[0].hold.host_port).unwrap();
    assert!(echoes(&mut client, b"not mine").unwrap());
    drop(open.pop());
    wait_until("a place is free", || {
        let client = connect(V4, alice.ports[0].hold.host_port);
        client.and_then(|mut client| echoes(&mut client, b"in again")).unwrap_or(false)
    });
}

#[test]
fn datagrams_find_the_sandbox_and_back_and_flows_outlive_the_closing() {
    let instance = Instance::new("datagrams");
    let keeper = instance.keeper();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = server.recv_from(&mut buffer) {
            if &buffer[..count] == b"end" {
                return;
            }
            server.send_to(&buffer[..count], from).unwrap();
        }
    });
    let mut alice = published("alice", Protocol::Udp, target);
    let port = alice.ports[0].hold.host_port;
    put(&keeper, &alice);
    let client = |to: Ipv4Addr| {
        let socket = UdpSocket::bind((to, 0)).unwrap();
        socket.connect((to, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let ask = |socket: &UdpSocket, text: &[u8]| {
        socket.send(text)?;
        let mut buffer = [0; 64];
        let count = socket.recv(&mut buffer)?;
        assert_eq!(&buffer[..count], text);
        std::io::Result::Ok(())
    };
    let (first, second) = (client(Ipv4Addr::LOCALHOST), client(Ipv4Addr::LOCALHOST));
    // Many at once, before the flow has begun: none is taken for somebody else's.
    for _ in 0..20 {
        first.send(b"burst").unwrap();
    }
    for _ in 0..20 {
        let mut buffer = [0; 64];
        assert_eq!(first.recv(&mut buffer).unwrap(), 5);
    }
    ask(&second, b"second").unwrap();
    assert_eq!(keeper.inventory().unwrap()[0].connections, 2);
    alice.ports[0].open = false;
    put(&keeper, &alice);
    ask(&first, b"goes on").unwrap();
    let stranger = client(Ipv4Addr::LOCALHOST);
    assert_eq!(ask(&stranger, b"late").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    alice.ports[0].open = true;
    put(&keeper, &alice);
    ask(&stranger, b"open again").unwrap();
    ask(&first, b"the same flow").unwrap();
    assert_eq!(keeper.inventory().unwrap()[0].connections, 3);
    keeper.remove("alice").unwrap();
    // What is sent while they are closed is answered by nobody.
    first.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    wait_until("the flows are over", || {
        ask(&first, b"over").is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused)
    });
    drop(UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", (Ipv4Addr::LOCALHOST, target)));
}

/// A server is killed: its connections through the keeper live, the next server finds them, and the same wanted state changes nothing.
#[test]
fn connections_survive_a_killed_server_and_the_next_finds_them() {
    let instance = Instance::new("survive");
    let (target, _) = echo_server();
    let port = free_port();
    let mut server = instance.server(port, target);
    let mut client = wait_for(|| connect(V4, port).ok());
    assert!(echoes(&mut client, b"before").unwrap());
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(echoes(&mut client, b"without a server").unwrap());
    let mut new = wait_for(|| connect(V6, port).ok());
    assert!(echoes(&mut new, b"also new ones").unwrap());
    let keeper = instance.attached();
    assert!(!keeper.is_new());
    let holdings = keeper.inventory().unwrap();
    assert_eq!((holdings[0].member.uid.as_str(), holdings[0].connections), ("served", 2));
    let members: Vec<Member> = holdings.into_iter().map(|holding| holding.member).collect();
    set(&keeper, &members);
    assert!(echoes(&mut client, b"after").unwrap());
    // What the next server does not want goes.
    assert!(keeper.set(&[]).unwrap().is_empty());
    assert!(echoes(&mut client, b"over").is_err());
}

fn wait_for<T>(mut find: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until("it is there", || {
        found = find();
        found.is_some()
    });
    found.unwrap()
}

/// A keeper is killed: whoever is attached sees it at once, begins another, and says the wanted state again.
#[test]
fn a_killed_keeper_is_noticed_and_another_takes_its_place() {
    let instance = Instance::new("killed");
    let keeper = instance.keeper();
    let (target, _) = echo_server();
    let (alice, bob) =
        (published("alice", Protocol::Tcp, target), published("bob", Protocol::Tcp, target));
    set(&keeper, &[alice.clone(), bob.clone()]);
    let pid = rustix::process::Pid::from_raw(keeper.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    keeper.wait_for_end();
    assert!(matches!(keeper.put(&alice), Err(KeeperError::Gone(_))));
    // Meanwhile somebody has taken a port: that sandbox is told, the other served.
    let thief = TcpListener::bind((Ipv4Addr::LOCALHOST, bob.ports[0].hold.host_port)).unwrap();
    let keeper = instance.keeper();
    assert!(keeper.is_new());
    let refused = wait_for(|| {
        let refused = keeper.set(&[alice.clone(), bob.clone()]).unwrap();
        (refused.len() == 1).then_some(refused)
    });
    assert!(
        matches!(&refused[..], [(uid, KeeperError::Taken { by: None, .. })] if uid == "bob"),
        "{refused:?}"
    );
    let mut client = connect(V4, alice.ports[0].hold.host_port).unwrap();
    assert!(echoes(&mut client, b"again").unwrap());
    drop(thief);
    // A child that another test has just forked may hold the port for a moment more.
    wait_until("the port is free", || keeper.put(&bob).is_ok());
}

#[test]
fn a_keeper_ends_when_nobody_needs_it_and_there_is_one_at_a_time() {
    let instance = Instance::new("ends-itself");
    let first = instance.keeper();
    let second = instance.keeper();
    assert_eq!((first.pid(), second.is_new()), (second.pid(), false));
    // The newest is the server.
    first.wait_for_end();
    assert!(matches!(first.inventory(), Err(KeeperError::Gone(_))));
    drop(second);
    wait_until("it ends", || instance.attached_if_there().is_none());
    let third = instance.keeper();
    let hold = PortHold { protocol: Protocol::Tcp, host_port: free_port() };
    soon(|| third.hold("alice", &[hold]));
    third.retire().unwrap();
    assert!(instance.attached_if_there().is_none());
    assert!(!instance.path().join("network/keeper.sock").exists());
}

#[test]
fn an_instance_with_a_long_path_has_a_keeper_too_and_a_broken_program_is_told() {
    let instance = Instance::new(&"long".repeat(40));
    instance.keeper().hold("alice", &[]).unwrap();
    let instance = Instance::new("broken");
    let error = instance.begin_with("/bin/false").unwrap_err();
    assert!(error.to_string().contains("it ends at once"), "{error}");
    let error = instance.begin_with("/nonexistent").unwrap_err();
    assert!(matches!(error, KeeperError::NotStarted { .. }), "{error}");
}

#[test]
fn nonsense_on_the_socket_and_wishes_that_cannot_be_do_no_harm() {
    let instance = Instance::new("nonsense");
    let keeper = instance.keeper();
    keeper.hold("alice", &[]).unwrap();
    let mut bad = member("bob");
    bad.ports = vec![crate::support::port(Protocol::Tcp, 0, 80)];
    assert!(matches!(keeper.put(&bad), Err(KeeperError::Failed { .. })));
    bad.ports = vec![crate::support::port(Protocol::Tcp, free_port(), 80); 2];
    assert!(matches!(keeper.put(&bad), Err(KeeperError::Failed { .. })));
    bad = member(&"x".repeat(1000));
    assert!(matches!(keeper.put(&bad), Err(KeeperError::Failed { .. })));
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 300_000]] {
        let mut stream =
            std::os::unix::net::UnixStream::connect(instance.path().join("network/keeper.sock"))
                .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may hang up before it has read all of it.
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(Shutdown::Write);
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let keeper = instance.attached();
    assert_eq!(keeper.inventory().unwrap().len(), 1, "what alice has is untouched");
}

#[test]
fn it_is_small() {
    let instance = Instance::new("small");
    let keeper: KeeperClient = instance.keeper();
    let members: Vec<Member> =
        (0..50).map(|at| published(&format!("m{at}"), Protocol::Tcp, 80)).collect();
    set(&keeper, &members);
    let status = std::fs::read_to_string(format!("/proc/{}/status", keeper.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kibibytes < 6 * 1024, "{line}");
}
