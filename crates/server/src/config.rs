//! What the server must be told: all of it, checked, before it begins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_model::egress::Grant;
use atoll_model::ports::PortRange;
use atoll_model::rate::RateLimit;
use atoll_runtime::{Runtime, RuntimeClass, SandboxNetwork, VolumeDisks};
use atoll_sys::capabilities::CapabilitySet;

use crate::data_dir::{DataDir, DataDirError};
use crate::images::ImageSource;
use crate::store::StoreError;

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP on loopback; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket, mode 0600.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Neither form.
    #[error(
        "{text:?} is not an address to listen on; write for example '127.0.0.1:8082', '[::1]:0' or 'unix:/run/atoll.sock'"
    )]
    Malformed {
        /// As given.
        text: String,
    },
    /// Others could listen in.
    #[error(
        "{address} is not a loopback address: listening there needs TLS, which this version does not have; listen on 127.0.0.1 and put a TLS proxy in front"
    )]
    NotLoopback {
        /// As given.
        address: SocketAddr,
    },
}

impl std::str::FromStr for ListenAddress {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let malformed = || ListenError::Malformed { text: text.chars().take(200).collect() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(malformed()) };
        }
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address: SocketAddr = numeric.parse().map_err(|_| malformed())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(ListenError::NotLoopback { address })
        }
    }
}

/// Is told the address.
pub type OnServing = Box<dyn FnOnce(&str) + Send>;

/// What this machine's operator lets sandboxes have beyond the default. Nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Privileges {
    /// Capabilities that a manifest may add, besides those that every sandbox has.
    pub capabilities: CapabilitySet,
    /// A manifest may turn no-new-privileges off.
    pub new_privileges: bool,
}

/// All that [`crate::run`] needs.
pub struct ServerConfig {
    /// Locked by this process.
    pub data_dir: DataDir,
    /// Where clients connect.
    pub listen: ListenAddress,
    /// This machine's name in statuses.
    pub node_name: String,
    /// The classes that can be had. Their spawners were begun before this process had threads.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    /// The classes that cannot be had here, and what to install or change.
    pub missing_classes: Vec<(RuntimeClass, String)>,
    /// Whether new sandboxes may have a network, or why they cannot.
    pub network: Result<(), String>,
    /// The instance's network where there is one, also one that only sandboxes from before have.
    pub sandbox_network: Option<Arc<dyn SandboxNetwork>>,
    /// Where named volumes are kept; `None`: this server has none.
    pub volume_disks: Option<Arc<dyn VolumeDisks>>,
    /// This machine's labels: what selectors are matched against.
    pub node_labels: BTreeMap<String, String>,
    /// Ports of this host that may be published.
    pub port_range: PortRange,
    /// Private destinations that sandboxes may ask for.
    pub egress_grants: Vec<Grant>,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
    /// Sandboxes that are begun at the same time, at most; others wait in order. `None`: 16.
    pub concurrent_launches: Option<usize>,
    /// What sandboxes may have beyond the default.
    pub privileges: Privileges,
    /// How often sandboxes may be created; `None`: as often as they are asked for.
    pub create_limit: Option<RateLimit>,
    /// Called once clients can connect, with the address as in `server.json`.
    pub on_serving: Option<OnServing>,
}

/// Launches at the same time. Guess: enough to keep all cores of a small machine busy while disks wait, few enough that the first
/// ones are not slowed down by the last.
pub(crate) const DEFAULT_CONCURRENT_LAUNCHES: usize = 16;

/// Why the server could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// See there.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address cannot be had.
    #[error("cannot listen on {address}: is another server there? Choose another with --listen")]
    Listen {
        /// As given.
        address: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file of the data directory cannot be read or written.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// As a verb.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_listened_on() {
        for good in
            ["127.0.0.1:8082", "[::1]:0", "localhost:80", "127.8.9.1:1", "unix:/run/atoll.sock"]
        {
            assert!(good.parse::<ListenAddress>().is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:80", "[::]:80", "192.168.1.1:80", "[::ffff:10.0.0.1]:1"] {
            assert!(
                matches!(bad.parse::<ListenAddress>(), Err(ListenError::NotLoopback { .. })),
                "{bad}"
            );
        }
        for bad in ["", "80", "127.0.0.1", "unix:relative", "host:80", "localhost:99999"] {
            assert!(
                matches!(bad.parse::<ListenAddress>(), Err(ListenError::Malformed { .. })),
                "{bad}"
            );
        }
    }
}
