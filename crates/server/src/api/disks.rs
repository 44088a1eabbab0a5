//! What the disks of a running sandbox hold, for the answer to who asks for that sandbox. Never stored: it is true for a moment.

use atoll_wire::rest::{DiskStatus, Sandbox};

use super::App;

/// A sandbox's record, with what the disks of its containers hold where that can be seen.
pub(super) async fn with_usage(app: &App, sandbox: &Sandbox) -> Sandbox {
    let mut shown = sandbox.clone();
    let owner = app.context.owners.of(sandbox);
    let Some(live) = owner.and_then(|owner| owner.live()) else { return shown };
    for container in &mut shown.status.containers {
        // A sandbox that ends meanwhile is no reason to answer nothing about it.
        let usage = live.sandbox.disk(&container.name).await.ok().flatten();
        container.disk = usage.map(|usage| DiskStatus {
            backend: usage.backend.name().to_owned(),
            limit_bytes: usage.limit_bytes,
            used_bytes: usage.used_bytes,
        });
    }
    shown
}
