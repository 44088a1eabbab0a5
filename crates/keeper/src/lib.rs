//! The process that outlives a server and holds what user space must hold for an instance's network.
//!
//! Owns the published ports, the proxies behind them on loopback addresses, and the resolver that sandboxes ask for names. Never touches a
//! kernel object of the network, and decides nothing: a server says what is wanted ([`KeeperClient`]), this makes it true ([`run`]).

mod client;
pub mod fuzz;
mod member;
mod place;
mod ports;
mod process;
mod program;
mod protocol;
mod resolver;
mod table;

pub use client::{KeeperClient, KeeperError, StartOptions};
pub use member::{Addresses, Holding, Member, Names, Port, PortHold, Protocol, ResolverPlace};
pub use process::{Options, RunError, run};
pub use program::{PROGRAM_ARGUMENT, program_main};
pub use resolver::{Asker, Resolver, ResolverSockets, Servers};
