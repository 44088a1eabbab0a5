//! What a server wants of the keeper, sandbox by sandbox. Shapes of the conversation between them: see `protocol` for what may change.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Of which kind a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of this host that nobody else may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortHold {
    /// Of which kind.
    pub protocol: Protocol,
    /// Its number, not 0.
    pub host_port: u16,
}

impl fmt::Display for PortHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.protocol, self.host_port)
    }
}

/// A published port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// What is held of this host.
    pub hold: PortHold,
    /// Where it leads at the sandbox's addresses.
    pub target_port: u16,
    /// Whether clients on loopback addresses are let in. Closing it lets those go on who are in.
    pub open: bool,
}

/// Where a sandbox is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Its address of IPv4.
    pub ipv4: Ipv4Addr,
    /// Its address of IPv6.
    pub ipv6: Ipv6Addr,
}

impl Addresses {
    /// Both, for who does not care.
    #[must_use]
    pub fn both(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// Where a client of this family is led: to its own family, and, where nobody listens there, to the other.
    pub(crate) fn targets(&self, client: IpAddr, port: u16) -> [SocketAddr; 2] {
        let (ipv4, ipv6) =
            (SocketAddr::from((self.ipv4, port)), SocketAddr::from((self.ipv6, port)));
        if client.is_ipv4() { [ipv4, ipv6] } else { [ipv6, ipv4] }
    }
}

/// What a sandbox may learn of names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// Nothing: every question is refused at once.
    #[default]
    Refuse,
    /// What this host's servers say, but for addresses that are not the world's and not in `granted`.
    Forward {
        /// Private addresses that it may be told.
        granted: Vec<RangeInclusive<IpAddr>>,
    },
}

/// A sandbox, as a server wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who it is, for servers that come later.
    pub uid: String,
    /// Where it is; `None`: nowhere yet. Its ports are held, and none is open.
    pub addresses: Option<Addresses>,
    /// What it may learn of names.
    #[serde(default)]
    pub names: Names,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// What the keeper has of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The sandbox as it was last wanted.
    pub member: Member,
    /// Connections and flows that pass the keeper now.
    pub connections: u32,
}

/// Where the resolver serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverPlace {
    /// The ring: a file that is a network namespace.
    pub ring: std::path::PathBuf,
    /// The gateway's addresses in it.
    pub gateway: Addresses,
    /// 53 in all sandboxes.
    pub port: u16,
    /// Servers that are asked; none: those that this host itself asks.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
}
