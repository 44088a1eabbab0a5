//! What can go wrong with the network of an instance.

use std::path::PathBuf;

/// Why something about the network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The host cannot have a network for sandboxes.
    #[error("this host cannot give sandboxes a network: {message}")]
    Unavailable {
        /// What is missing, and what to install or allow.
        message: String,
    },
    /// No free subnet.
    #[error(
        "no subnet is free for sandboxes: each /16 of 10.128.0.0/9 overlaps a route of this host; give one with --subnet"
    )]
    NoSubnet,
    /// The chosen subnet is in use.
    #[error(
        "the subnet {subnet} overlaps the route {route} of this host; give another with --subnet"
    )]
    SubnetInUse {
        /// Chosen or recorded.
        subnet: String,
        /// What is there.
        route: String,
    },
    /// All slots are in use.
    #[error("all {0} network slots are in use: delete sandboxes first")]
    NoSlot(u32),
    /// No such slot.
    #[error("there is no network slot {0}")]
    UnknownSlot(u32),
    /// A port that another sandbox has.
    #[error("port {port}/{protocol} is published by slot {slot} already")]
    PortInUse {
        /// On the host.
        port: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Whose.
        slot: u32,
    },
    /// The kernel refused something.
    #[error("cannot {operation}")]
    Kernel {
        /// What was being done, as a verb with its object.
        operation: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file operation.
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

impl NetworkError {
    pub(crate) fn kernel<E: Into<std::io::Error>>(
        operation: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Kernel { operation, source: source.into() }
    }

    pub(crate) fn io<E: Into<std::io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source: source.into() }
    }
}
