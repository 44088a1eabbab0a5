//! What this machine contributes to a server: its classes and its image store.

use std::sync::Arc;

use async_trait::async_trait;
use atoll_server::{ImageSource, ImageSourceError, ResolvedImage};

/// No images at all.
pub(super) struct NoImages;

#[async_trait]
impl ImageSource for NoImages {
    async fn find(&self, _reference: &str) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok(None)
    }
}

/// The image source.
pub(super) fn images() -> Arc<dyn ImageSource> {
    Arc::new(NoImages)
}
