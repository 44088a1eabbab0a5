//! The resolver that sandboxes ask: it knows each by its source address, which the ring pins, and answers nobody else.
//!
//! Owns what a sandbox may learn of names. Without egress the answer is REFUSED, at once; with it, the question goes on to the host's servers,
//! bounded in number and rate, and addresses that the sandbox may not reach are left out of the answer. Nothing is kept.

pub(crate) mod message;
mod servers;
mod upstream;
mod world;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use self::servers::Servers;

use self::message::{Question, Unfit};

/// Questions of one sandbox that wait for an answer, at most (guess: a page of a hundred hosts asks for them in turn).
const WAITING_EACH: usize = 64;
/// Those of all sandboxes: each holds a socket.
const WAITING_ALL: usize = 1024;
/// Questions a second that a sandbox may ask for long, and at once.
const RATE: f64 = 100.0;
const BURST: f64 = 200.0;
/// Connections by TCP of one sandbox, at most.
const STREAMS_EACH: usize = 8;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Largest question that is read: a name has 255 bytes at most, options are not passed on.
const MAX_QUESTION_BYTES: usize = 2048;

/// A sandbox that may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Its own addresses, which nobody else can send from.
    pub addresses: [IpAddr; 2],
    /// Questions go on; else each is refused.
    pub forward: bool,
    /// Private addresses that it may be told: it was granted them.
    pub granted: Vec<RangeInclusive<IpAddr>>,
}

/// Sockets on the gateway's addresses, port 53, opened in the ring.
#[derive(Debug)]
pub struct ResolverSockets {
    /// For datagrams, of each family.
    pub datagrams: Vec<std::net::UdpSocket>,
    /// For streams, of each family.
    pub streams: Vec<std::net::TcpListener>,
}

impl ResolverSockets {
    /// Opens them in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(addresses: &[IpAddr], port: u16) -> std::io::Result<Self> {
        let mut sockets = Self { datagrams: Vec::new(), streams: Vec::new() };
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let datagrams = std::net::UdpSocket::bind(address)?;
            datagrams.set_nonblocking(true)?;
            let streams = std::net::TcpListener::bind(address)?;
            streams.set_nonblocking(true)?;
            sockets.datagrams.push(datagrams);
            sockets.streams.push(streams);
        }
        Ok(sockets)
    }
}

/// A resolver that serves. Ends when dropped.
#[derive(Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
    over: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    servers: Servers,
    askers: RwLock<HashMap<IpAddr, Arc<Known>>>,
    waiting: Arc<Semaphore>,
}

/// A sandbox, and what it has asked lately.
#[derive(Debug)]
struct Known {
    asker: Asker,
    waiting: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    allowance: Mutex<Allowance>,
}

#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
}

impl Resolver {
    /// Begins to serve. Needs a tokio runtime whose threads are in the host's namespace.
    ///
    /// # Errors
    /// A socket that the runtime does not take.
    pub fn serve(sockets: ResolverSockets, servers: Servers) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            servers,
            askers: RwLock::default(),
            waiting: Arc::new(Semaphore::new(WAITING_ALL)),
        });
        let over = CancellationToken::new();
        for socket in sockets.datagrams {
            let (socket, shared) = (Arc::new(UdpSocket::from_std(socket)?), Arc::clone(&shared));
            let serving = serve_datagrams(socket, shared);
            tokio::spawn(over.clone().run_until_cancelled_owned(serving));
        }
        for listener in sockets.streams {
            let (listener, shared) = (TcpListener::from_std(listener)?, Arc::clone(&shared));
            let serving = serve_streams(listener, shared, over.clone());
            tokio::spawn(over.clone().run_until_cancelled_owned(serving));
        }
        Ok(Self { shared, over })
    }

    /// This sandbox may ask from now on; what was said of its addresses before holds no more.
    pub fn admit(&self, asker: &Asker) {
        let known = Arc::new(Known {
            asker: asker.clone(),
            waiting: Arc::new(Semaphore::new(WAITING_EACH)),
            streams: Arc::new(Semaphore::new(STREAMS_EACH)),
            allowance: Mutex::new(Allowance { left: BURST, since: Instant::now() }),
        });
        let mut askers = self.shared.askers.write().unwrap_or_else(PoisonError::into_inner);
        for address in asker.addresses {
            askers.insert(address, Arc::clone(&known));
        }
    }

    /// Who has these addresses may not ask any more.
    pub fn forget(&self, addresses: [IpAddr; 2]) {
        let mut askers = self.shared.askers.write().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            askers.remove(&address);
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Shared {
    fn who(&self, address: IpAddr) -> Option<Arc<Known>> {
        let askers = self.askers.read().unwrap_or_else(PoisonError::into_inner);
        askers.get(&address.to_canonical()).cloned()
    }

    /// The answer to a message; `None`: there is none.
    async fn answer(&self, known: &Known, bytes: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(Unfit::Nonsense) => return None,
            Err(unfit) => return unfit.reply(),
        };
        let limit = (!by_tcp).then(|| question.datagram_bytes());
        if !known.asker.forward {
            return question.reply(ResponseCode::Refused).bytes(limit);
        }
        let Some(_permits) = known.turn(&self.waiting) else {
            return question.reply(ResponseCode::ServFail).bytes(limit);
        };
        let may_be_told = |address: IpAddr| {
            world::contains(address) || known.asker.granted.iter().any(|it| it.contains(&address))
        };
        let servers = self.servers.now();
        let reply = upstream::ask(&question, &servers, by_tcp, &may_be_told).await;
        reply.unwrap_or_else(|| question.reply(ResponseCode::ServFail)).bytes(limit)
    }
}

impl Known {
    /// Permits to ask on; `None`: it has asked too much, or everybody together has.
    fn turn(&self, all: &Arc<Semaphore>) -> Option<[OwnedSemaphorePermit; 2]> {
        {
            let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earned = now.duration_since(allowance.since).as_secs_f64() * RATE;
            allowance.left = (allowance.left + earned).min(BURST);
            allowance.since = now;
            if allowance.left < 1.0 {
                return None;
            }
            allowance.left -= 1.0;
        }
        let own = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        let of_all = Arc::clone(all).try_acquire_owned().ok()?;
        Some([own, of_all])
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_QUESTION_BYTES];
    loop {
        let (count, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of an answer that nobody took; a socket that is broken for good would spin here.
                tracing::debug!(%error, "a datagram could not be received");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let Some(known) = shared.who(from.ip()) else { continue };
        let (socket, shared, message) =
            (Arc::clone(&socket), Arc::clone(&shared), buffer[..count].to_vec());
        // Bounded: beyond their permits questions are answered without waiting for anything.
        tokio::spawn(async move {
            if let Some(answer) = shared.answer(&known, &message, false).await {
                // Whoever asked may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn serve_streams(listener: TcpListener, shared: Arc<Shared>, over: CancellationToken) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection for names could not be accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(known) = shared.who(from.ip()) else { continue };
        let Ok(permit) = Arc::clone(&known.streams).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        let serving = async move {
            let _permit = permit;
            // It ends by itself, by mistake, or by idleness: all the same here.
            let _ = serve_stream(stream, &shared, &known).await;
        };
        tokio::spawn(over.clone().run_until_cancelled_owned(serving));
    }
}

async fn serve_stream(
    mut stream: TcpStream,
    shared: &Shared,
    known: &Known,
) -> std::io::Result<()> {
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > MAX_QUESTION_BYTES {
            return Ok(());
        }
        let mut message = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let Some(answer) = shared.answer(known, &message, true).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
