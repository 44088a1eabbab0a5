//! Which addresses are the world's. The same division as the ring's rules (`special4`, `special6`): a name may not lead where no packet may go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// SOURCE: IANA's registry of special-purpose IPv4 addresses.
const SPECIAL4: [([u8; 4], u32); 14] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 3),
];
/// SOURCE: IANA's registry of special-purpose IPv6 addresses, within 2000::/3.
const SPECIAL6: [(u128, u32); 4] =
    [(0x2001 << 112, 23), (0x2001_0db8 << 96, 32), (0x2002 << 112, 16), (0x3fff << 112, 20)];

/// Whether an address belongs to the world.
pub(super) fn contains(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => contains4(address),
        IpAddr::V6(address) => contains6(address),
    }
}

fn contains4(address: Ipv4Addr) -> bool {
    let inside = |(network, length): &([u8; 4], u32)| {
        (address.to_bits() ^ u32::from_be_bytes(*network)) >> (32 - length) == 0
    };
    !SPECIAL4.iter().any(inside)
}

fn contains6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    let inside = |(network, length): &(u128, u32)| (bits ^ network) >> (128 - length) == 0;
    bits >> 125 == 0b001 && !SPECIAL6.iter().any(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_is_what_is_left() {
        for world in
            ["8.8.8.8", "1.1.1.1", "100.128.0.1", "223.255.255.255", "2600::1", "2a00:1450::1"]
        {
            assert!(contains(world.parse().unwrap()), "{world}");
        }
        for near in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "2002::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ] {
            assert!(!contains(near.parse().unwrap()), "{near}");
        }
    }
}
