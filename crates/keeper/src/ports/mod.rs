//! Published ports: held always, served on loopback addresses while they are open.
//!
//! Owns the sockets. Clients from elsewhere never come here: the host's rules send their packets to the sandbox. What is held but not open
//! refuses at once, as if nobody had it.

mod relay;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use atoll_sys::interface_binding::{InterfaceIndex, LOOPBACK, NOWHERE, bind_to_interface};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, listen, shutdown, socket_with, sockopt,
};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::member::{Addresses, PortHold, Protocol};

/// Connections that wait to be accepted. SOURCE: SOMAXCONN of Linux before 5.4; more only hides a proxy that is late.
const BACKLOG: i32 = 128;

/// Bounds on what clients can make the keeper hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections and flows of one sandbox (guess: tools on this host, not the world).
    pub(crate) connections_each: usize,
    /// Those of all sandboxes: each has two sockets.
    pub(crate) connections_all: usize,
    /// How long a sandbox may take to accept a connection.
    pub(crate) connect: Duration,
    /// How long a flow of datagrams lives without one. SOURCE: nf_conntrack_udp_timeout_stream of Linux, 120 s.
    pub(crate) flow_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_each: 512,
            connections_all: 4096,
            connect: Duration::from_secs(5),
            flow_idle: Duration::from_secs(120),
        }
    }
}

/// What may be connected at the same time.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    each: Arc<Semaphore>,
    all: Arc<Semaphore>,
    limits: Limits,
}

impl Room {
    /// Room for all.
    pub(crate) fn for_all(limits: Limits) -> Self {
        let all = Arc::new(Semaphore::new(limits.connections_all));
        Self { each: Arc::clone(&all), all, limits }
    }

    /// Room of one sandbox within that.
    pub(crate) fn for_one(&self) -> Self {
        let each = Arc::new(Semaphore::new(self.limits.connections_each));
        Self { each, all: Arc::clone(&self.all), limits: self.limits }
    }

    /// Connections of this sandbox.
    pub(crate) fn connections(&self) -> usize {
        self.limits.connections_each.saturating_sub(self.each.available_permits())
    }

    fn enter(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let each = Arc::clone(&self.each).try_acquire_owned().ok()?;
        Some([each, Arc::clone(&self.all).try_acquire_owned().ok()?])
    }
}

/// A port that is held. Dropped, it is free, and its connections are cut.
#[derive(Debug)]
pub(crate) struct HeldPort {
    hold: PortHold,
    /// Bound to every address and to no interface: they take the port and receive nothing.
    _sockets: Vec<OwnedFd>,
    /// Let clients in.
    doors: Vec<Door>,
    /// Cuts connections when dropped.
    cut: DropGuard,
}

impl HeldPort {
    /// Takes a port.
    ///
    /// # Errors
    /// `EADDRINUSE`: somebody has it.
    pub(crate) fn take(hold: PortHold) -> Result<Self, Errno> {
        let mut sockets = Vec::new();
        let anywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for address in anywhere {
            let bound = bound(hold.protocol, SocketAddr::new(address, hold.host_port), NOWHERE);
            sockets.extend(where_there_is_one(address, bound)?);
        }
        let cut = CancellationToken::new().drop_guard();
        Ok(Self { hold, _sockets: sockets, doors: Vec::new(), cut })
    }

    /// Lets clients of loopback addresses in, to the sandbox's port. Needs a tokio runtime.
    ///
    /// # Errors
    /// Sockets that the kernel does not give; the port is closed as before.
    pub(crate) fn open(
        &mut self,
        addresses: Addresses,
        target_port: u16,
        room: &Room,
    ) -> std::io::Result<()> {
        if !self.doors.is_empty() {
            return Ok(());
        }
        let over = self.cut.token().clone();
        let way = Way { addresses, target_port, room: room.clone(), over };
        let mut doors = Vec::new();
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let here = SocketAddr::new(address, self.hold.host_port);
            let bound = bound(self.hold.protocol, here, LOOPBACK);
            let Some(socket) = where_there_is_one(address, bound)? else { continue };
            doors.push(Door::open(self.hold.protocol, socket, way.clone())?);
        }
        self.doors = doors;
        Ok(())
    }

    /// Lets nobody in any more; who is in goes on.
    pub(crate) fn close(&mut self) {
        self.doors.clear();
    }

    /// Lets nobody in any more, and cuts off who is in.
    pub(crate) fn cut(&mut self) {
        self.close();
        self.cut = CancellationToken::new().drop_guard();
    }
}

/// Lets clients in until dropped; then they are refused at once, whenever its task ends.
#[derive(Debug)]
struct Door {
    socket: Listening,
    _closed: DropGuard,
}

#[derive(Debug)]
enum Listening {
    Tcp(Arc<TcpListener>, Way),
    Udp(Arc<UdpSocket>),
}

impl Door {
    fn open(protocol: Protocol, socket: OwnedFd, way: Way) -> std::io::Result<Self> {
        let closed = CancellationToken::new();
        let socket = match protocol {
            Protocol::Tcp => {
                listen(&socket, BACKLOG)?;
                let listener = Arc::new(TcpListener::from_std(socket.into())?);
                let serving = tcp::serve(Arc::clone(&listener), way.clone());
                tokio::spawn(closed.clone().run_until_cancelled_owned(serving));
                Listening::Tcp(listener, way)
            }
            Protocol::Udp => {
                let socket = Arc::new(UdpSocket::from_std(socket.into())?);
                let serving = udp::serve(Arc::clone(&socket), way);
                tokio::spawn(closed.clone().run_until_cancelled_owned(serving));
                Listening::Udp(socket)
            }
        };
        Ok(Self { socket, _closed: closed.drop_guard() })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Neither fails on a socket that is open; closing it, which the task does, would do the same a little later.
        match &self.socket {
            Listening::Tcp(listener, way) => {
                tcp::admit_waiting(listener, way);
                let _ = shutdown(listener, Shutdown::Both);
            }
            Listening::Udp(socket) => {
                let _ = bind_to_interface(socket, NOWHERE);
            }
        }
    }
}

/// Where clients of an open port are led.
#[derive(Debug, Clone)]
struct Way {
    addresses: Addresses,
    target_port: u16,
    room: Room,
    /// Who is in is cut off.
    over: CancellationToken,
}

/// A host without IPv6 has nothing to hold there.
fn where_there_is_one(
    address: IpAddr,
    bound: Result<OwnedFd, Errno>,
) -> Result<Option<OwnedFd>, Errno> {
    match bound {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if address.is_ipv6() => Ok(None),
        other => other.map(Some),
    }
}

fn bound(
    protocol: Protocol,
    address: SocketAddr,
    interface: InterfaceIndex,
) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections of its last opening may still be there. Not for what only holds: others could share the port with that.
    if interface != NOWHERE {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind_to_interface(&socket, interface)?;
    bind(&socket, &address)?;
    Ok(socket)
}
