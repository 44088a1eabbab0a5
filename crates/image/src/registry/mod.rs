//! Speaking to a registry.

use crate::error::ImageErrorKind;

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Plain HTTP to another machine.
    #[error(
        "plain HTTP is spoken to this machine's own registries only, and {registry} is another"
    )]
    PlainHttp {
        /// Which registry.
        registry: String,
    },
}

impl RegistryError {
    pub(crate) fn kind(&self) -> ImageErrorKind {
        match self {
            Self::PlainHttp { .. } => ImageErrorKind::Invalid,
        }
    }
}
