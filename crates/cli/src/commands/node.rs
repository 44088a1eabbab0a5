//! What this machine contributes to a server: its classes and its image store.

use std::sync::Arc;

use atoll_server::{ImageSource, NoImages};

/// The image source.
pub(super) fn images() -> Arc<dyn ImageSource> {
    Arc::new(NoImages)
}
