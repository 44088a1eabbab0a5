//! A place in the ring for one sandbox: a namespace with an interface that leads to the ring, and nothing that answers until it is admitted.

use std::os::fd::OwnedFd;

use atoll_sys::network_namespace::{self, PreparedNetwork};

use crate::error::NetworkError;
use crate::namespace::{SLOT_SETTINGS, set};
use crate::route::{End, InterfaceIndex, Route, RouteSocket, host_length};
use crate::subnet::{Addresses, GATEWAY_MAC, SlotNumber, slot_mac};

/// The interface's name in the sandbox.
const INTERFACE: &str = "eth0";

/// A prepared slot. Dropping it leaves the ring's end; [`crate::Network::release`] removes both.
#[derive(Debug)]
pub struct Slot {
    /// Its number.
    pub number: SlotNumber,
    /// Its namespace and a sysfs of it.
    pub network: PreparedNetwork,
    /// Its own addresses.
    pub addresses: Addresses,
    /// Gateway and resolver.
    pub gateway: Addresses,
}

/// The name of the ring's end.
pub(crate) fn ring_name(number: SlotNumber) -> String {
    format!("a{:x}", number.0)
}

/// The number in a name that [`ring_name`] gave.
pub(crate) fn number_of(ring_name: &str) -> Option<SlotNumber> {
    let number = u32::from_str_radix(ring_name.strip_prefix('a')?, 16).ok().map(SlotNumber)?;
    (self::ring_name(number) == ring_name).then_some(number)
}

/// Makes the namespace and its interface. Leaves the calling thread in the namespace. `ring` is a socket of the ring's.
pub(crate) fn make(
    ring: &mut RouteSocket,
    number: SlotNumber,
    addresses: Addresses,
    gateway: Addresses,
) -> Result<(Slot, InterfaceIndex), NetworkError> {
    let network = network_namespace::prepare().map_err(|error| NetworkError::Unavailable {
        message: format!("a network namespace cannot be made: {error}"),
    })?;
    set(&SLOT_SETTINGS)?;
    let name = ring_name(number);
    let here = End { name: &name, mac: GATEWAY_MAC };
    let there = End { name: INTERFACE, mac: slot_mac(number) };
    let namespace: &OwnedFd = &network.namespace;
    ring.make_pair(&here, &there, std::os::fd::AsFd::as_fd(namespace))?;
    let mut inside = RouteSocket::open()?;
    let missing = |name: &str| {
        NetworkError::kernel(format!("find the interface {name}"))(std::io::Error::from(
            std::io::ErrorKind::NotFound,
        ))
    };
    let own = inside.index(INTERFACE)?.ok_or_else(|| missing(INTERFACE))?;
    let ring_end = ring.index(&name)?.ok_or_else(|| missing(&name))?;
    for address in addresses.both() {
        inside.add_address(own, address)?;
    }
    inside.bring_up(own)?;
    // Nobody answers questions about Ethernet addresses on the ring's end, and nobody believes what a sandbox says of them.
    ring.bring_up_silent(ring_end)?;
    for (address, gateway) in addresses.both().into_iter().zip(gateway.both()) {
        inside.add_neighbour(own, gateway, GATEWAY_MAC)?;
        let everywhere = if gateway.is_ipv4() {
            std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
        } else {
            std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
        };
        let through = own;
        inside.add_route(&Route {
            to: (gateway, host_length(gateway)),
            through,
            gateway: None,
            source: None,
        })?;
        inside.add_route(&Route {
            to: (everywhere, 0),
            through,
            gateway: Some(gateway),
            source: None,
        })?;
        ring.add_neighbour(ring_end, address, slot_mac(number))?;
        ring.add_route(&Route {
            to: (address, host_length(address)),
            through: ring_end,
            gateway: None,
            source: Some(gateway),
        })?;
    }
    Ok((Slot { number, network, addresses, gateway }, ring_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_to_each_other_and_to_nothing_else() {
        for number in [0, 1, 0xff, 65_518] {
            assert_eq!(number_of(&ring_name(SlotNumber(number))), Some(SlotNumber(number)));
        }
        for name in ["uplink", "lo", "a", "a-1", "a01", "aFF", "a100000000"] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
