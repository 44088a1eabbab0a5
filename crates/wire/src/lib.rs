//! Promises between programs and releases: what is serialised lives here and nowhere else.
//!
//! Owns the framed channel ([`frame`]) with its two protocols, to the guest ([`guest`]) and to the shim ([`shim`]), the records that
//! a sandbox leaves on disk ([`record`]), the log format ([`log`]) and the REST shapes ([`rest`]). Never does I/O and never decides.

pub mod frame;
pub mod guest;
pub mod log;
pub mod record;
pub mod rest;
pub mod shim;
