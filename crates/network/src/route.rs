//! Links, addresses, routes and neighbours of one network namespace, over a netlink socket that was made in it.
//!
//! Owns the requests that the ring and the slots need and nothing beyond. Each waits for the kernel's answer, microseconds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::NetworkError;
use crate::subnet::MacAddress;

/// A socket to the routing tables of the namespace in which it was opened.
pub(crate) struct RouteSocket {
    socket: Socket,
    sequence: u32,
}

/// A network interface by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InterfaceIndex(pub(crate) u32);

/// One end of a new pair of interfaces.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddress,
}

/// Where a route leads.
pub(crate) struct Route {
    pub(crate) to: (IpAddr, u8),
    pub(crate) through: InterfaceIndex,
    /// Not on the interface's own network: taken as reachable all the same.
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
}

impl RouteSocket {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let failed = || NetworkError::kernel("open a routing netlink socket");
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed())?;
        socket.bind_auto().map_err(failed())?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and reads to the end of its answer.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> std::io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(std::io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    // Of a request that broke off.
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }

    /// Makes a pair of interfaces: one here, the other in another namespace.
    pub(crate) fn make_pair(
        &mut self,
        here: &End<'_>,
        there: &End<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(there.name.to_owned()),
            LinkAttribute::Address(there.mac.to_vec()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(here.name.to_owned()),
            LinkAttribute::Address(here.mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RouteNetlinkMessage::NewLink(link), flags)
            .map(drop)
            .map_err(NetworkError::kernel(format!("make the interface {}", here.name)))
    }

    /// The interface of that name.
    pub(crate) fn index(&mut self, name: &str) -> Result<Option<InterfaceIndex>, NetworkError> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.ask(RouteNetlinkMessage::GetLink(link), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(InterfaceIndex(link.header.index)),
                _ => None,
            })),
            Err(error)
                if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(NetworkError::kernel(format!("find the interface {name}"))(error)),
        }
    }

    /// All interfaces by name.
    pub(crate) fn interfaces(&mut self) -> Result<BTreeMap<String, InterfaceIndex>, NetworkError> {
        let answers = self
            .ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(NetworkError::kernel("list interfaces"))?;
        let named = |answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { return None };
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            Some((name, InterfaceIndex(link.header.index)))
        };
        Ok(answers.into_iter().filter_map(named).collect())
    }

    /// Takes an interface up.
    pub(crate) fn bring_up(&mut self, interface: InterfaceIndex) -> Result<(), NetworkError> {
        self.set_flags(interface, LinkFlags::Up)
    }

    /// Takes an interface up on which no Ethernet address is ever asked for, told or learned by ARP.
    pub(crate) fn bring_up_silent(
        &mut self,
        interface: InterfaceIndex,
    ) -> Result<(), NetworkError> {
        self.set_flags(interface, LinkFlags::Up | LinkFlags::Noarp)
    }

    fn set_flags(
        &mut self,
        interface: InterfaceIndex,
        flags: LinkFlags,
    ) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = interface.0;
        link.header.flags = flags;
        link.header.change_mask = flags;
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK)
            .map(drop)
            .map_err(NetworkError::kernel("bring an interface up"))
    }

    /// Removes an interface, and with it its peer, addresses and routes. One that is not there is fine.
    pub(crate) fn remove(&mut self, interface: InterfaceIndex) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = interface.0;
        match self.ask(RouteNetlinkMessage::DelLink(link), NLM_F_ACK) {
            Err(error)
                if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NODEV) =>
            {
                Ok(())
            }
            answer => answer.map(drop).map_err(NetworkError::kernel("remove an interface")),
        }
    }

    /// Gives an interface an address, of which it makes no route. One that it has is fine.
    pub(crate) fn add_address(
        &mut self,
        interface: InterfaceIndex,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = host_length(address);
        message.header.index = interface.0;
        // Nobody else can have it: a look for duplicates would only cost time.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes =
            vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewAddress(message), flags)
            .map(drop)
            .map_err(NetworkError::kernel(format!("give an interface the address {address}")))
    }

    /// All addresses that interfaces have here.
    pub(crate) fn addresses(&mut self) -> Result<Vec<IpAddr>, NetworkError> {
        let answers = self
            .ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)
            .map_err(NetworkError::kernel("list addresses"))?;
        let mut addresses = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            for attribute in message.attributes {
                if let AddressAttribute::Address(address) | AddressAttribute::Local(address) =
                    attribute
                {
                    addresses.push(address);
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// Adds a route, or replaces the one to the same place.
    pub(crate) fn add_route(&mut self, route: &Route) -> Result<(), NetworkError> {
        let (to, length) = route.to;
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(to),
            destination_prefix_length: length,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if to.is_ipv6() {
            // IPv6 has no scopes of routes.
            message.header.scope = RouteScope::Universe;
        }
        if length > 0 {
            message.attributes.push(RouteAttribute::Destination(to.into()));
        }
        message.attributes.push(RouteAttribute::Oif(route.through.0));
        if let Some(gateway) = route.gateway {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewRoute(message), flags)
            .map(drop)
            .map_err(NetworkError::kernel(format!("add a route to {to}/{length}")))
    }

    /// Destinations of all routes of the main table but the default ones, with the interface each leads through.
    pub(crate) fn destinations(
        &mut self,
    ) -> Result<Vec<(IpAddr, u8, Option<InterfaceIndex>)>, NetworkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self
                .ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)
                .map_err(NetworkError::kernel("list routes"))?;
            for answer in answers {
                let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
                let length = route.header.destination_prefix_length;
                let mut through = None;
                let mut to = None;
                for attribute in route.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(it)) => {
                            to = Some(IpAddr::V4(it))
                        }
                        RouteAttribute::Destination(RouteAddress::Inet6(it)) => {
                            to = Some(IpAddr::V6(it))
                        }
                        RouteAttribute::Oif(index) => through = Some(InterfaceIndex(index)),
                        _ => {}
                    }
                }
                found.extend(to.map(|to| (to, length, through)));
            }
        }
        Ok(found)
    }

    /// Whose Ethernet address it is, for good: never asked for, never learned.
    pub(crate) fn add_neighbour(
        &mut self,
        interface: InterfaceIndex,
        address: IpAddr,
        mac: MacAddress,
    ) -> Result<(), NetworkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = interface.0;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags)
            .map(drop)
            .map_err(NetworkError::kernel(format!("write down the neighbour {address}")))
    }
}

/// The prefix length of a single address.
pub(crate) const fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

const fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
