//! The resolver between a sandbox and servers that are scripted, on loopback addresses: each test has an asker and a server of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_keeper::{Asker, Resolver, ResolverSockets, Servers};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, SVCB};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const ASKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Nothing that must come takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

fn query(id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A));
    message
}

fn answer_to(query: &Message, addresses: &[[u8; 4]]) -> Message {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.add_query(query.queries[0].clone());
    for address in addresses {
        let name = query.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::from(*address)))));
    }
    message
}

/// What a server answers, message by message.
type Script = fn(&Message, usize) -> Vec<Vec<u8>>;

/// A server, and how often it was asked.
async fn server(script: Script, by_tcp: Option<Script>) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..count]).unwrap();
            for answer in script(&query, counted.fetch_add(1, Ordering::Relaxed)) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    if let Some(script) = by_tcp {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; usize::from(length)];
                stream.read_exact(&mut bytes).await.unwrap();
                for answer in script(&Message::from_vec(&bytes).unwrap(), 0) {
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
    }
    (address, asked)
}

/// A resolver with one asker, and where it serves.
fn resolver(servers: Vec<SocketAddr>, forward: bool) -> (Resolver, SocketAddr) {
    // Both kinds on one port: taken by the first, and free for the second most of the time.
    let sockets = (0..100)
        .find_map(|_| {
            let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = probe.local_addr().unwrap().port();
            drop(probe);
            ResolverSockets::open(&[IpAddr::V4(Ipv4Addr::LOCALHOST)], port).ok()
        })
        .unwrap();
    let address = sockets.datagrams[0].local_addr().unwrap();
    let resolver = Resolver::serve(sockets, Servers::fixed(servers)).unwrap();
    let addresses = [IpAddr::V4(ASKER), "::2".parse().unwrap()];
    resolver.admit(&Asker { addresses, forward, granted: Vec::new() });
    (resolver, address)
}

async fn ask(to: SocketAddr, from: Ipv4Addr, message: &Message) -> Option<Message> {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 4096];
    let patience = if from == ASKER { PATIENCE } else { Duration::from_millis(300) };
    let (count, _) = timeout(patience, socket.recv_from(&mut buffer)).await.ok()?.unwrap();
    Some(Message::from_vec(&buffer[..count]).unwrap())
}

async fn ask_by_tcp(to: SocketAddr, message: &Message) -> Option<Message> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((ASKER, 0))).unwrap();
    let mut stream: TcpStream = socket.connect(to).await.unwrap();
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    Some(Message::from_vec(&answer).unwrap())
}

fn addresses(message: &Message) -> Vec<String> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

#[tokio::test]
async fn without_egress_every_question_is_refused_at_once_and_goes_nowhere() {
    let (upstream, asked) = server(|_, _| Vec::new(), None).await;
    let (_resolver, address) = resolver(vec![upstream], false);
    let refused = ask(address, ASKER, &query(4)).await.unwrap();
    assert_eq!((refused.metadata.id, refused.metadata.response_code), (4, ResponseCode::Refused));
    let refused = ask_by_tcp(address, &query(5)).await.unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn with_egress_the_answer_is_the_servers_without_private_addresses() {
    let script: Script = |query, _| {
        vec![
            answer_to(query, &[[8, 8, 8, 8], [10, 0, 0, 1], [169, 254, 169, 254]])
                .to_vec()
                .unwrap(),
        ]
    };
    let (upstream, _) = server(script, None).await;
    let (resolver, address) = resolver(vec![upstream], true);
    let answer = ask(address, ASKER, &query(77)).await.unwrap();
    assert_eq!(addresses(&answer), ["8.8.8.8"]);
    assert_eq!(answer.metadata.id, 77);
    let ten = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0))..=IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255));
    let addresses_of_asker = [IpAddr::V4(ASKER), "::2".parse().unwrap()];
    resolver.admit(&Asker { addresses: addresses_of_asker, forward: true, granted: vec![ten] });
    let answer = ask(address, ASKER, &query(78)).await.unwrap();
    assert_eq!(addresses(&answer), ["8.8.8.8", "10.0.0.1"], "what it was granted");
}

#[tokio::test]
async fn strangers_and_who_was_forgotten_hear_nothing() {
    let script: Script = |query, _| vec![answer_to(query, &[[8, 8, 8, 8]]).to_vec().unwrap()];
    let (upstream, asked) = server(script, None).await;
    let (resolver, address) = resolver(vec![upstream], true);
    assert!(ask(address, STRANGER, &query(1)).await.is_none());
    assert!(ask(address, ASKER, &query(1)).await.is_some());
    resolver.forget([IpAddr::V4(ASKER), "::2".parse().unwrap()]);
    let socket = UdpSocket::bind((ASKER, 0)).await.unwrap();
    socket.send_to(&query(1).to_vec().unwrap(), address).await.unwrap();
    let silence = timeout(Duration::from_millis(300), socket.recv(&mut [0; 512])).await;
    assert!(silence.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// Wrong ids, other names, nonsense, echoes: read over, until the true answer comes.
#[tokio::test]
async fn a_server_that_lies_is_not_believed() {
    let script: Script = |query, _| {
        let mut forged = answer_to(query, &[[6, 6, 6, 6]]);
        forged.metadata.id = query.metadata.id.wrapping_add(1);
        let mut other = answer_to(query, &[[6, 6, 6, 6]]);
        other.queries = vec![Query::query(Name::from_ascii("evil.com.").unwrap(), RecordType::A)];
        let loops = [&query.to_vec().unwrap()[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
        vec![
            forged.to_vec().unwrap(),
            other.to_vec().unwrap(),
            query.to_vec().unwrap(),
            b"nonsense".to_vec(),
            loops,
            answer_to(query, &[[8, 8, 8, 8]]).to_vec().unwrap(),
        ]
    };
    let (upstream, _) = server(script, None).await;
    let (_resolver, address) = resolver(vec![upstream], true);
    assert_eq!(addresses(&ask(address, ASKER, &query(1)).await.unwrap()), ["8.8.8.8"]);
}

#[tokio::test]
async fn a_silent_server_costs_time_and_the_next_is_asked() {
    let (silent, _) = server(|_, _| Vec::new(), None).await;
    let script: Script = |query, _| vec![answer_to(query, &[[9, 9, 9, 9]]).to_vec().unwrap()];
    let (good, _) = server(script, None).await;
    let (_resolver, address) = resolver(vec![silent, good], true);
    assert_eq!(addresses(&ask(address, ASKER, &query(1)).await.unwrap()), ["9.9.9.9"]);
    let (_none, address) = resolver(Vec::new(), true);
    let failed = ask(address, ASKER, &query(1)).await.unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn what_is_too_long_for_a_datagram_comes_by_tcp() {
    let short: Script = |query, _| {
        let mut message = answer_to(query, &[]);
        message.metadata.truncation = true;
        vec![message.to_vec().unwrap()]
    };
    let long: Script = |query, _| {
        let many: Vec<[u8; 4]> = (0..200).map(|last| [8, 8, 4, last]).collect();
        vec![answer_to(query, &many).to_vec().unwrap()]
    };
    let (upstream, _) = server(short, Some(long)).await;
    let (_resolver, address) = resolver(vec![upstream], true);
    let truncated = ask(address, ASKER, &query(1)).await.unwrap();
    assert!(truncated.metadata.truncation && truncated.answers.is_empty());
    assert_eq!(ask_by_tcp(address, &query(1)).await.unwrap().answers.len(), 200);
}

/// One sandbox's flood is answered with SERVFAIL beyond its allowance, and costs others nothing.
#[tokio::test]
async fn a_flood_is_bounded() {
    let script: Script = |query, _| vec![answer_to(query, &[[8, 8, 8, 8]]).to_vec().unwrap()];
    let (upstream, asked) = server(script, None).await;
    let (resolver, address) = resolver(vec![upstream], true);
    let socket = UdpSocket::bind((ASKER, 0)).await.unwrap();
    let mut failed = 0;
    let mut buffer = [0; 4096];
    for round in 0..1000_u16 {
        socket.send_to(&query(round).to_vec().unwrap(), address).await.unwrap();
        let count = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        let answer = Message::from_vec(&buffer[..count]).unwrap();
        failed += usize::from(answer.metadata.response_code == ResponseCode::ServFail);
    }
    assert!(failed > 300, "{failed} of 1000 were beyond what it may ask");
    assert_eq!(asked.load(Ordering::Relaxed), 1000 - failed);
    let addresses_of_other = [IpAddr::V4(STRANGER), "::3".parse().unwrap()];
    resolver.admit(&Asker { addresses: addresses_of_other, forward: true, granted: Vec::new() });
    assert_eq!(addresses(&ask(address, STRANGER, &query(1)).await.unwrap()), ["8.8.8.8"]);
}

#[tokio::test]
async fn nonsense_is_answered_as_such_or_not_at_all() {
    let (_resolver, address) = resolver(Vec::new(), true);
    let socket = UdpSocket::bind((ASKER, 0)).await.unwrap();
    for nonsense in [&b""[..], b"x", &[0xff; 12], &[0xff; 2048]] {
        socket.send_to(nonsense, address).await.unwrap();
    }
    socket.send_to(&[0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12], address).await.unwrap();
    let mut buffer = [0; 512];
    let count = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (9, ResponseCode::FormErr));
}

/// Answers that are never whole, or have no end: each costs one server's time at most, and the next is asked.
#[tokio::test]
async fn streams_that_drip_or_break_off_cost_a_bounded_time() {
    let good: Script = |query, _| vec![answer_to(query, &[[9, 9, 9, 9]]).to_vec().unwrap()];
    let (honest, _) = server(good, Some(good)).await;
    for (name, script) in [("drips", DRIPS), ("breaks off", BREAKS_OFF), ("is huge nonsense", HUGE)]
    {
        let liar = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = liar.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = liar.accept().await {
                tokio::spawn(script(stream));
            }
        });
        let (_resolver, resolver) = resolver(vec![address, honest], true);
        let answer = ask_by_tcp(resolver, &query(1)).await.unwrap();
        assert_eq!(addresses(&answer), ["9.9.9.9"], "after one that {name}");
    }
}

/// Serves a stream without telling the truth.
type Liar = fn(TcpStream) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A byte at a time, for ever.
const DRIPS: Liar = |mut stream| {
    Box::pin(async move {
        let _ = stream.write_u16(60_000).await;
        while stream.write_u8(0).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
};

/// Less than it has said.
const BREAKS_OFF: Liar = |mut stream| {
    Box::pin(async move {
        let _ = stream.write_u16(500).await;
        let _ = stream.write_all(&[0; 100]).await;
    })
};

/// As much as an answer can have, of names that point at each other.
const HUGE: Liar = |mut stream| {
    Box::pin(async move {
        let _ = stream.write_u16(u16::MAX).await;
        let _ = stream.write_all(&[0xc0; u16::MAX as usize]).await;
        let _ = stream.read(&mut [0; 512]).await;
    })
};

/// Aliases without end fill an answer of 64 KiB: what is passed on is bounded, and fits what the sandbox can take.
#[tokio::test]
async fn a_chain_of_aliases_is_cut() {
    let chain: Script = |query, _| {
        let mut message = answer_to(query, &[]);
        let name = |at: usize| Name::from_ascii(format!("a{at}.example.com.")).unwrap();
        for at in 0..2000 {
            let alias = RData::CNAME(CNAME(name(at + 1)));
            message.add_answer(Record::from_rdata(name(at), 60, alias));
        }
        let whole = message.to_vec().unwrap();
        assert!(whole.len() > 30_000, "{}", whole.len());
        vec![whole]
    };
    let none: Script = |query, _| {
        let mut message = answer_to(query, &[]);
        message.metadata.truncation = true;
        vec![message.to_vec().unwrap()]
    };
    let (upstream, _) = server(none, Some(chain)).await;
    let (_resolver, address) = resolver(vec![upstream], true);
    let answer = ask_by_tcp(address, &query(1)).await.unwrap();
    assert!((1..=512).contains(&answer.answers.len()), "{} records", answer.answers.len());
    assert!(ask(address, ASKER, &query(2)).await.unwrap().metadata.truncation);
}

/// A service record leads to its hints as well.
#[tokio::test]
async fn private_hints_of_services_are_left_out() {
    let script: Script = |query, _| {
        let mut message = answer_to(query, &[[8, 8, 8, 8]]);
        for hint in [[10, 0, 0, 1], [9, 9, 9, 9]] {
            let hint = SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::from(hint))]));
            let service = SVCB::new(1, Name::root(), vec![(SvcParamKey::Ipv4Hint, hint)]);
            let name = query.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::HTTPS(HTTPS(service))));
        }
        vec![message.to_vec().unwrap()]
    };
    let (upstream, _) = server(script, None).await;
    let (_resolver, address) = resolver(vec![upstream], true);
    let answer = ask(address, ASKER, &query(1)).await.unwrap();
    let services: Vec<String> = answer
        .answers
        .iter()
        .filter(|record| matches!(record.data, RData::HTTPS(_)))
        .map(|record| record.data.to_string())
        .collect();
    assert!(services.len() == 1 && services[0].contains("9.9.9.9"), "{services:?}");
}
