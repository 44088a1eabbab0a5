//! What a slot may reach, and what may reach it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::elements::{Element, Row, Value};
use crate::route::InterfaceIndex;
use crate::subnet::Addresses;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// SOURCE: IANA's registry of protocol numbers.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// How far a slot reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Nothing, and its names are refused.
    Isolated,
    /// The world: no private, special or host address, no other sandbox.
    World,
}

/// A destination that a slot reaches in spite of its reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// First and last address, of one family.
    pub addresses: RangeInclusive<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Ports.
    pub ports: RangeInclusive<u16>,
}

/// What a slot may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How far it reaches.
    pub reach: Reach,
    /// And what beyond. Whether the node allows it was decided before.
    pub grants: Vec<Grant>,
}

/// A port of the host that leads to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// On the host.
    pub host_port: u16,
    /// In the sandbox.
    pub slot_port: u16,
}

/// That a slot exists, with its addresses: what may come from it at all.
pub(crate) fn existence(index: InterfaceIndex, own: &Addresses) -> Vec<Element> {
    let source = |set, address| Element::of(set, Row::default().interface(index).address(address));
    vec![source("sources4", own.ipv4.into()), source("sources6", own.ipv6.into())]
}

/// What a policy lets through.
pub(crate) fn permissions(index: InterfaceIndex, own: &Addresses, policy: &Policy) -> Vec<Element> {
    let chain = match policy.reach {
        Reach::Isolated => "isolated",
        Reach::World => "world",
    };
    let slot = Element::to("slots", Row::default().interface(index), Value::Chain(chain));
    let grant = |grant: &Grant| {
        let (set, source) = match grant.addresses.start() {
            IpAddr::V4(_) => ("grants4", IpAddr::from(own.ipv4)),
            IpAddr::V6(_) => ("grants6", IpAddr::from(own.ipv6)),
        };
        let row = |address: IpAddr, port| {
            Row::default()
                .address(source)
                .address(address)
                .protocol(grant.protocol.number())
                .port(port)
        };
        let (first, last) = (*grant.addresses.start(), *grant.addresses.end());
        let mut element = Element::of(set, row(first, *grant.ports.start()));
        element.last = Some(row(last, *grant.ports.end()));
        element
    };
    std::iter::once(slot).chain(policy.grants.iter().map(grant)).collect()
}

/// What lets visitors in from the uplink.
pub(crate) fn doors(own: &Addresses, ports: &[PublishedPort]) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::with_capacity(2 * ports.len());
    for port in ports {
        for (set, address) in [("doors4", own.ipv4.into()), ("doors6", own.ipv6.into())] {
            let row = Row::default().address(address);
            let element =
                Element::of(set, row.protocol(port.protocol.number()).port(port.slot_port));
            // Two ports of the host may lead to one of the sandbox.
            if !elements.contains(&element) {
                elements.push(element);
            }
        }
    }
    elements
}

/// What sends visitors of the host's ports to the slot.
pub(crate) fn signs(own: &Addresses, ports: &[PublishedPort]) -> Vec<Element> {
    let one = |port: &PublishedPort| {
        let sign = |set, address| {
            let key = Row::default().protocol(port.protocol.number()).port(port.host_port);
            Element::to(set, key, Value::Row(Row::default().address(address).port(port.slot_port)))
        };
        [sign("published4", own.ipv4.into()), sign("published6", own.ipv6.into())]
    };
    ports.iter().flat_map(one).collect()
}
