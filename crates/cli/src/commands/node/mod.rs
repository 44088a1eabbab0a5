//! What this machine contributes to a server: its classes and its image store. Decides which classes can be had, and why others cannot.

mod images;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use atoll_image::{ImageStore, StoreOptions, UnpackHelper};
use atoll_runtime::disk::DiskChoice;
use atoll_runtime::shim::{NetworkConfig, PoolSizes, ShimHost, ShimHostConfig, ShimRuntime};
use atoll_runtime::sim::{SimHost, SimRuntime};
use atoll_runtime::{Runtime, RuntimeClass, container_host, gvisor_host};
use atoll_server::ImageSource;

use crate::args::UNPACK_ARGUMENT;

/// Itself, also when its file was replaced or removed meanwhile. SOURCE: proc_pid_exe(5).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The classes of this machine.
pub(super) struct Classes {
    /// Those that can be had, weakest first.
    pub(super) runtimes: Vec<Arc<dyn Runtime>>,
    /// Those that cannot, and what to install or change.
    pub(super) missing: Vec<(RuntimeClass, String)>,
    /// Whether sandboxes may reach the outside, or why they cannot.
    pub(super) network: Result<(), String>,
    /// What classes with shims share, where there is one.
    pub(super) host: Option<Arc<ShimHost>>,
}

/// Finds the classes, and begins what they need. Call it before there are threads; takes some tens of milliseconds. Class `sim` isolates
/// nothing, so only whoever starts the server can ask for it.
pub(super) fn classes(
    data_dir: &Path,
    enable_sim: bool,
    disks: DiskChoice,
    network: Option<NetworkConfig>,
) -> anyhow::Result<Classes> {
    let no_network = Err("no class is here that has one".to_owned());
    let mut found =
        Classes { runtimes: Vec::new(), missing: Vec::new(), network: no_network, host: None };
    if enable_sim {
        let logs = data_dir.join("run").join("sim-logs");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        found.runtimes.push(Arc::new(SimRuntime::new(SimHost::with_logs(logs))));
    } else {
        let why = "it isolates nothing and is for tests: start the server with --enable-sim";
        found.missing.push((RuntimeClass::Sim, why.to_owned()));
    }
    let container = container_host::report(data_dir, disks).container();
    let gvisor = gvisor_host::detect(data_dir);
    if container.is_err() && gvisor.is_err() {
        missing(&mut found, container.err(), gvisor.err());
        return Ok(found);
    }
    let config = ShimHostConfig {
        data_dir: data_dir.to_owned(),
        guest_program: atoll_programs::GUEST,
        shim_program: atoll_programs::SHIM,
        spawners: None,
        pools: PoolSizes::default(),
        network,
        keeper_program: THIS_PROGRAM.into(),
        disks,
    };
    let host = match ShimHost::open(config) {
        Ok(host) => host,
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::new(error));
            found.missing.push((RuntimeClass::Container, why.clone()));
            found.missing.push((RuntimeClass::Gvisor, why));
            return Ok(found);
        }
    };
    found.network = host.network().map(drop);
    if let (Some(_), Err(why)) = (network, &found.network) {
        tracing::warn!(why, "sandboxes cannot reach the outside");
    }
    found.host = Some(Arc::clone(&host));
    match &container {
        Ok(detail) => {
            let runtime = ShimRuntime::container(Arc::clone(&host), detail.clone());
            found.runtimes.push(Arc::new(runtime));
        }
        Err(why) => found.missing.push((RuntimeClass::Container, why.clone())),
    }
    match &gvisor {
        Ok(runsc) => found.runtimes.push(Arc::new(ShimRuntime::gvisor(host, runsc))),
        Err(why) => found.missing.push((RuntimeClass::Gvisor, why.to_string())),
    }
    Ok(found)
}

fn missing(
    found: &mut Classes,
    container: Option<String>,
    gvisor: Option<gvisor_host::GvisorMissing>,
) {
    if let Some(why) = container {
        found.missing.push((RuntimeClass::Container, why));
    }
    if let Some(why) = gvisor {
        found.missing.push((RuntimeClass::Gvisor, why.to_string()));
    }
}

/// The confined program that unpacks layers: this one.
pub(super) fn unpack_helper() -> UnpackHelper {
    UnpackHelper::this_program(&[UNPACK_ARGUMENT])
}

/// Opens the image store of a data directory.
pub(super) async fn images(data_dir: &Path) -> anyhow::Result<Arc<dyn ImageSource>> {
    let options = StoreOptions::in_data_directory(data_dir, unpack_helper());
    let min_free_bytes = options.min_free_bytes;
    let directory = data_dir.join("images");
    let store = ImageStore::open(&directory, options).await?;
    Ok(Arc::new(images::StoreImages::new(store, directory.join("incoming"), min_free_bytes)?))
}
