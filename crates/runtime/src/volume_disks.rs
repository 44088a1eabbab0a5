//! The contract between server and the disks of named volumes, which outlive sandboxes and servers.
//!
//! ```text
//! make ──► (sandboxes that mount it: launch, by the volume's uid) ──► condemn ──► remove
//! ```
//!
//! A kill at any point leaves what [`VolumeDisks::all`] tells the next server: a disk, or one that is condemned. What was half made is gone.

use async_trait::async_trait;
use atoll_wire::shim::DiskBackend;

use crate::{DiskUsage, RuntimeError};

/// The disk of a volume that was found on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVolume {
    /// Whose.
    pub uid: String,
    /// Its removal was decided.
    pub condemned: bool,
}

/// Disks of named volumes on this host.
#[async_trait]
pub trait VolumeDisks: Send + Sync + 'static {
    /// What bounds them.
    fn backend(&self) -> DiskBackend;

    /// The smallest that can be made.
    fn least_bytes(&self) -> u64;

    /// Makes an empty disk of this size, whose root belongs to root and is everybody's to write to. It survives crashes of the host when
    /// this returns. One that is there already stays as it is.
    async fn make(&self, uid: &str, size_bytes: u64) -> Result<(), RuntimeError>;

    /// What a disk of this size holds; `None`: nobody counts it. An error when there is no such disk.
    async fn usage(&self, uid: &str, size_bytes: u64) -> Result<Option<DiskUsage>, RuntimeError>;

    /// Notes durably that a disk is to be removed, whatever comes between. Idempotent; none of that uid is fine.
    async fn condemn(&self, uid: &str) -> Result<(), RuntimeError>;

    /// Removes a disk with all that is in it. Idempotent; none of that uid is fine.
    async fn remove(&self, uid: &str) -> Result<(), RuntimeError>;

    /// All that are here.
    async fn all(&self) -> Result<Vec<FoundVolume>, RuntimeError>;
}
