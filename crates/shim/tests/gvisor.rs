//! Engine `gvisor` with a real runsc: what a sandbox may rely on, driven through the trait as the shim's core drives it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says by its failure what went wrong"
)]

#[path = "gvisor/harness.rs"]
mod harness;
#[path = "gvisor/life.rs"]
mod life;
#[path = "gvisor/limits.rs"]
mod limits;
#[path = "gvisor/one_container.rs"]
mod one_container;
