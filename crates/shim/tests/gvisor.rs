//! Engine `gvisor` with a real runsc: what a sandbox may rely on, driven through the trait as the shim's core drives it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says by its failure what went wrong"
)]

#[path = "gvisor/guest_channel.rs"]
mod guest_channel;
#[path = "gvisor/harness.rs"]
mod harness;
#[path = "gvisor/life.rs"]
mod life;
#[path = "gvisor/limits.rs"]
mod limits;
#[path = "gvisor/one_container.rs"]
mod one_container;
#[path = "gvisor/several_containers.rs"]
mod several_containers;
#[path = "gvisor/with_guest.rs"]
mod with_guest;
