//! The pure core of atoll: what a sandbox is, which specs are valid, which states it may take.
//!
//! Owns ids, units, the canonical [`spec::SandboxSpec`], its rules ([`validate`]), the state machine ([`state`]), probes ([`probe`]) and what a restart
//! does with each record ([`recovery`]). It must never do I/O, read a clock, or know how anything is serialised: edges own wire shapes.

pub mod boost;
pub mod causes;
pub mod dependencies;
pub mod egress;
pub mod ids;
pub mod image_reference;
pub mod ports;
pub mod probe;
pub mod rate;
pub mod recovery;
pub mod selector;
pub mod spec;
pub mod state;
pub mod timeline;
pub mod units;
pub mod validate;
pub mod volumes;
