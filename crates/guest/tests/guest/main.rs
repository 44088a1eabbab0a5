//! The guest program itself, spoken to over its channel as a host does.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod first_process;
mod gvisor;
mod processes;
mod protocol;
mod support;
mod transfers;
