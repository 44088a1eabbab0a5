//! The shim's core with real processes, behind an engine that isolates nothing.

#[path = "core/harness.rs"]
mod harness;
#[path = "core/hostile.rs"]
mod hostile;
#[path = "core/lifecycle.rs"]
mod lifecycle;
#[path = "core/logs.rs"]
mod logs;
#[path = "core/streams.rs"]
mod streams;
#[path = "core/takeover.rs"]
mod takeover;
