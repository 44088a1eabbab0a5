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
mod logs;
mod metrics;
mod owner;
mod plan;
mod ports;
mod recover;
mod serve;
mod store;
mod time;
mod traces;
mod volumes;

use std::num::NonZero;
use std::sync::{Arc, Mutex};

use atoll_model::boost::Boosts;
use atoll_model::spec::Class;
use atoll_runtime::{Runtime, RuntimeClass};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{ListenAddress, ListenError, OnServing, Privileges, ServerConfig, ServerError};
pub use data_dir::{DataDir, DataDirError};
pub use images::{
    ImageConfig, ImageSource, ImageSourceError, NoImages, Progress, ResolvedImage, ResolvedUser,
};
pub use store::StoreError;

/// The version of atoll.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Serves until `stop` resolves or a client asks for the end. Sandboxes go on unless the client wanted them deleted.
///
/// # Errors
/// [`ServerError`]: the store cannot be read, the address cannot be had.
pub async fn run(
    config: ServerConfig,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    let token = config.data_dir.token()?;
    // Bound before anything is taken up: a second address that cannot be had must not cost a recovery.
    let listener = serve::Listener::bind(&config.listen).await?;
    let (store, bad) =
        store::Store::open(&config.data_dir.store_directory(), store::Limits::default())?;
    let offer = offer(&config);
    let context = context(&config, store, &offer);
    recover::recover(&context, bad).await;
    for runtime in &config.runtimes {
        runtime.prewarm(plan::disk_shares(admission::DEFAULT_DISK).0).await;
    }
    let request_prefix = getrandom::u32().unwrap_or_default();
    let address = listener.address(&config.listen);
    let socket = address.strip_prefix("http://").and_then(|address| address.parse().ok());
    let app = api::App::new(
        Arc::clone(&context),
        offer,
        socket,
        token,
        request_prefix,
        config.create_limit,
    );
    let app = Arc::new(app);
    config.data_dir.write_server_record(&address)?;
    tracing::info!(address, version = VERSION, "serving");
    let ending = app.ending();
    let serving =
        tokio::spawn(serve::serve(listener, api::router(Arc::clone(&app)), ending.clone()));
    if let Some(tell) = config.on_serving {
        tell(&address);
    }
    wait_for_end(stop, ending).await;
    app.end();
    if let Err(error) = serving.await {
        tracing::error!(%error, "serving ended badly");
    }
    end(&context, &config.runtimes).await;
    config.data_dir.remove_server_record();
    tracing::info!("ended; sandboxes that were not deleted go on");
    Ok(())
}

/// What all owners of this server's sandboxes are to share.
fn context(
    config: &ServerConfig,
    store: store::Store,
    offer: &admission::Offer,
) -> Arc<owner::Context> {
    let runtimes = config.runtimes.iter();
    let first_port = getrandom::u32().unwrap_or_default() as u16;
    Arc::new(owner::Context {
        store,
        images: Arc::clone(&config.images),
        runtimes: runtimes.filter_map(|it| Some((class_of(it.class())?, Arc::clone(it)))).collect(),
        missing: offer.missing.clone(),
        network: config.sandbox_network.clone(),
        ports: ports::PortBook::new(config.port_range, first_port),
        volumes: volumes::Volumes::new(config.volume_disks.clone()),
        node_name: config.node_name.clone(),
        node_labels: config.node_labels.clone(),
        launches: Arc::new(Semaphore::new(
            config.concurrent_launches.unwrap_or(config::DEFAULT_CONCURRENT_LAUNCHES),
        )),
        boosts: Mutex::new(Boosts::for_cores(
            std::thread::available_parallelism().map_or(1, NonZero::get),
        )),
        metrics: Arc::new(metrics::Metrics::new()),
        traces: traces::Traces::to(std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().as_deref()),
        sandboxes_directory: config.data_dir.sandboxes_directory(),
        owners: owner::Owners::default(),
        tasks: TaskTracker::new(),
        ending: CancellationToken::new(),
    })
}

/// Ends owners, then the store that they write to, then runtimes and traces.
async fn end(context: &owner::Context, runtimes: &[Arc<dyn Runtime>]) {
    context.ending.cancel();
    context.tasks.close();
    context.tasks.wait().await;
    context.store.close().await;
    for runtime in runtimes {
        runtime.shutdown().await;
    }
    let traces = context.traces.clone();
    // It blocks for a moment.
    tokio::task::spawn_blocking(move || traces.flush()).await.ok();
}

async fn wait_for_end(
    stop: impl Future<Output = ()>,
    mut ending: tokio::sync::watch::Receiver<bool>,
) {
    tokio::select! {
        () = stop => {}
        () = serve::until_true(&mut ending) => {}
    }
}

fn class_of(class: RuntimeClass) -> Option<Class> {
    Class::from_name(class.name())
}

/// Strongest first.
fn offer(config: &ServerConfig) -> admission::Offer {
    let mut strongest: Vec<_> = config.runtimes.iter().collect();
    strongest.sort_by_key(|it| std::cmp::Reverse(it.class()));
    let privileges = config.privileges;
    let class = |it: &Arc<dyn Runtime>| {
        let image_init = it.traits().image_init;
        class_of(it.class()).map(|class| admission::OfferedClass { class, image_init, privileges })
    };
    let why =
        |(class, why): &(RuntimeClass, String)| class_of(*class).map(|class| (class, why.clone()));
    admission::Offer {
        classes: strongest.into_iter().filter_map(class).collect(),
        missing: config.missing_classes.iter().filter_map(why).collect(),
        network: config.network.clone(),
        grants: config.egress_grants.clone(),
    }
}
