//! atoll's processes are killed, and nothing that was acknowledged is lost: real binary, real classes.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "test programs fail by panics and tell what they skip"
)]

#[path = "../support/mod.rs"]
mod support;

mod flood;
mod kills;
mod networks;
mod registry;
mod restarts;
mod seed;
mod shortage;
mod trouble;
