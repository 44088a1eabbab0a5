//! Classes `container` and `gvisor`: sandboxes that live under a shim of their own, outside this process.
//!
//! [`ShimHost`] is what they share on a host, [`ShimRuntime`] a class on it. Nothing here isolates anything: that is the shim's work, which
//! this process may not outlive and cannot harm by dying.
//!
//! ```text
//! launch:  pools ──► directory, launch.json ──► spawner (SOCK_SEQPACKET, descriptors) ──fork──► shim ──► Spawned ... events
//! adopt:   shim.sock? ──► end.json? ──► lock held? ──► processes alive? ──► spawner forks a shim that adopts
//! destroy: Stop(0) ──► kill the shim ──► kill the control group ──► remove the directory
//! ```

mod adopt;
mod connection;
mod destroy;
mod directory;
mod disk_usage;
mod host;
mod id_ranges;
mod keeping;
mod launch;
mod launches;
mod pools;
mod programs;
mod ring_io;
mod sandbox;
mod slots;
mod spawners;
mod stream;
mod volumes;

use std::sync::Arc;

use async_trait::async_trait;
use atoll_wire::shim::{Engine, GvisorPlacement, SandboxPlan};

use crate::gvisor_host::GvisorHost;
use crate::{
    Adoption, ClassTraits, EventReceiver, LimitsScope, Runtime, RuntimeClass, RuntimeError, Sandbox,
};
use atoll_model::causes::with_causes;

pub use host::{NetworkConfig, ShimHost, ShimHostConfig, instance_name};
pub use pools::{DISK_SIZES, PoolSizes};

/// What a class adds to the shared host.
#[derive(Debug, Clone)]
struct Setup {
    engine: Engine,
    /// Sandboxes have host ids of their own.
    own_ids: bool,
    gvisor: Option<GvisorPlacement>,
}

/// Class `container` or `gvisor` on a [`ShimHost`].
pub struct ShimRuntime {
    host: Arc<ShimHost>,
    setup: Setup,
    traits: ClassTraits,
}

impl ShimRuntime {
    /// Class `container`. `detail` is what [`crate::container_host`] says about this host.
    #[must_use]
    pub fn container(host: Arc<ShimHost>, detail: String) -> Self {
        let setup = Setup { engine: Engine::Container, own_ids: true, gvisor: None };
        let limits_scope = LimitsScope::Container;
        Self { host, setup, traits: ClassTraits { limits_scope, image_init: true, detail } }
    }

    /// Class `gvisor`, with what was found about runsc on this host.
    #[must_use]
    pub fn gvisor(host: Arc<ShimHost>, found: &GvisorHost) -> Self {
        let placement = found.placement(host.layout.runsc());
        let setup = Setup { engine: Engine::Gvisor, own_ids: false, gvisor: Some(placement) };
        let (limits_scope, detail) = (LimitsScope::Sandbox, found.detail());
        Self { host, setup, traits: ClassTraits { limits_scope, image_init: true, detail } }
    }

    /// What is shared with the other class.
    #[must_use]
    pub const fn host(&self) -> &Arc<ShimHost> {
        &self.host
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    fn class(&self) -> RuntimeClass {
        match self.setup.engine {
            Engine::Container => RuntimeClass::Container,
            Engine::Gvisor => RuntimeClass::Gvisor,
        }
    }

    fn traits(&self) -> ClassTraits {
        self.traits.clone()
    }

    async fn prewarm(&self, disk_bytes: u64) {
        self.host.pools.want_disk(disk_bytes);
    }

    async fn launch(
        &self,
        plan: SandboxPlan,
    ) -> Result<(Arc<dyn Sandbox>, EventReceiver), RuntimeError> {
        launch::launch(Arc::clone(&self.host), self.setup.clone(), plan).await
    }

    async fn adopt(&self, uid: &str) -> Result<Adoption, RuntimeError> {
        adopt::adopt(&self.host, uid).await
    }

    /// Those of this class, and those whose class cannot be read.
    async fn inventory(&self) -> Result<Vec<String>, RuntimeError> {
        let (host, engine) = (Arc::clone(&self.host), self.setup.engine);
        blocking(move || {
            // First, as what is under way now may be on the host by the time that is looked at.
            let mut uids = host.launches.uids();
            uids.extend(host.layout.uids()?);
            uids.extend(
                host.cgroups
                    .list()
                    .map_err(|error| RuntimeError::Host { message: with_causes(&error) })?,
            );
            uids.sort_unstable();
            uids.dedup();
            uids.retain(|uid| host.engine_of(uid).is_none_or(|(of, _)| of == engine));
            Ok(uids)
        })
        .await
    }

    async fn clear(&self, uid: &str) -> Result<(), RuntimeError> {
        self.host.launches.give_up(uid).await;
        destroy::clear(&self.host, uid).await
    }

    async fn destroy(&self, uid: &str) -> Result<(), RuntimeError> {
        self.host.launches.give_up(uid).await;
        destroy::destroy(&self.host, uid).await
    }

    async fn shutdown(&self) {
        for uid in self.host.launches.uids() {
            self.host.launches.give_up(&uid).await;
        }
        let host = Arc::clone(&self.host);
        let stopped = blocking(move || {
            host.stop();
            Ok(())
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "pools and spawners did not end in order");
        }
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(RuntimeError::Host { message: format!("a task broke off: {error}") }),
    }
}
