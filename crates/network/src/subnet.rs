//! Which addresses an instance has, and which of them a slot has. Pure.
//!
//! | address | what |
//! |---|---|
//! | `A.B.0.1`, `P::1` | gateway and resolver, the same for every slot, on the ring's end of each |
//! | `A.B.0.2`, `P::2` | the ring's end of the uplink |
//! | `A.B.0.3`, `P::3` | the host's end of the uplink |
//! | `A.B.0.16` and up, `P::10` and up | slots by number |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Slots begin at this host number: what lies below is the ring's own.
const FIRST_SLOT_HOST: u32 = 16;
/// Slots of an instance: the hosts of a /16, without its own addresses and the broadcast address.
pub const MAX_SLOTS: u32 = (1 << 16) - FIRST_SLOT_HOST - 1;

/// The number of a slot, unique in an instance for as long as the slot exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotNumber(pub u32);

/// The addresses of an instance: a /16 of IPv4 and a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

/// A text that names no subnet for an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no subnet for an instance: write a private /16 such as 10.200.0.0/16")]
pub struct InvalidSubnet {
    text: String,
}

impl Subnet {
    /// The `attempt`-th choice of an instance: a /16 of 10.128.0.0/9, and a /64 of unique local addresses. The same name gives the same
    /// choices, so that an instance that starts anew most likely has its old addresses.
    #[must_use]
    pub fn derived(instance: &str, attempt: u32) -> Self {
        // FNV-1a: spreads, and need not be more; collisions only cost another attempt.
        let hash = instance.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let second = (hash.wrapping_add(u64::from(attempt)) & 0x7f) as u8 | 0x80;
        Self::of(Ipv4Addr::new(10, second, 0, 0), hash.rotate_left(attempt))
    }

    fn of(ipv4: Ipv4Addr, hash: u64) -> Self {
        let words = hash.to_be_bytes();
        let word = |at: usize| u16::from_be_bytes([words[at], words[at + 1]]);
        let ipv6 = Ipv6Addr::new(0xfd00 | (word(0) & 0xff), word(2), word(4), word(6), 0, 0, 0, 0);
        Self { ipv4, ipv6 }
    }

    /// A subnet that an operator chose: `10.200.0.0/16`. IPv6 is derived from it.
    ///
    /// # Errors
    /// [`InvalidSubnet`]: not a /16, or not within the private ranges of RFC 1918.
    pub fn chosen(text: &str) -> Result<Self, InvalidSubnet> {
        let invalid = || InvalidSubnet { text: text.chars().take(64).collect() };
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let [_, _, 0, 0] = address.octets() else { return Err(invalid()) };
        if length != "16" || !address.is_private() {
            return Err(invalid());
        }
        let hash = u64::from(address.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Self::of(address, hash))
    }

    /// The IPv4 network.
    #[must_use]
    pub const fn ipv4(&self) -> (Ipv4Addr, u8) {
        (self.ipv4, 16)
    }

    /// The IPv6 network.
    #[must_use]
    pub const fn ipv6(&self) -> (Ipv6Addr, u8) {
        (self.ipv6, 64)
    }

    fn host(&self, number: u32) -> Addresses {
        Addresses {
            ipv4: Ipv4Addr::from_bits(self.ipv4.to_bits() | number),
            ipv6: Ipv6Addr::from_bits(self.ipv6.to_bits() | u128::from(number)),
        }
    }

    /// Gateway and resolver.
    #[must_use]
    pub fn gateway(&self) -> Addresses {
        self.host(1)
    }

    /// The ring's end of the uplink.
    pub(crate) fn uplink_ring(&self) -> Addresses {
        self.host(2)
    }

    /// The host's end of the uplink.
    pub(crate) fn uplink_host(&self) -> Addresses {
        self.host(3)
    }

    /// A slot's.
    #[must_use]
    pub fn slot(&self, number: SlotNumber) -> Addresses {
        self.host(number.0 + FIRST_SLOT_HOST)
    }

    /// Whether both share an address.
    pub(crate) fn overlaps(&self, network: IpAddr, length: u8) -> bool {
        match network {
            IpAddr::V4(other) => {
                let mask = mask32(length.min(16));
                // A default route overlaps everything and means nothing.
                length > 0 && self.ipv4.to_bits() & mask == other.to_bits() & mask
            }
            IpAddr::V6(other) => {
                let shift = 128 - u32::from(length.min(64));
                length > 0 && self.ipv6.to_bits() >> shift == other.to_bits() >> shift
            }
        }
    }
}

fn mask32(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/16, {}/64", self.ipv4, self.ipv6)
    }
}

/// One address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
}

impl Addresses {
    /// Both.
    #[must_use]
    pub const fn both(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)]
    }
}

/// An Ethernet address. Locally administered: the first byte is 2 or 6.
pub(crate) type MacAddress = [u8; 6];

/// The ring's end of a slot: the same in all, as no two meet.
pub(crate) const GATEWAY_MAC: MacAddress = [0x02, 0x61, 0x74, 0x6f, 0x00, 0x01];

/// The sandbox's end of a slot.
pub(crate) fn slot_mac(number: SlotNumber) -> MacAddress {
    let [a, b, c, d] = number.0.to_be_bytes();
    [0x06, 0x61, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_the_same_private_addresses_each_time() {
        let subnet = Subnet::derived("2fa5093a3733", 0);
        assert_eq!(subnet, Subnet::derived("2fa5093a3733", 0));
        assert_ne!(subnet.ipv4(), Subnet::derived("2fa5093a3733", 1).ipv4());
        let (ipv4, ipv6) = (subnet.ipv4().0, subnet.ipv6().0);
        assert!(ipv4.is_private() && ipv4.octets()[1] >= 128, "{ipv4}");
        assert!(ipv6.is_unique_local(), "{ipv6}");
        let mut second = std::collections::BTreeSet::new();
        for attempt in 0..128 {
            second.insert(Subnet::derived("x", attempt).ipv4().0);
        }
        assert_eq!(second.len(), 128, "every choice is another one");
    }

    #[test]
    fn slots_are_apart_from_the_ring_and_from_each_other() {
        let subnet = Subnet::chosen("10.200.0.0/16").unwrap();
        assert_eq!(subnet.gateway().ipv4, Ipv4Addr::new(10, 200, 0, 1));
        assert_eq!(subnet.slot(SlotNumber(0)).ipv4, Ipv4Addr::new(10, 200, 0, 16));
        let last = subnet.slot(SlotNumber(MAX_SLOTS - 1));
        assert_eq!(last.ipv4, Ipv4Addr::new(10, 200, 255, 254));
        assert_eq!(last.ipv6.segments()[7], 0xfffe);
        assert_ne!(slot_mac(SlotNumber(1)), slot_mac(SlotNumber(256)));
    }

    #[test]
    fn overlaps_are_seen_from_both_sides() {
        let subnet = Subnet::chosen("10.200.0.0/16").unwrap();
        let v4 = |text: &str| IpAddr::V4(text.parse().unwrap());
        assert!(subnet.overlaps(v4("10.200.7.0"), 24));
        assert!(subnet.overlaps(v4("10.0.0.0"), 8));
        assert!(subnet.overlaps(v4("10.200.0.9"), 32));
        assert!(!subnet.overlaps(v4("10.201.0.0"), 16));
        assert!(!subnet.overlaps(v4("0.0.0.0"), 0));
        assert!(subnet.overlaps(IpAddr::V6(subnet.ipv6().0), 48));
        assert!(!subnet.overlaps("fe80::".parse().unwrap(), 64));
    }

    #[test]
    fn other_subnets_are_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/8",
            "10.1.2.0/16",
            "8.8.0.0/16",
            "fd00::/64",
            "10.1.0.0/16/1",
        ] {
            assert!(Subnet::chosen(text).is_err(), "{text}");
        }
    }
}
