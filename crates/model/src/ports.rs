//! Which host port a published port gets.
//!
//! Owns the choice alone: ports are exclusive for each protocol, within the node's range, all of a sandbox's or none. Whether a program
//! outside of atoll holds one, only the attempt to bind it tells.

use std::collections::BTreeMap;
use std::fmt;

/// Ports of a sandbox are taken from here unless the node says otherwise: below every range of ephemeral ports in use (Linux begins at
/// 32768), above what programs of the system ask for.
pub const DEFAULT_PORT_RANGE: PortRange = PortRange { first: 10_000, last: 32_767 };

/// Of which kind a port is. A number is a different port in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortProtocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortProtocol {
    /// The name in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The protocol of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|it| it.name() == name)
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Ports that may be given out, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// From `first` to `last`.
    ///
    /// # Errors
    /// [`PortError::BadRange`] for one that is empty or holds port 0.
    pub const fn new(first: u16, last: u16) -> Result<Self, PortError> {
        if first == 0 || first > last {
            return Err(PortError::BadRange { first, last });
        }
        Ok(Self { first, last })
    }

    /// Whether a port lies in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Every port of it once, beginning at `start` where that lies in it.
    fn from(self, start: u16) -> impl Iterator<Item = u16> {
        let start = if self.contains(start) { start } else { self.first };
        (start..=self.last).chain(self.first..start)
    }
}

/// `10000-32767`.
impl std::str::FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let bound = |text: &str| text.trim().parse().unwrap_or(0);
        match text.split_once('-') {
            Some((first, last)) => Self::new(bound(first), bound(last)),
            None => Self::new(bound(text), bound(text)),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What a manifest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedPort {
    /// Of which kind.
    pub protocol: PortProtocol,
    /// This one; `None`: any.
    pub host_port: Option<u16>,
}

/// Why ports were not given out. Nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not a range.
    #[error("{first}-{last} is no range of ports (from 1 to 65535, the first not above the last)")]
    BadRange {
        /// As it was given.
        first: u16,
        /// As it was given.
        last: u16,
    },
    /// A port that this node does not publish.
    #[error("{protocol} port {host_port} is outside of this node's range {range}")]
    OutsideRange {
        /// Of which kind.
        protocol: PortProtocol,
        /// The port.
        host_port: u16,
        /// What is allowed.
        range: PortRange,
    },
    /// A port that a sandbox has.
    #[error("{protocol} port {host_port} is taken by sandbox {by}")]
    Taken {
        /// Of which kind.
        protocol: PortProtocol,
        /// The port.
        host_port: u16,
        /// Who has it, as the caller calls sandboxes.
        by: String,
    },
    /// One request asks for one port twice.
    #[error("{protocol} port {host_port} is asked for twice")]
    Twice {
        /// Of which kind.
        protocol: PortProtocol,
        /// The port.
        host_port: u16,
    },
    /// Every port is taken.
    #[error("no {protocol} port of {range} is free")]
    Exhausted {
        /// Of which kind.
        protocol: PortProtocol,
        /// What is allowed.
        range: PortRange,
    },
}

/// Ports for all of `wanted`, in its order. `used` says who has what; any port is looked for from `start` on, so that one that was just given
/// back is not the next to be given out: clients of its old owner would meet the new one.
///
/// # Errors
/// [`PortError`]: the first wish that cannot be fulfilled.
pub fn assign(
    range: PortRange,
    used: &BTreeMap<(PortProtocol, u16), String>,
    wanted: &[WantedPort],
    start: u16,
) -> Result<Vec<u16>, PortError> {
    let mut given: Vec<(PortProtocol, u16)> = Vec::new();
    // What is asked for by number comes first: it must not be given to a wish for any.
    for (protocol, host_port) in
        wanted.iter().filter_map(|wish| Some((wish.protocol, wish.host_port?)))
    {
        if !range.contains(host_port) {
            return Err(PortError::OutsideRange { protocol, host_port, range });
        }
        if let Some(by) = used.get(&(protocol, host_port)) {
            return Err(PortError::Taken { protocol, host_port, by: by.clone() });
        }
        if given.contains(&(protocol, host_port)) {
            return Err(PortError::Twice { protocol, host_port });
        }
        given.push((protocol, host_port));
    }
    let mut ports = Vec::with_capacity(wanted.len());
    for wish in wanted {
        let protocol = wish.protocol;
        let host_port = match wish.host_port {
            Some(host_port) => host_port,
            None => {
                let free = |port: &u16| {
                    !used.contains_key(&(protocol, *port)) && !given.contains(&(protocol, *port))
                };
                let found = range.from(start).find(free);
                let host_port = found.ok_or(PortError::Exhausted { protocol, range })?;
                given.push((protocol, host_port));
                host_port
            }
        };
        ports.push(host_port);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::PortProtocol::{Tcp, Udp};
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    fn wish(protocol: PortProtocol, host_port: impl Into<Option<u16>>) -> WantedPort {
        WantedPort { protocol, host_port: host_port.into() }
    }

    fn used(ports: &[(PortProtocol, u16)]) -> BTreeMap<(PortProtocol, u16), String> {
        ports.iter().map(|port| (*port, "alice".to_owned())).collect()
    }

    #[test]
    fn a_port_is_exclusive_for_its_protocol() {
        let ten = range(10, 12);
        let taken = used(&[(Tcp, 10)]);
        assert_eq!(assign(ten, &taken, &[wish(Udp, 10)], 10), Ok(vec![10]));
        let error = assign(ten, &taken, &[wish(Tcp, 10)], 10).unwrap_err();
        assert_eq!(error.to_string(), "tcp port 10 is taken by sandbox alice");
        assert_eq!(assign(ten, &taken, &[wish(Tcp, None)], 10), Ok(vec![11]));
    }

    #[test]
    fn a_wish_for_any_does_not_take_what_is_asked_for_by_number() {
        let wishes = [wish(Tcp, None), wish(Tcp, 10), wish(Tcp, None)];
        assert_eq!(assign(range(10, 12), &used(&[]), &wishes, 10), Ok(vec![11, 10, 12]));
    }

    #[test]
    fn the_search_goes_on_from_where_it_was_and_round() {
        let one = [wish(Tcp, None)];
        assert_eq!(assign(range(10, 12), &used(&[]), &one, 12), Ok(vec![12]));
        assert_eq!(assign(range(10, 12), &used(&[(Tcp, 12)]), &one, 12), Ok(vec![10]));
        assert_eq!(assign(range(10, 12), &used(&[]), &one, 0), Ok(vec![10]));
        assert_eq!(assign(range(u16::MAX, u16::MAX), &used(&[]), &one, 0), Ok(vec![u16::MAX]));
    }

    #[test]
    fn what_cannot_be_is_said_precisely() {
        let ten = range(10, 11);
        let error =
            |used, wishes: &[WantedPort]| assign(ten, &used, wishes, 10).unwrap_err().to_string();
        assert_eq!(
            error(used(&[(Tcp, 10), (Tcp, 11)]), &[wish(Tcp, None)]),
            "no tcp port of 10-11 is free"
        );
        assert_eq!(
            error(used(&[]), &[wish(Udp, 9)]),
            "udp port 9 is outside of this node's range 10-11"
        );
        assert_eq!(
            error(used(&[]), &[wish(Tcp, 10), wish(Tcp, 10)]),
            "tcp port 10 is asked for twice"
        );
        assert_eq!("10-12".parse(), Ok(range(10, 12)));
        for bad in ["", "x", "0-5", "12-10", "1-65536", "1-2-3"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        for (first, last) in [(0, 5), (6, 5), (0, 0)] {
            assert_eq!(PortRange::new(first, last), Err(PortError::BadRange { first, last }));
        }
    }

    proptest! {
        /// Whatever is asked for: what is given is free, in the range, as wished, and given once; and any is refused only when nothing is free.
        #[test]
        fn what_is_given_is_free_and_given_once(
            taken in proptest::collection::btree_set(10_u16..20, 0..10),
            wishes in proptest::collection::vec(proptest::option::of(8_u16..22), 0..12),
            start in 8_u16..22,
        ) {
            let ten = range(10, 19);
            let taken: Vec<_> = taken.into_iter().map(|port| (Tcp, port)).collect();
            let wanted: Vec<_> = wishes.iter().map(|port| wish(Tcp, *port)).collect();
            match assign(ten, &used(&taken), &wanted, start) {
                Ok(ports) => {
                    prop_assert_eq!(ports.len(), wanted.len());
                    for (at, port) in ports.iter().enumerate() {
                        prop_assert!(ten.contains(*port) && !taken.contains(&(Tcp, *port)));
                        prop_assert!(!ports[..at].contains(port));
                        prop_assert!(wanted[at].host_port.is_none_or(|wished| wished == *port));
                    }
                }
                Err(PortError::Exhausted { .. }) => prop_assert!(taken.len() + wanted.len() > 10),
                Err(error) => prop_assert!(wanted.iter().any(|it| it.host_port.is_some()), "{}", error),
            }
        }
    }
}
