//! Asking the host's servers: one after the other, each with a fresh port and a random id, within a bounded time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{Question, Reply, answer};

/// How long one server may take (guess: a recursion over the world takes less than a second, a lost datagram for ever).
const EACH: Duration = Duration::from_millis(1500);
/// How long all of it may take. SOURCE: resolvers in sandboxes give up after 5 s by default (resolv.conf(5)).
const ALL: Duration = Duration::from_millis(4500);
/// Largest answer by datagram that is read: more than was asked for is truncated by who reads it.
const MAX_DATAGRAM_BYTES: usize = 4096;
/// Wrong answers that are read over before a server is given up: a liar may send as many as it likes.
const MAX_WRONG: usize = 16;

/// The first answer that is one; `None`: no server gave any.
pub(super) async fn ask(
    question: &Question,
    servers: &[SocketAddr],
    by_tcp: bool,
    may_be_told: &(dyn Fn(IpAddr) -> bool + Sync),
) -> Option<Reply> {
    let deadline = Instant::now() + ALL;
    let mut truncated = None;
    for server in servers.iter().chain(servers) {
        if Instant::now() >= deadline {
            break;
        }
        let each = (Instant::now() + EACH).min(deadline);
        let id = random_id()?;
        let bytes = question.for_upstream(id);
        let read = |answered: &[u8]| answer(question, id, answered, may_be_told);
        let reply = if by_tcp {
            timeout_at(each, by_stream(*server, &bytes, &read)).await
        } else {
            timeout_at(each, by_datagram(*server, &bytes, &read)).await
        };
        match reply {
            Ok(Ok(Some(reply))) if by_tcp && reply.is_truncated() => truncated = Some(reply),
            Ok(Ok(Some(reply))) => return Some(reply),
            // Refused, nonsense or silence: the next one.
            Ok(Ok(None) | Err(_)) | Err(_) => {}
        }
    }
    truncated
}

fn random_id() -> Option<u16> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).ok()?;
    Some(u16::from_ne_bytes(id))
}

async fn by_datagram(
    server: SocketAddr,
    query: &[u8],
    read: &(dyn Fn(&[u8]) -> Option<Reply> + Sync),
) -> std::io::Result<Option<Reply>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // A fresh port each time: with the id, what a forger must guess. Connected: others' datagrams do not arrive.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    for _ in 0..MAX_WRONG {
        let count = socket.recv(&mut buffer).await?;
        if let Some(reply) = read(&buffer[..count]) {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

async fn by_stream(
    server: SocketAddr,
    query: &[u8],
    read: &(dyn Fn(&[u8]) -> Option<Reply> + Sync),
) -> std::io::Result<Option<Reply>> {
    let mut stream = timeout(EACH, TcpStream::connect(server)).await??;
    let Ok(length) = u16::try_from(query.len()) else { return Ok(None) };
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(read(&bytes))
}
