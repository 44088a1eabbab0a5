//! The REST API. Bodies are `atoll_wire::rest` shapes; every error is an `ErrorBody`. All paths but `/healthz`, `/openapi.json`,
//! `/docs` and `/swagger/` need `Authorization: Bearer TOKEN` (the word may be left out). A list or object with `?watch=true` is a stream of newline-delimited JSON.
//!
//! | method path | query, body | answer |
//! |---|---|---|
//! | GET `/healthz` | – | 200 `{"ok":true}` |
//! | GET `/openapi.json`, `/docs`, `/swagger/*any` | – | this table for programs (OpenAPI 3.1), and as a page |
//! | GET `/metrics` | – | Prometheus text |
//! | GET `/api/v1/version` | – | `VersionInfo` |
//! | GET `/api/v1/node` | – | `NodeInfo` |
//! | GET `/api/v1/nodes`, `/api/v1/nodes/ID` | – | `Items<Node>`, `NodeEnvelope`: this machine, in sandboxd-o's shape |
//! | POST `/api/v1/shutdown` | `Shutdown` | 202 `{"ok":true}`; the server ends afterwards |
//! | POST `/api/v1/sandboxes` | `CreateSandbox` (JSON), or a `Manifest` (JSON, or YAML with content type `application/yaml`); `wait`, `timeout_seconds` | 201 `SandboxEnvelope` |
//! | GET `/api/v1/sandboxes` | `label_selector=K=V,K!=V,K,!K` (or `label`); `limit` (1 to 1000), `cursor`; `watch`, `resource_version` | `Page<Sandbox>` (all of them without `limit`), or lines of `WatchEvent<Sandbox>` |
//! | GET `/api/v1/sandboxes/ID` | `wait`, `timeout_seconds`; or `watch` | `SandboxEnvelope`, with what the disks of a running one hold (`Deleted` for `wait=deleted`) |
//! | PATCH `/api/v1/sandboxes/ID` | `PatchSandbox`: a new time to live, counted from now | `SandboxEnvelope`, once it is on disk |
//! | DELETE `/api/v1/sandboxes/ID` | `wait=false` answers as soon as the deletion is recorded; `grace_seconds` (0) | 200 `Deleted`, once nothing is left of it |
//! | POST `/api/v1/sandboxes/ID/stop` | `StopSandbox` | 202 `SandboxEnvelope`; the record stays |
//! | POST `/api/v1/sandboxes/ID/signal` | `SignalSandbox` | 200 `{"ok":true}` |
//! | GET `/api/v1/sandboxes/ID/exec` | WebSocket, `wire::rest::stream` | |
//! | GET `/api/v1/sandboxes/ID/attach` | WebSocket, `wire::rest::stream` | |
//! | GET `/api/v1/sandboxes/ID/logs` | `container` (first), `follow`, `tail=LINES`, `format=text` (default: the bytes as written) or `records` (`wire::log` lines: time, stream, text) | `text/plain`; with `follow` until the container has ended |
//! | GET `/api/v1/sandboxes/ID/files` | `container`, `path` (absolute) | `application/x-tar`: the file or directory as single top entry. An error on the way breaks the transfer off |
//! | PUT `/api/v1/sandboxes/ID/files` | `container`, `path` (directory to unpack into), `user`; body: tar | 200 `{"ok":true}` |
//! | GET `/api/v1/sandboxes/ID/processes` | `container` | `Items<Process>` |
//! | POST `/api/v1/externals` | `CreateExternal` (JSON, or YAML with content type `application/yaml`) | 200 `{"ok":true}`; 409 where the node or the external belongs to another one |
//! | GET `/api/v1/externals`, `/api/v1/externals/ID` | `limit`, `cursor` | `Page<External>`, `ExternalEnvelope` |
//! | DELETE `/api/v1/externals/ID` | – | 200 `Deleted` |
//! | POST `/api/v1/volumes` | `CreateNamedVolume` (JSON, or YAML with content type `application/yaml`) | 201 `NamedVolumeEnvelope`, once it is on disk |
//! | GET `/api/v1/volumes` | `label=K=V[,K=V]`, `label_selector`; `limit`, `cursor` | `Page<NamedVolume>` |
//! | GET `/api/v1/volumes/ID` | – | `NamedVolumeEnvelope`, with what its disk holds |
//! | DELETE `/api/v1/volumes/ID` | – | 200 `Deleted`, once nothing is left of it; 409 while sandboxes have it |
//! | GET `/api/v1/events` | `object=sandbox/ID`; `limit`, `cursor`; `watch`, `resource_version` | `Page<Event>`, or lines of `WatchEvent<Event>` |
//! | GET `/api/v1/images` | – | `Items<ImageInfo>` |
//! | GET `/api/v1/images/inspect` | `reference` | `ImageInfo` with `config` |
//! | DELETE `/api/v1/images` | `reference` | 200 `Deleted`; 409 while a sandbox uses it |
//! | POST `/api/v1/images/pull` | `PullImage` | lines of `ImageProgress` |
//! | POST `/api/v1/images/import` | `reference` (for archives that name none); body: the archive, streamed | lines of `ImageProgress` |
//! | POST `/api/v1/images/gc` | – | `CollectedImages` |
//! | GET `/api/v1/registries` | – | `Items<Registry>` |
//! | PUT `/api/v1/registries/REGISTRY/credentials` | `RegistryCredentials` | 200 `{"ok":true}` |
//! | DELETE `/api/v1/registries/REGISTRY/credentials` | – | 200 `Deleted` |
//!
//! `wait` is `running`, `ready`, `succeeded`, `failed`, `ended` or `deleted`: the answer comes as soon as that holds **or can no longer
//! hold** (the client looks at the status), or with 408 (`timeout`) after `timeout_seconds` (30 when left out, 600 at most).
//!
//! A creation with the header `Idempotency-Key` (1 to 255 visible characters) that is sent again within 24 hours creates nothing: the
//! answer is the sandbox that the first one made, as it is now (410 `gone` once it is deleted); 422 `key_reused` with another body. The last
//! 10,000 keys are kept, also over a restart.
//!
//! An answer has an `X-Request-Id`: the client's own where it sent one of 1 to 64 letters, digits, `.`, `_` or `-`, else one of the
//! server's. Errors and the log name it too.
//!
//! Codes: 400 `malformed` (not JSON or YAML, bad query), 401 `unauthorized`, 404 `not_found`, 405 `method_not_allowed`, 408 `timeout`,
//! 409 `already_exists` or `conflict` (not in this state, in use), 410 `gone` (a watch from a version that is no longer kept: list
//! again), 413 `too_large`, 422 `invalid` or `not_enforced` with `fields`, 429 `too_many` (with `Retry-After`), 500 `internal`, 502 `image_pull`, 503 `unavailable` (its shim
//! cannot be reached, or the server is ending).

mod disks;
mod document;
mod ended;
mod error;
mod externals;
mod files;
mod guard;
mod idempotency;
mod images;
mod input;
mod logs;
mod node;
mod nodes;
mod paging;
mod sandboxes;
mod streams;
mod volumes;
mod wait;
mod watching;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use atoll_model::rate::{RateLimit, TokenBucket};
use atoll_model::spec::Class;
use atoll_model::state::Cause;
use atoll_runtime::LimitsScope;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post, put};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::admission::Offer;
use crate::owner::{Command, Context};
use document::Routes;
use error::ApiError;
use guard::RequestIds;

/// What handlers share.
pub(crate) struct App {
    pub(crate) context: Arc<Context>,
    pub(crate) offer: Offer,
    /// Where clients connect, unless that is a Unix socket.
    address: Option<SocketAddr>,
    /// When it began, RFC 3339.
    since: String,
    token: String,
    request_ids: RequestIds,
    creations: Option<Mutex<TokenBucket>>,
    begun: Instant,
    /// Held while an external is looked at and written.
    externals: tokio::sync::Mutex<()>,
    keys: idempotency::Keys,
    refusing: AtomicBool,
    ended: watch::Sender<bool>,
}

/// `{"ok":true}`.
#[derive(Serialize, JsonSchema)]
struct Done {
    ok: bool,
}

impl App {
    pub(crate) fn new(
        context: Arc<Context>,
        offer: Offer,
        address: Option<SocketAddr>,
        token: String,
        request_prefix: u32,
        create_limit: Option<RateLimit>,
    ) -> Self {
        let request_ids = RequestIds::new(request_prefix);
        let creations = create_limit.map(|limit| Mutex::new(TokenBucket::new(limit)));
        Self {
            context,
            offer,
            address,
            since: crate::time::now_text(),
            token,
            request_ids,
            creations,
            begun: Instant::now(),
            externals: tokio::sync::Mutex::new(()),
            keys: idempotency::Keys::default(),
            refusing: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        }
    }

    /// True once the server is to end: streams end then, and the listener closes.
    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Streams end, the listener closes.
    pub(crate) fn end(&self) {
        self.begin_ending();
        self.ended.send_replace(true);
    }

    /// No new sandboxes from now on.
    fn begin_ending(&self) {
        self.refusing.store(true, Ordering::SeqCst);
    }

    fn refuse_while_ending(&self) -> Result<(), ApiError> {
        if self.refusing.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("the server is ending"));
        }
        Ok(())
    }

    /// Counts a creation, or refuses it where they are limited and come too fast.
    fn refuse_too_many(&self) -> Result<(), ApiError> {
        let Some(bucket) = &self.creations else { return Ok(()) };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.begun.elapsed()).map_err(ApiError::too_many)
    }

    fn limits_scope(&self, class: Class) -> Option<&'static str> {
        let runtime = self.context.runtimes.get(&class)?;
        Some(match runtime.traits().limits_scope {
            LimitsScope::Container => "container",
            LimitsScope::Sandbox => "sandbox",
        })
    }

    /// Deletes every sandbox and waits until nothing of them is left.
    async fn delete_all(&self) -> Result<(), ApiError> {
        let (sandboxes, _) = self.context.store.sandboxes();
        let mut waiters = Vec::new();
        for sandbox in sandboxes {
            let Some(owner) = self.context.owners.of(&sandbox) else { continue };
            let (done, waiter) = oneshot::channel();
            let cause = Cause {
                reason: "Shutdown".to_owned(),
                message: "the server is taken down".to_owned(),
            };
            // An owner that has ended has nothing left to delete.
            if owner
                .send(Command::Delete { grace_millis: 0, cause, done: Some(done) })
                .await
                .is_ok()
            {
                waiters.push((sandbox.id.clone(), waiter));
            }
        }
        for (id, waiter) in waiters {
            if let Ok(Err(message)) = waiter.await {
                return Err(ApiError::unavailable(format!(
                    "sandbox {id:?} could not be removed, the server goes on: {message}"
                )));
            }
        }
        Ok(())
    }
}

/// All routes, with what every request passes.
pub(crate) fn router(app: Arc<App>) -> Router {
    routes()
        .into_router()
        // Documents are bounded where they are read, transfers by the disk of who receives them.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), guard::pass))
        .with_state(app)
}

/// All routes; each is described in `document/operations.rs`.
fn routes() -> Routes {
    let one = "/api/v1/sandboxes/{id}";
    let of = |rest: &str| format!("{one}{rest}");
    Routes::new()
        .route("/healthz", get(node::healthz))
        .route("/openapi.json", get(document::document))
        .route("/docs", get(document::page))
        .route("/swagger/{*any}", get(document::swagger))
        .route("/metrics", get(node::metrics))
        .route("/api/v1/version", get(node::version))
        .route("/api/v1/node", get(node::node))
        .route("/api/v1/nodes", get(nodes::list))
        .route("/api/v1/nodes/{id}", get(nodes::get))
        .route("/api/v1/shutdown", post(node::shutdown))
        .route("/api/v1/events", get(node::events))
        .route("/api/v1/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route(one, get(sandboxes::get).patch(sandboxes::patch).delete(sandboxes::delete))
        .route(&of("/stop"), post(sandboxes::stop))
        .route(&of("/signal"), post(sandboxes::signal))
        .route(&of("/processes"), get(sandboxes::processes))
        .route(&of("/exec"), get(streams::exec))
        .route(&of("/attach"), get(streams::attach))
        .route(&of("/logs"), get(logs::logs))
        .route(&of("/files"), get(files::download).put(files::upload))
        .route("/api/v1/externals", get(externals::list).post(externals::put))
        .route("/api/v1/externals/{id}", get(externals::get).delete(externals::delete))
        .route("/api/v1/volumes", get(volumes::list).post(volumes::create))
        .route("/api/v1/volumes/{id}", get(volumes::get).delete(volumes::delete))
        .route("/api/v1/images", get(images::list).delete(images::remove))
        .route("/api/v1/images/inspect", get(images::inspect))
        .route("/api/v1/images/pull", post(images::pull))
        .route("/api/v1/images/import", post(images::import))
        .route("/api/v1/images/gc", post(images::collect))
        .route("/api/v1/registries", get(images::registries))
        .route("/api/v1/registries/{registry}/credentials", put(images::set_credentials))
        .route("/api/v1/registries/{registry}/credentials", delete(images::remove_credentials))
}
