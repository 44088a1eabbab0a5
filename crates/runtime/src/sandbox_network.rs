//! The contract between server and the instance's network: ports of the host for sandboxes, and connections to them.
//!
//! ```text
//! hold ──► (launch: a slot, closed) ──► publish(true) ⇄ publish(false) ──► let_go (any time, idempotent)
//! ```

use async_trait::async_trait;
use atoll_wire::shim::PortPlan;

use crate::RuntimeError;

/// Why ports were not held. None was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Somebody has it.
    #[error("port {host_port} of this host is taken by {}", if *by_sandbox { "another sandbox" } else { "a program outside of atoll" })]
    Taken {
        /// The port.
        host_port: u16,
        /// A sandbox has it, not another program.
        by_sandbox: bool,
    },
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// The network of an instance, as its server sees it.
#[async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Holds ports of this host for a sandbox, so that nobody else takes them: all or none. The same again changes nothing.
    async fn hold(&self, uid: &str, ports: &[PortPlan]) -> Result<(), HoldError>;

    /// Lets go of everybody who was neither begun nor held for since this server began: once its records are taken up.
    async fn retain(&self);

    /// Lets visitors of a sandbox's published ports in, or no new ones from now on. The same again changes nothing.
    async fn publish(&self, uid: &str, is_open: bool) -> Result<(), RuntimeError>;

    /// A connection to a port of a sandbox, from where nobody else comes. Given up when dropped.
    async fn connect(&self, uid: &str, port: u16) -> Result<tokio::net::TcpStream, RuntimeError>;

    /// Nothing of a sandbox runs any more, or ever will: its address and its ports are free afterwards. Idempotent.
    async fn let_go(&self, uid: &str) -> Result<(), RuntimeError>;
}
