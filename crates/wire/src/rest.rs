//! Shapes of the REST API under `/api/v1`: sandboxd-o's own (`sandboxd.o/v1`), with additions that its clients never see unless they ask.
//!
//! Everything a client sends is read by [`strict`]: an unknown field is an error that names its path and the nearest known name.

mod external;
mod manifest;
mod server;
mod status;
mod stream;
pub mod strict;
mod volume;

pub use external::*;
pub use manifest::*;
pub use server::*;
pub use status::*;
pub use stream::*;
pub use volume::*;
