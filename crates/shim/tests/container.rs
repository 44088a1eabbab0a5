//! Engine `container`, attacked and used: each test runs real containers through the engine's trait, in a driver process that is
//! single-threaded as a shim is (`examples/container_driver.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and what is skipped is shown"
)]

#[path = "container/from_outside.rs"]
mod from_outside;
#[path = "container/hardening.rs"]
mod hardening;
#[path = "container/harness.rs"]
mod harness;
#[path = "container/hostile_images.rs"]
mod hostile_images;
#[path = "container/kernel.rs"]
mod kernel;
#[path = "container/life.rs"]
mod life;
#[path = "container/limits.rs"]
mod limits;
#[path = "container/neighbours.rs"]
mod neighbours;
