//! OCI images: pull, import, content-addressed store, confined unpacking, collection.
//!
//! Owns everything below `<data>/images` and the file of registry credentials. Everything that comes from a registry or an
//! archive is hostile: bounded, digest-verified, parsed before it is believed, and unpacked only by a helper process that can
//! touch nothing but the directory it fills ([`unpack_helper_main`]). This crate must never run anything of an image, never
//! read a label as an instruction, and never turn a name out of an image into a path of the host.
//!
//! Entry points: [`ImageStore`] (pull, import, resolve, lease, collect) and [`users::resolve`].

mod atomic_file;
pub mod config;
mod credentials;
pub mod digest;
mod error;
mod fuzz;
mod import;
mod manifest;
mod merged;
mod progress;
mod pull;
mod registry;
mod store;
mod unpack;
pub mod users;

pub use config::{BadConfig, ImageConfig};
pub use credentials::Credentials;
pub use digest::Digest;
pub use error::{ImageError, ImageErrorKind};
pub use fuzz::{fuzz_manifest, fuzz_tar, fuzz_users};
pub use manifest::BadManifest;
pub use progress::{ProgressEvent, ProgressSink};
pub use pull::PullOptions;
pub use registry::RegistryError;
pub use store::{Collected, HighWater, Image, ImageStore, ImageSummary, StoreOptions};
pub use unpack::{UnpackError, UnpackHelper, unpack_helper_main};
