//! `atoll up`: serves in the foreground, or starts a process that does and returns once it serves.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use atoll_model::rate::RateLimit;
use atoll_runtime::shim::NetworkConfig;
use atoll_runtime::{SandboxNetwork, VolumeDisks};
use atoll_server::{DataDir, Privileges, ServerConfig};
use atoll_sys::capabilities::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Outcome, SUCCESS, detached, node};
use crate::args::{ConnectionArgs, NetworkMode, UpArgs};
use crate::output;

/// Environment variable with the log filter. SOURCE: the syntax of tracing-subscriber's `EnvFilter`.
const LOG_VARIABLE: &str = "ATOLL_LOG";
/// What is logged when nothing else is said.
const DEFAULT_LOG: &str = "info";

/// Starts atoll.
pub(super) fn up(args: &UpArgs, connection: &ConnectionArgs) -> Outcome {
    if args.detach {
        let serving = detached::start(&connection.data_dir, &args.listen, &flags(args))?;
        output::print(&format!(
            "atoll serves at {} (data directory {}, pid {})\n",
            serving.address,
            connection.data_dir.display(),
            serving.pid
        ))?;
        return Ok(SUCCESS);
    }
    if !args.detached {
        return serve(args, &connection.data_dir, false);
    }
    serve(args, &connection.data_dir, true).inspect_err(detached::tell_failure)
}

/// What the server in the background is to be told besides its data directory and address.
fn flags(args: &UpArgs) -> Vec<String> {
    let mut flags = vec![
        format!("--disk-backend={}", args.disk_backend),
        format!("--port-range={}", args.port_range),
        format!("--network={}", args.network.name()),
    ];
    flags.extend(args.node_label.iter().map(|(key, value)| format!("--node-label={key}={value}")));
    flags.extend(args.allow_egress.iter().map(|grant| format!("--allow-egress={grant}")));
    flags.extend(args.allow_capability.iter().map(|it| format!("--allow-capability={it}")));
    flags.extend(args.allow_new_privileges.then(|| "--allow-new-privileges".to_owned()));
    flags.extend(args.create_rate.map(|it| format!("--create-rate={it}")));
    flags.extend(args.create_burst.map(|it| format!("--create-burst={it}")));
    flags.extend(args.enable_sim.then(|| "--enable-sim".to_owned()));
    flags
}

fn serve(args: &UpArgs, data_dir: &Path, detached: bool) -> Outcome {
    if detached {
        // Not the terminal's: closing that must not end the server.
        atoll_sys::process::begin_session()?;
    }
    begin_logging(if detached { Some(data_dir) } else { None })?;
    // Locked before anything else touches it: two servers never share a directory.
    let locked = DataDir::open(data_dir)?;
    let classes = node::classes(
        locked.path(),
        args.enable_sim,
        args.disk_backend,
        (args.network != NetworkMode::Off).then(NetworkConfig::default),
    )?;
    if let (NetworkMode::On, Err(why)) = (args.network, &classes.network) {
        anyhow::bail!("this machine cannot have the network that --network=on asks for: {why}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    runtime.block_on(serve_until_told(args, locked, classes, detached))?;
    Ok(SUCCESS)
}

async fn serve_until_told(
    args: &UpArgs,
    data_dir: DataDir,
    classes: node::Classes,
    detached: bool,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // In the background no terminal's end concerns it.
                _ = hangup.recv() => if !detached { break },
            }
        }
    };
    let directory = data_dir.path().to_owned();
    let on_serving: Box<dyn FnOnce(&str) + Send> = if detached {
        Box::new(detached::tell_serving)
    } else {
        let directory = directory.clone();
        Box::new(move |address| {
            // Nobody may be listening; the server serves all the same.
            let _ = output::print(&format!(
                "atoll serves at {address} (data directory {})\n",
                directory.display()
            ));
        })
    };
    let images = node::images(&directory).await?;
    let config = ServerConfig {
        data_dir,
        listen: args.listen.clone(),
        node_name: node_name(),
        runtimes: classes.runtimes,
        missing_classes: classes.missing,
        network: classes.network,
        sandbox_network: classes.host.clone().map(|host| host as Arc<dyn SandboxNetwork>),
        volume_disks: classes.host.map(|host| Arc::new(host) as Arc<dyn VolumeDisks>),
        node_labels: args.node_label.iter().cloned().collect(),
        port_range: args.port_range,
        egress_grants: args.allow_egress.clone(),
        images,
        concurrent_launches: None,
        create_limit: create_limit(args),
        privileges: privileges(args),
        on_serving: Some(on_serving),
    };
    atoll_server::run(config, stop).await?;
    Ok(())
}

/// What sandboxes may have beyond the default.
fn privileges(args: &UpArgs) -> Privileges {
    let capabilities = args.allow_capability.iter();
    // Names were checked as they were read.
    let capabilities = CapabilitySet::parse(capabilities).unwrap_or(CapabilitySet::EMPTY);
    Privileges { capabilities, new_privileges: args.allow_new_privileges }
}

/// How often sandboxes may be created. SOURCE: sandboxd-o's burst is twice its rate.
fn create_limit(args: &UpArgs) -> Option<RateLimit> {
    let per_second = args.create_rate?;
    let burst = args
        .create_burst
        .unwrap_or_else(|| per_second.saturating_mul(NonZero::<u32>::MIN.saturating_add(1)));
    Some(RateLimit { per_second, burst })
}

/// This machine's host name, as others can use it.
fn node_name() -> String {
    atoll_model::ids::node_name_of(&rustix::system::uname().nodename().to_string_lossy())
}

/// To standard error; of a server in the background that is its log, which is kept bounded.
fn begin_logging(detached_in: Option<&Path>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| DEFAULT_LOG.into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    // Beginning fails only when there is a subscriber already, which is as good.
    let _ = match detached_in {
        Some(data_dir) => {
            let log = detached::bounded_log(data_dir)?;
            subscriber.with_writer(log).with_ansi(false).try_init()
        }
        None => subscriber
            .with_writer(std::io::stderr)
            .with_ansi(output::stderr_is_terminal())
            .try_init(),
    };
    Ok(())
}
