//! What a sandbox may reach beyond the world: private networks that its manifest asks for and its node's operator allows.
//!
//! Owns what a grant is, what covers what, and what is never granted. Both sides must name a destination: a manifest alone opens nothing,
//! and neither does a node.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ports::PortProtocol;

/// Most grants of one sandbox. Guess: more than a program has neighbours.
pub const MAX_GRANTS: usize = 32;

/// Never reached, whoever asks: the sandbox itself, its wire, groups, and what answers with a cloud's credentials. The rules of the
/// ring hold the same, for grants that are wider.
///
/// SOURCE: IANA's special-purpose registries; documentation of AWS (169.254.169.254, fd00:ec2::254), Alibaba Cloud (100.100.100.200) and
/// Azure (168.63.129.16).
const NEVER: [(&str, &str); 10] = [
    ("0.0.0.0/8", "this host"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local and metadata addresses"),
    ("224.0.0.0/3", "multicast and reserved addresses"),
    ("100.100.100.200/32", "a metadata address"),
    ("168.63.129.16/32", "a metadata address"),
    ("fd00:ec2::254/128", "a metadata address"),
    ("::/127", "loopback"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast addresses"),
];

/// Addresses with a common prefix: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    first: IpAddr,
    length: u8,
}

/// Ports of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Where.
    pub addresses: Cidr,
    /// Of which kind.
    pub protocol: PortProtocol,
    /// Not 0.
    pub first_port: u16,
    /// Not below the first.
    pub last_port: u16,
}

/// Why a grant is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// No network.
    #[error("is no network; write for example 10.1.0.0/16, 10.1.2.3 or fd12:3456::/32")]
    Malformed,
    /// Addresses have bits beyond the prefix: one of the two numbers is wrong.
    #[error("has bits beyond its prefix of {length}: the network is {network}/{length}")]
    BitsBeyondPrefix {
        /// The prefix.
        length: u8,
        /// What begins there.
        network: IpAddr,
    },
    /// Wholly within what is never reached.
    #[error("leads to {what} alone, which no sandbox reaches")]
    Never {
        /// What it is.
        what: &'static str,
    },
    /// No ports.
    #[error("wants ports: write 5432, or 8000-8010")]
    Ports,
    /// Not of the form.
    #[error("write ADDRESS[/LENGTH]:PORT[-PORT][/udp], with [brackets] around IPv6")]
    Form,
}

impl Cidr {
    /// Reads `10.0.0.0/8`, or one address.
    ///
    /// # Errors
    /// [`GrantError::Malformed`], [`GrantError::BitsBeyondPrefix`], [`GrantError::Never`].
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        let cidr = Self::read(text)?;
        let within = |(never, _): &&(&str, &str)| Self::read(never).is_ok_and(|it| it.covers(cidr));
        match NEVER.iter().find(within) {
            Some((_, what)) => Err(GrantError::Never { what }),
            None => Ok(cidr),
        }
    }

    fn read(text: &str) -> Result<Self, GrantError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| GrantError::Malformed)?;
        let most = bits(address);
        let length = match length {
            // Digits alone: no sign, no blank.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Some(_) => None,
            None => Some(most),
        };
        let length = length.filter(|it| *it <= most).ok_or(GrantError::Malformed)?;
        let network = masked(address, length);
        if network != address {
            return Err(GrantError::BitsBeyondPrefix { length, network });
        }
        Ok(Self { first: address, length })
    }

    /// Its first address.
    #[must_use]
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => {
                let host = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits() | host).into()
            }
            IpAddr::V6(first) => {
                let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv6Addr::from_bits(first.to_bits() | host).into()
            }
        }
    }

    /// Whether every address of the other is one of its own.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4()
            && self.length <= other.length
            && masked(other.first, self.length) == self.first
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

impl Grant {
    /// Whether whoever has this one has the other.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.first_port <= other.first_port
            && other.last_port <= self.last_port
            && self.addresses.covers(other.addresses)
    }
}

/// `10.1.0.0/16:5432`, `[fd00:1::]/32:8000-8010/udp`.
impl std::str::FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let (text, protocol) = match text.strip_suffix("/udp") {
            Some(rest) => (rest, PortProtocol::Udp),
            None => (text.strip_suffix("/tcp").unwrap_or(text), PortProtocol::Tcp),
        };
        let (network, ports) = text.rsplit_once(':').ok_or(GrantError::Form)?;
        let network = match network.strip_prefix('[') {
            Some(bracketed) => {
                let (address, length) = bracketed.split_once(']').ok_or(GrantError::Form)?;
                format!("{address}{length}")
            }
            None if network.contains(':') => return Err(GrantError::Form),
            None => network.to_owned(),
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        match (port(first), port(last)) {
            (Some(first_port), Some(last_port)) if first_port <= last_port => {
                Ok(Self { addresses: Cidr::parse(&network)?, protocol, first_port, last_port })
            }
            _ => Err(GrantError::Ports),
        }
    }
}

/// As it is read.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cidr { first, length } = self.addresses;
        match first {
            IpAddr::V4(first) => write!(f, "{first}/{length}:{}", self.first_port)?,
            IpAddr::V6(first) => write!(f, "[{first}]/{length}:{}", self.first_port)?,
        }
        if self.last_port != self.first_port {
            write!(f, "-{}", self.last_port)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

/// The first grant that a node's operator does not allow; `None`: all are.
#[must_use]
pub fn first_refused(wanted: &[Grant], allowed: &[Grant]) -> Option<usize> {
    wanted.iter().position(|wanted| !allowed.iter().any(|it| it.covers(wanted)))
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The first address with the same prefix.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    let shift = u32::from(bits(address).saturating_sub(length));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn grants_are_read_as_they_are_written() {
        for text in [
            "10.0.0.0/8:5432/tcp",
            "0.0.0.0/0:1-65535/udp",
            "10.1.2.3/32:1/tcp",
            "[fd00::]/8:80/tcp",
            "[fd00::1]/128:80-81/udp",
            "[::]/0:443/tcp",
        ] {
            assert_eq!(grant(text).to_string(), text);
        }
        assert_eq!(grant("10.1.2.3:80"), grant("10.1.2.3/32:80-80/tcp"));
        assert_eq!(grant("[fd00::1]:80"), grant("[fd00::1]/128:80/tcp"));
        assert_eq!(grant("10.0.0.0/8:1").addresses.last().to_string(), "10.255.255.255");
        assert_eq!(grant("0.0.0.0/0:1").addresses.last().to_string(), "255.255.255.255");
        assert_eq!(grant("10.1.2.3:1").addresses.last().to_string(), "10.1.2.3");
        assert_eq!(grant("[fd00::]/127:1").addresses.last().to_string(), "fd00::1");
    }

    #[test]
    fn what_is_no_grant_is_refused() {
        for text in [
            "",
            ":",
            "10.0.0.0/8",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:80-",
            "10.0.0.0/8:81-80",
            "10.0.0.0/8:65536",
            "10.0.0.0/33:80",
            "10.0.0.0/+8:80",
            "10.0.0.0/:80",
            "10.0.0.1/8:80",
            "10.0.0/8:80",
            "fd00::/8:80",
            "[fd00::/8:80",
            "[fd00::]/129:80",
            "[10.0.0.0:80",
            "10.0.0.0/8:80/sctp",
            "any:80",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text}");
        }
        let beyond =
            GrantError::BitsBeyondPrefix { length: 8, network: Ipv4Addr::new(10, 0, 0, 0).into() };
        assert_eq!("10.0.0.1/8:80".parse::<Grant>(), Err(beyond));
    }

    #[test]
    fn nobody_is_granted_metadata_loopback_or_the_wire() {
        for text in [
            "169.254.169.254:80",
            "169.254.0.0/16:80",
            "169.254.169.0/24:80",
            "127.0.0.1:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "[fd00:ec2::254]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
        ] {
            assert!(matches!(text.parse::<Grant>(), Err(GrantError::Never { .. })), "{text}");
        }
    }

    #[test]
    fn a_grant_must_be_allowed_whole() {
        let allowed = [grant("10.0.0.0/8:5432"), grant("[fd00::]/8:80-90/udp")];
        for text in
            ["10.0.0.0/8:5432", "10.9.9.9:5432", "[fd12::]/16:80-90/udp", "[fd12::1]:85/udp"]
        {
            assert_eq!(first_refused(&[grant(text)], &allowed), None, "{text}");
        }
        for text in [
            "10.0.0.0/7:5432",
            "11.0.0.0/8:5432",
            "10.0.0.0/8:5432/udp",
            "10.0.0.0/8:5431-5432",
            "[fd12::1]:91/udp",
            "[::]/0:80/udp",
        ] {
            assert_eq!(first_refused(&[allowed[0], grant(text)], &allowed), Some(1), "{text}");
        }
        assert_eq!(first_refused(&[], &[]), None);
        assert_eq!(first_refused(&[grant("10.0.0.1:5432")], &[]), Some(0));
    }
}
