//! The seam to images: what an owner and the API need of an image store, nothing more.

use std::path::PathBuf;

use async_trait::async_trait;

/// An image that is here, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Manifest digest.
    pub digest: String,
    /// Unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
}

/// Why an image could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageSourceError {
    /// There is no such image here, and none was asked for elsewhere.
    #[error("{message}")]
    NotFound {
        /// Which, and what to do.
        message: String,
    },
    /// It could not be pulled, or imported.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
    },
}

/// Where images come from.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image of that reference, if it is here.
    async fn find(&self, reference: &str) -> Result<Option<ResolvedImage>, ImageSourceError>;
}
