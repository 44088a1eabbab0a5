//! Spawner and shim: starts sandboxes and stays their parent.

pub mod container;
pub mod engine;
pub mod gvisor;
