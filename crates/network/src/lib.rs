//! The network of an instance: kernel objects only.
//!
//! Owns the ring (the namespace in which the host ends of all slots lie), the uplink between ring and host, the slots, and the rules of
//! both. Never resolves a name, holds a port or talks to a sandbox, and decides nothing about who may have what: it is told.
//!
//! ```text
//!   sandbox                 ring                              host
//! ┌──────────┐   ┌──────────────────────────┐   ┌───────────────────────────────┐
//! │ eth0 ────┼───┼─ a0   rules by interface │   │ table inet atoll_<instance>   │
//! └──────────┘   │                   uplink ┼───┼─ at-<instance>   masquerade,  │──► world
//! ┌──────────┐   │ gateway, resolver        │   │                  ports        │
//! │ eth0 ────┼───┼─ a1                      │   └───────────────────────────────┘
//! └──────────┘   └──────────────────────────┘
//! ```
//!
//! Slots are routed, never bridged: no frame of one ever reaches another. Ethernet addresses are written down on both sides and never
//! asked for. Everything on the host is named by the instance and is gone after [`Network::remove`].

mod elements;
mod error;
mod foreign;
mod namespace;
mod network;
mod policy;
mod route;
mod rules;
mod slot;
mod subnet;
mod uplink;
mod watch;

pub use error::NetworkError;
pub use foreign::ClosedChain;
pub use network::{Inventory, KnownSlot, Network, OpenOptions, closed_chains, probe};
pub use policy::{Grant, Policy, Protocol, PublishedPort, Reach};
pub use rules::MAX_CONNECTIONS;
pub use slot::Slot;
pub use subnet::{Addresses, InvalidSubnet, MAX_SLOTS, SlotNumber, Subnet};
