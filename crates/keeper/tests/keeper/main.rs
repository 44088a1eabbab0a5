//! The keeper as a process, each test with one of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "tests say what they skip")]

mod names;
mod process;
mod support;
