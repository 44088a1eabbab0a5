//! Spawner and shim: starts sandboxes and stays their parent.

pub mod container;
mod conversation;
mod directory;
mod end_reason;
pub mod engine;
pub mod gvisor;
mod image_root;
mod log;
mod names;
mod out_buffer;
mod peer;
mod shim;
pub mod spawner;
mod stream;
