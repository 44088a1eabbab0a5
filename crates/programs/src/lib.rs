//! The two static programs that a node needs beside the `atoll` binary itself, as bytes.
//!
//! Owns nothing else: who uses them writes them to files of its own.

/// The guest: first process of each container.
pub static GUEST: &[u8] = include_bytes!(env!("ATOLL_GUEST_PROGRAM"));

/// Spawner and shim.
pub static SHIM: &[u8] = include_bytes!(env!("ATOLL_SHIM_PROGRAM"));
