//! What user space must hold for an instance's network.
//!
//! Owns the resolver that sandboxes ask for names. Never touches a kernel object of the network: sockets are made by who knows where, and
//! given to it.

pub mod fuzz;
mod resolver;

pub use resolver::{Asker, Resolver, ResolverSockets, Servers};
