//! A node without images: everything asked is answered by what is missing.

use std::collections::HashSet;

use async_trait::async_trait;
use atoll_model::image_reference::ImageReference;
use atoll_wire::rest::{CollectedImages, ImageInfo, Registry, RegistryCredentials};
use tokio::io::AsyncRead;

use super::{ImageSource, ImageSourceError, Progress, ResolvedImage, ResolvedUser};

/// No images, and no way to get any.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoImages;

fn nothing<T>(what: &str) -> Result<T, ImageSourceError> {
    Err(ImageSourceError::NotFound {
        message: format!("this node keeps no images: {what} is not here"),
    })
}

#[async_trait]
impl ImageSource for NoImages {
    async fn find(&self, _: &ImageReference) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok(None)
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        _: bool,
        _: Progress,
    ) -> Result<ResolvedImage, ImageSourceError> {
        nothing(&reference.familiar())
    }

    async fn by_digest(&self, _: &str) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok(None)
    }

    async fn lease(&self, digest: &str, _: &str) -> Result<(), ImageSourceError> {
        nothing(digest)
    }

    async fn release(&self, _: &str) -> Result<(), ImageSourceError> {
        Ok(())
    }

    async fn retain_leases(&self, _: &HashSet<String>) -> Result<(), ImageSourceError> {
        Ok(())
    }

    async fn resolve_user(&self, digest: &str, _: &str) -> Result<ResolvedUser, ImageSourceError> {
        nothing(digest)
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, ImageSourceError> {
        Ok(Vec::new())
    }

    async fn inspect(&self, reference: &ImageReference) -> Result<ImageInfo, ImageSourceError> {
        nothing(&reference.familiar())
    }

    async fn remove(&self, reference: &ImageReference) -> Result<(), ImageSourceError> {
        nothing(&reference.familiar())
    }

    async fn import(
        &self,
        _: Box<dyn AsyncRead + Send + Unpin>,
        _: Option<&ImageReference>,
        _: Progress,
    ) -> Result<Vec<ImageInfo>, ImageSourceError> {
        nothing("a place for it")
    }

    async fn collect(&self) -> Result<CollectedImages, ImageSourceError> {
        Ok(CollectedImages { removed: Vec::new(), freed_bytes: 0 })
    }

    async fn registries(&self) -> Result<Vec<Registry>, ImageSourceError> {
        Ok(Vec::new())
    }

    async fn set_credentials(
        &self,
        registry: &str,
        _: &RegistryCredentials,
    ) -> Result<(), ImageSourceError> {
        nothing(registry)
    }

    async fn remove_credentials(&self, _: &str) -> Result<bool, ImageSourceError> {
        Ok(false)
    }
}
