//! The shim's core with real processes, behind an engine that isolates nothing, and once with each engine of the product.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "core/engines.rs"]
mod engines;
#[path = "core/harness.rs"]
mod harness;
#[path = "core/hostile.rs"]
mod hostile;
#[path = "core/image_init.rs"]
mod image_init;
#[path = "core/lifecycle.rs"]
mod lifecycle;
#[path = "core/logs.rs"]
mod logs;
#[path = "core/older_guest.rs"]
mod older_guest;
#[path = "core/rogue_guest.rs"]
mod rogue_guest;
#[path = "core/streams.rs"]
mod streams;
#[path = "core/takeover.rs"]
mod takeover;
