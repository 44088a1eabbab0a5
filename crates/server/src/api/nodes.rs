//! This machine as sandboxd-o's clients see nodes.

use std::num::NonZero;
use std::sync::Arc;

use atoll_model::spec::SandboxSpec;
use atoll_model::state::Phase;
use atoll_wire::rest::{Items, Metadata, Node, NodeEnvelope, NodeResources};
use axum::Json;
use axum::extract::{Path, State};

use super::App;
use super::error::ApiError;

/// All of the machine may be asked for, and more: limits hold what is promised, they reserve nothing.
const MAX_ALLOC_PERCENT: u32 = 100;

/// `GET /api/v1/nodes`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Items<Node>> {
    let (_, resource_version) = app.context.store.sandboxes();
    Json(Items { items: vec![this(&app)], resource_version })
}

/// `GET /api/v1/nodes/ID`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<NodeEnvelope>, ApiError> {
    if id != app.context.node_name {
        return Err(ApiError::none_of("node", &id));
    }
    Ok(Json(NodeEnvelope { node: this(&app) }))
}

fn this(app: &App) -> Node {
    let since = app.since.clone();
    Node {
        id: app.context.node_name.clone(),
        metadata: Metadata { labels: app.context.node_labels.clone() },
        ip: app.address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.ip().to_string()),
        port: app.address.map_or(0, |address| address.port()),
        unschedulable: false,
        state: "Ready".to_owned(),
        source: "self".to_owned(),
        created_at: since.clone(),
        updated_at: since,
        resources: resources(app),
    }
}

fn resources(app: &App) -> NodeResources {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let cpu = i64::try_from(cores).unwrap_or(i64::MAX).saturating_mul(1000);
    let memory = i64::try_from(rustix::system::sysinfo().totalram).unwrap_or(i64::MAX);
    let (sandboxes, _) = app.context.store.sandboxes();
    let (mut used_cpu, mut used_memory) = (0_i64, 0_i64);
    let over = |phase: &str| Phase::from_name(phase).is_some_and(Phase::is_over);
    for sandbox in sandboxes.iter().filter(|it| !over(&it.status.phase)) {
        let Some(owner) = app.context.owners.of(sandbox) else { continue };
        let (cpu, memory) = asked_for(&owner.spec);
        used_cpu = used_cpu.saturating_add(cpu);
        used_memory = used_memory.saturating_add(memory);
    }
    NodeResources {
        capacity_cpu_milli: cpu,
        capacity_memory_bytes: memory,
        allocatable_cpu_milli: cpu,
        allocatable_memory_bytes: memory,
        used_cpu_milli: used_cpu,
        used_memory_bytes: used_memory,
        available_cpu_milli: cpu.saturating_sub(used_cpu),
        available_memory_bytes: memory.saturating_sub(used_memory),
        max_alloc_percent: MAX_ALLOC_PERCENT,
        external: app.external_of_this_node().unwrap_or_else(|| "(none)".to_owned()),
    }
}

/// CPU and memory of all containers together.
fn asked_for(spec: &SandboxSpec) -> (i64, i64) {
    let sum = |of: fn(&atoll_model::spec::Container) -> u64| {
        let sum = spec.containers.iter().map(of).fold(0, u64::saturating_add);
        i64::try_from(sum).unwrap_or(i64::MAX)
    };
    (sum(|it| it.resources.cpu.0), sum(|it| it.resources.memory.0))
}
