//! Bringing an image from a registry into the store.

/// How to pull.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// Speak HTTP without TLS. Refused for registries that are not on this machine.
    pub plain_http: bool,
}
