//! atoll's processes are killed, and nothing that was acknowledged is lost: real binary, real classes.

#[path = "../support/mod.rs"]
mod support;

mod kills;
mod restarts;
mod seed;
mod trouble;
