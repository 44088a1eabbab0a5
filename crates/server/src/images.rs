//! The seam to images: what owners and the API need of an image store, nothing more.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_model::image_reference::ImageReference;
use atoll_wire::guest::UserIds;
use atoll_wire::rest::{CollectedImages, ImageInfo, ImageProgress, Registry, RegistryCredentials};
use tokio::io::AsyncRead;

mod absent;
pub use absent::NoImages;

/// An image that is here, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Manifest digest.
    pub digest: String,
    /// Unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// What the image says about running it.
    pub config: ImageConfig,
}

/// What an image says about running it. SOURCE: OCI image-spec, config.md.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// Words before the command.
    pub entrypoint: Vec<String>,
    /// The command, or the entrypoint's arguments.
    pub cmd: Vec<String>,
    /// `KEY=VALUE` entries.
    pub env: Vec<String>,
    /// Absolute, or empty.
    pub working_dir: String,
    /// `user[:group]`, or empty.
    pub user: String,
    /// A name or number, or empty.
    pub stop_signal: String,
}

/// A user as an image knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// As numbers.
    pub ids: UserIds,
    /// Home directory.
    pub home: Option<String>,
}

/// Why something about images could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageSourceError {
    /// There is no such image here.
    #[error("{message}")]
    NotFound {
        /// Which, and what to do.
        message: String,
    },
    /// A sandbox uses it.
    #[error("{message}")]
    InUse {
        /// Which do.
        message: String,
    },
    /// What was given is no image, or lies about itself.
    #[error("{message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
    },
    /// A registry or the disk failed.
    #[error("{message}")]
    Failed {
        /// What was tried, and how it failed.
        message: String,
    },
}

/// Takes progress lines. Must return quickly.
pub type Progress = Arc<dyn Fn(ImageProgress) + Send + Sync>;

/// Where images come from.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image of that reference, if it is here.
    async fn find(
        &self,
        reference: &ImageReference,
    ) -> Result<Option<ResolvedImage>, ImageSourceError>;

    /// Asks the registry; downloads and unpacks what is missing.
    async fn pull(
        &self,
        reference: &ImageReference,
        plain_http: bool,
        progress: Progress,
    ) -> Result<ResolvedImage, ImageSourceError>;

    /// The image of that manifest digest, if it is here.
    async fn by_digest(&self, digest: &str) -> Result<Option<ResolvedImage>, ImageSourceError>;

    /// Keeps an image for a holder (a sandbox's uid) until it is released, also over restarts.
    async fn lease(&self, digest: &str, holder: &str) -> Result<(), ImageSourceError>;

    /// Ends all leases of a holder; none is fine.
    async fn release(&self, holder: &str) -> Result<(), ImageSourceError>;

    /// Ends the leases of everybody but these.
    async fn retain_leases(&self, holders: &HashSet<String>) -> Result<(), ImageSourceError>;

    /// The numbers of `user[:group]` by the user database of the image of that digest. The empty text is root.
    async fn resolve_user(
        &self,
        digest: &str,
        user: &str,
    ) -> Result<ResolvedUser, ImageSourceError>;

    /// All images here; `used_by` is left empty.
    async fn list(&self) -> Result<Vec<ImageInfo>, ImageSourceError>;

    /// One image, with its configuration.
    async fn inspect(&self, reference: &ImageReference) -> Result<ImageInfo, ImageSourceError>;

    /// Forgets a reference, and the image with its last one.
    async fn remove(&self, reference: &ImageReference) -> Result<(), ImageSourceError>;

    /// Reads an archive (docker save, OCI layout, plain rootfs) to its end.
    async fn import(
        &self,
        archive: Box<dyn AsyncRead + Send + Unpin>,
        reference: Option<&ImageReference>,
        progress: Progress,
    ) -> Result<Vec<ImageInfo>, ImageSourceError>;

    /// Removes what nothing uses.
    async fn collect(&self) -> Result<CollectedImages, ImageSourceError>;

    /// Registries with credentials.
    async fn registries(&self) -> Result<Vec<Registry>, ImageSourceError>;

    /// Keeps credentials, 0600.
    async fn set_credentials(
        &self,
        registry: &str,
        credentials: &RegistryCredentials,
    ) -> Result<(), ImageSourceError>;

    /// Forgets credentials. False: there were none.
    async fn remove_credentials(&self, registry: &str) -> Result<bool, ImageSourceError>;
}
