//! What can go wrong with images, in words that name the image and say what to do.

use std::io;
use std::path::{Path, PathBuf};

use atoll_model::image_reference::ImageReference;

use crate::config::BadConfig;
use crate::digest::Digest;
use crate::manifest::BadManifest;
use crate::registry::RegistryError;
use crate::unpack::UnpackError;

/// An operation on images failed. Nothing half-made is left.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such image here.
    #[error(
        "image {name} is not in the local store: pull it with 'atoll image pull', or import it with 'atoll image import'"
    )]
    NotFound {
        /// Reference or digest as asked.
        name: String,
    },
    /// Sandboxes run on it.
    #[error("image {name} is in use by {}: delete them first", holders.join(", "))]
    InUse {
        /// Reference or digest as asked.
        name: String,
        /// Who holds leases.
        holders: Vec<String>,
    },
    /// An archive would take over a name that stands for other content.
    #[error(
        "the archive calls itself {reference}, which already names another image here: import it with a reference of your choice (atoll image import FILE REF)"
    )]
    WouldReplace {
        /// The name.
        reference: String,
    },
    /// An archive that names no image needs a name.
    #[error("the archive {} names no image: give it a reference (atoll image import FILE REF)", path.display())]
    NeedsReference {
        /// The archive.
        path: PathBuf,
    },
    /// One name for several images.
    #[error("the archive {} holds {count} images: one reference cannot name them all, import it without", path.display())]
    SeveralImages {
        /// The archive.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// An image archive whose parts do not fit together.
    #[error("the image archive {} is damaged: {reason}", path.display())]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Content that is not what its digest says.
    #[error(
        "{what} should be {expected} but is {actual}: it was changed or damaged on the way, and is not used"
    )]
    DigestMismatch {
        /// Which content.
        what: String,
        /// The digest promised.
        expected: Digest,
        /// The digest found.
        actual: Digest,
    },
    /// The image is for other machines.
    #[error("image {name} has nothing for linux/{wanted}; it offers: {offered}")]
    NoPlatform {
        /// Which image.
        name: String,
        /// This machine's architecture.
        wanted: &'static str,
        /// What there is.
        offered: String,
    },
    /// A manifest or index that makes no sense.
    #[error(transparent)]
    Manifest(#[from] BadManifest),
    /// A configuration that makes no sense.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// A layer could not be unpacked.
    #[error("layer {layer} cannot be unpacked: {source}")]
    Unpack {
        /// Digest of the layer's blob, or the archive's file name.
        layer: String,
        /// Why.
        source: UnpackError,
    },
    /// The registry could not be used.
    #[error("cannot pull {}: {source}", reference.familiar())]
    Registry {
        /// What was pulled.
        reference: Box<ImageReference>,
        /// Why not.
        source: RegistryError,
    },
    /// The disk is full.
    #[error("the disk of {} is full: free space, or remove images (atoll image gc)", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Another process uses the store.
    #[error("the image store {} is used by another process: only one server may use a data directory", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// The store was written by a newer release.
    #[error("the image store {} has format {found}, newer than {known}: use the atoll that wrote it, or another data directory", path.display())]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The newest format known here.
        known: u32,
    },
    /// Somebody else's name for a lease.
    #[error("{holder:?} is no sandbox uid")]
    BadHolder {
        /// As given.
        holder: String,
    },
    /// The kernel refused a file operation of the store.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// As a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A task of the store ended early.
    #[error("an operation of the image store was cut off: {detail}")]
    Interrupted {
        /// What is known.
        detail: String,
    },
}

/// What kind of error, for an edge's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// No such image, here or in the registry.
    NotFound,
    /// Something stands against it: leases, other images' names.
    Conflict,
    /// The image, the archive or the request makes no sense or breaks a bound.
    Invalid,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry or the network failed: trying again may help.
    Unavailable,
    /// The disk is full.
    DiskFull,
    /// This machine or atoll itself.
    Internal,
}

impl ImageError {
    pub(crate) fn from_registry(reference: &ImageReference, source: RegistryError) -> Self {
        Self::Registry { reference: Box::new(reference.clone()), source }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::NotFound { .. } => ImageErrorKind::NotFound,
            Self::InUse { .. } | Self::WouldReplace { .. } => ImageErrorKind::Conflict,
            Self::NeedsReference { .. }
            | Self::SeveralImages { .. }
            | Self::BadArchive { .. }
            | Self::DigestMismatch { .. }
            | Self::NoPlatform { .. }
            | Self::Manifest(_)
            | Self::Config(_)
            | Self::BadHolder { .. } => ImageErrorKind::Invalid,
            Self::Unpack { source, .. } => match source {
                UnpackError::DiskFull { .. } => ImageErrorKind::DiskFull,
                UnpackError::Damaged { .. }
                | UnpackError::Refused { .. }
                | UnpackError::TooLarge { .. } => ImageErrorKind::Invalid,
                UnpackError::Confinement { .. }
                | UnpackError::Helper { .. }
                | UnpackError::Io { .. } => ImageErrorKind::Internal,
            },
            Self::Registry { source, .. } => source.kind(),
            Self::DiskFull { .. } => ImageErrorKind::DiskFull,
            Self::Locked { .. }
            | Self::NewerFormat { .. }
            | Self::Io { .. }
            | Self::Interrupted { .. } => ImageErrorKind::Internal,
        }
    }
}

/// Names the operation and the path of an I/O error; a full disk by its own variant.
pub(crate) fn io_error(
    operation: &'static str,
    path: &Path,
    source: impl Into<io::Error>,
) -> ImageError {
    let source = source.into();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ImageError::DiskFull { path: path.into() }
        }
        _ => ImageError::Io { operation, path: path.into(), source },
    }
}
