//! Datagrams from loopback to a sandbox. Each client is a flow: a socket connected to it, which the kernel prefers to the one that lets clients in,
//! and one connected to the sandbox, so that answers find back. Flows end by silence.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use atoll_sys::interface_binding::LOOPBACK;
use rustix::net::SendFlags;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Way, bound};
use crate::member::Protocol;

/// Largest datagram. SOURCE: RFC 768, 16 bits of length.
const MAX_DATAGRAM_BYTES: usize = 64 * 1024;

thread_local! {
    /// Never held across a wait.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_DATAGRAM_BYTES]);
}

struct Flow {
    from: SocketAddr,
    client: UdpSocket,
    target: UdpSocket,
}

/// Flows that were let in here, by their clients: a client's second datagram may be in the queue already when its flow begins.
type Flows = Mutex<HashMap<SocketAddr, Weak<Flow>>>;

/// Lets clients in, for ever.
pub(super) async fn serve(socket: Arc<UdpSocket>, way: Way) {
    let flows = Arc::new(Flows::default());
    while socket.readable().await.is_ok() {
        SCRATCH.with_borrow_mut(|scratch| {
            let Ok((count, from)) = socket.try_recv_from(scratch) else { return };
            let known = lock(&flows).get(&from).and_then(Weak::upgrade);
            if let Some(flow) = known.or_else(|| begin(&socket, from, &way, &flows)) {
                pass(&flow.target, &scratch[..count]);
            }
        });
        tokio::task::coop::consume_budget().await;
    }
}

/// Sends at once, also from a socket of which the runtime has not yet learned that it can send.
fn pass(to: &UdpSocket, datagram: &[u8]) {
    // Full, or refused by who does not listen: its sender cannot be told, and what does not arrive is sent again.
    let _ = rustix::net::send(to, datagram, SendFlags::DONTWAIT);
}

fn lock(flows: &Flows) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Weak<Flow>>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(socket: &UdpSocket, from: SocketAddr, way: &Way, flows: &Arc<Flows>) -> Option<Arc<Flow>> {
    let permits = way.room.enter()?;
    let flow = Arc::new(Flow::new(socket.local_addr().ok()?, from, way).ok()?);
    lock(flows).insert(from, Arc::downgrade(&flow));
    let (way, flows, serving) = (way.clone(), Arc::clone(flows), Arc::clone(&flow));
    tokio::spawn(async move {
        tokio::select! {
            () = way.over.cancelled() => {}
            () = serving.carry(way.room.limits.flow_idle) => {}
        }
        lock(&flows).remove(&from);
        drop(permits);
    });
    Some(flow)
}

impl Flow {
    fn new(here: SocketAddr, from: SocketAddr, way: &Way) -> std::io::Result<Self> {
        let client: std::net::UdpSocket = bound(Protocol::Udp, here, LOOPBACK)?.into();
        client.connect(from)?;
        let [target, _] = way.addresses.targets(from.ip(), way.target_port);
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let outward = std::net::UdpSocket::bind((any, 0))?;
        outward.set_nonblocking(true)?;
        outward.connect(target)?;
        let (client, target) = (UdpSocket::from_std(client)?, UdpSocket::from_std(outward)?);
        Ok(Self { from, client, target })
    }

    /// Hands datagrams on in both directions until both are silent for `idle`.
    async fn carry(&self, idle: std::time::Duration) {
        loop {
            let readable = async {
                tokio::select! {
                    ready = self.client.readable() => ready.map(|()| true),
                    ready = self.target.readable() => ready.map(|()| false),
                }
            };
            let Ok(Ok(from_client)) = timeout(idle, readable).await else { return };
            SCRATCH.with_borrow_mut(|scratch| {
                // An error is a refusal: whoever refuses now may listen later.
                if !from_client {
                    if let Ok(count) = self.target.try_recv(scratch) {
                        pass(&self.client, &scratch[..count]);
                    }
                } else if let Ok((count, from)) = self.client.try_recv_from(scratch)
                    // Others' may have come in before it was connected.
                    && from == self.from
                {
                    pass(&self.target, &scratch[..count]);
                }
            });
            tokio::task::coop::consume_budget().await;
        }
    }
}
