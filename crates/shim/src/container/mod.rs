//! Engine `container`.

use atoll_wire::shim::Launch;

use crate::engine::{Engine, EngineError, Resources};

/// Makes the engine.
///
/// # Errors
/// [`EngineError`].
pub fn engine(_launch: &Launch, _resources: Resources) -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::new("use engine container", "this build of atoll does not have it"))
}
