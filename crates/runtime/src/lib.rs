//! The seam between the server and its sandboxes: one trait, three classes, one conformance suite.
//!
//! Owns how a planned sandbox comes to life on this host: pools of prepared things, spawners, the connections to shims, adoption
//! after a restart, the inventory. Never decides what should run, never touches the store, never parses what a user wrote.
//!
//! Entry points: [`Runtime`] and [`Sandbox`] (the contract), [`sim::SimRuntime`] (class `sim`).

pub mod clock;
mod contract;
pub mod gvisor_host;
pub mod sim;

pub use contract::*;
