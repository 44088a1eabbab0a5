//! Sandboxes against the network, in namespaces that each test makes: a host, a world with servers of its own, and slots between.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it skips"
)]

mod grants;
mod lab;
mod ports;
mod reach;
mod recovery;
mod spoofing;
