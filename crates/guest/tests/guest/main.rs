//! The guest program itself, spoken to over its channel as a host does.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod processes;
mod protocol;
mod support;
mod transfers;
