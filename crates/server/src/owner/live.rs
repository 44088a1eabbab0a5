//! A sandbox that runs: its handle, and what is needed to run more in it.

use std::sync::Arc;

use atoll_runtime::Sandbox;
use atoll_wire::shim::SandboxPlan;

/// A sandbox that runs.
pub(crate) struct Live {
    /// Its shim.
    pub(crate) sandbox: Arc<dyn Sandbox>,
    /// What it was begun with: environment, user and capabilities of further processes come from here.
    pub(crate) plan: Arc<SandboxPlan>,
    /// Digest of each container's image, in the order of the plan; where users are looked up.
    pub(crate) digests: Vec<String>,
}
