//! The keeper's resolver, in a network namespace that the test makes: names for who asks from it, by servers of this host's namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::support::{Instance, PATIENCE, member};
use atoll_keeper::{Addresses, KeeperClient, Member, Names, ResolverPlace};
use atoll_sys::network_namespace::{PreparedNetwork, prepare};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

const GATEWAY: Addresses =
    Addresses { ipv4: Ipv4Addr::new(127, 0, 0, 53), ipv6: Ipv6Addr::LOCALHOST };
const ALICE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const BOB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A namespace whose loopback plays the ring.
struct Ring(PreparedNetwork);

impl Ring {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: names: needs root");
            return None;
        }
        let made = std::thread::spawn(|| prepare().unwrap());
        Some(Self(made.join().unwrap()))
    }

    fn place(&self, servers: Vec<SocketAddr>) -> ResolverPlace {
        let (pid, fd) = (std::process::id(), self.0.namespace.as_raw_fd());
        let ring = format!("/proc/{pid}/fd/{fd}").into();
        ResolverPlace { ring, gateway: GATEWAY, port: 53, servers }
    }

    /// Asks from inside; `None`: no answer.
    fn ask(&self, from: IpAddr, to: IpAddr) -> Option<Message> {
        self.ask_within(PATIENCE, from, to)
    }

    fn ask_within(&self, patience: Duration, from: IpAddr, to: IpAddr) -> Option<Message> {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                atoll_sys::clone::enter(self.0.namespace.as_fd()).unwrap();
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.set_read_timeout(Some(patience)).unwrap();
                socket.connect((to, 53)).ok()?;
                let mut query = Message::new(7, MessageType::Query, OpCode::Query);
                let name = Name::from_ascii("example.com.").unwrap();
                query.add_query(Query::query(name, RecordType::A));
                socket.send(&query.to_vec().unwrap()).ok()?;
                let mut buffer = [0; 4096];
                let count = socket.recv(&mut buffer).ok()?;
                Some(Message::from_vec(&buffer[..count]).unwrap())
            });
            asking.join().unwrap()
        })
    }

    fn code(&self, from: Ipv4Addr) -> ResponseCode {
        self.ask(from.into(), GATEWAY.ipv4.into()).unwrap().metadata.response_code
    }
}

/// A server of the world, outside of the ring.
fn world() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..count]).unwrap();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.add_query(query.queries[0].clone());
            for address in [[8, 8, 8, 8], [10, 0, 0, 1]] {
                let data = RData::A(A(Ipv4Addr::from(address)));
                answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, data));
            }
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    address
}

fn asker(uid: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr, names: Names) -> Member {
    Member { addresses: Some(Addresses { ipv4, ipv6 }), names, ..member(uid) }
}

fn kill(keeper: &KeeperClient) {
    let pid = rustix::process::Pid::from_raw(keeper.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    keeper.wait_for_end();
}

#[test]
fn each_sandbox_gets_the_names_that_it_may_know_also_without_a_server() {
    let Some(ring) = Ring::new() else { return };
    let instance = Instance::new("names");
    let keeper = instance.keeper();
    let place = ring.place(vec![world()]);
    keeper.resolve(Some(&place)).unwrap();
    let forward = Names::Forward { granted: Vec::new() };
    let alice = asker("alice", ALICE, Ipv6Addr::LOCALHOST, forward.clone());
    // Nobody has this address: it is not asked from.
    let mut bob = asker("bob", BOB, "::3".parse().unwrap(), Names::Refuse);
    assert!(keeper.set(&[alice.clone(), bob.clone()]).unwrap().is_empty());
    let answers = |from: IpAddr, to: IpAddr| -> Vec<String> {
        let message = ring.ask(from, to).unwrap();
        message.answers.iter().map(|record| record.data.to_string()).collect()
    };
    assert_eq!(answers(ALICE.into(), GATEWAY.ipv4.into()), ["8.8.8.8"]);
    assert_eq!(answers(Ipv6Addr::LOCALHOST.into(), GATEWAY.ipv6.into()), ["8.8.8.8"]);
    assert_eq!(ring.code(BOB), ResponseCode::Refused);
    // No server: nothing changes.
    drop(keeper);
    assert_eq!(answers(ALICE.into(), GATEWAY.ipv4.into()), ["8.8.8.8"]);
    assert_eq!(ring.code(BOB), ResponseCode::Refused);
    // The next one says the same, and then something else.
    let keeper = instance.attached();
    keeper.resolve(Some(&place)).unwrap();
    bob.names = forward;
    assert!(keeper.set(&[alice.clone(), bob]).unwrap().is_empty());
    assert_eq!(ring.code(BOB), ResponseCode::NoError);
    // The keeper dies: nobody answers until another has been told.
    kill(&keeper);
    assert!(ring.ask(ALICE.into(), GATEWAY.ipv4.into()).is_none());
    let keeper = instance.keeper();
    keeper.put(&alice).unwrap();
    keeper.resolve(Some(&place)).unwrap();
    assert_eq!(answers(ALICE.into(), GATEWAY.ipv4.into()), ["8.8.8.8"]);
    keeper.resolve(None).unwrap();
    let patience = Duration::from_millis(300);
    assert!(ring.ask_within(patience, ALICE.into(), GATEWAY.ipv4.into()).is_none());
}

/// The same wanted state once more must not give a sandbox its whole allowance again.
#[test]
fn what_is_said_again_does_not_renew_an_allowance() {
    let Some(ring) = Ring::new() else { return };
    let instance = Instance::new("allowance");
    let keeper = instance.keeper();
    keeper.resolve(Some(&ring.place(vec![world()]))).unwrap();
    let forward = Names::Forward { granted: Vec::new() };
    let alice = asker("alice", ALICE, "::3".parse().unwrap(), forward);
    let mut refused = false;
    for _ in 0..5_000 {
        keeper.put(&alice).unwrap();
        if ring.code(ALICE) == ResponseCode::ServFail {
            refused = true;
            break;
        }
    }
    assert!(refused, "put between all questions, it may ask for ever");
}

#[test]
fn a_ring_that_is_not_there_is_told() {
    let instance = Instance::new("no-ring");
    let keeper = instance.keeper();
    let ring = instance.path().join("network/ring");
    let place = ResolverPlace { ring, gateway: GATEWAY, port: 53, servers: Vec::new() };
    let error = keeper.resolve(Some(&place)).unwrap_err().to_string();
    assert!(error.contains("network/ring"), "{error}");
}
