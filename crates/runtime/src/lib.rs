//! The seam between the server and its sandboxes: one trait, three classes, one conformance suite.
//!
//! Owns how a planned sandbox comes to life on this host: pools of prepared things, spawners, the connections to shims, adoption
//! after a restart, the inventory. Never decides what should run, never touches the store, never parses what a user wrote.
//!
//! Entry points: [`Runtime`] and [`Sandbox`] (the contract), [`shim::ShimRuntime`] (classes `container` and `gvisor`),
//! [`sim::SimRuntime`] (class `sim`), [`container_host`] and [`gvisor_host`] (what this host offers).

pub mod container_host;
mod contract;
pub mod disk;
pub mod gvisor_host;
mod sandbox_network;
pub mod shim;
pub mod sim;
mod volume_disks;

pub use contract::*;
pub use sandbox_network::{HoldError, SandboxNetwork};
pub use volume_disks::{FoundVolume, VolumeDisks};
