//! Sandboxes: create, list, get, delete, stop, signal, processes.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::ids::{SandboxName, SandboxUid};
use atoll_model::selector::Selector;
use atoll_model::state::{Cause, Phase};
use atoll_model::timeline;
use atoll_model::validate::{Problem, Problems};
use atoll_wire::guest::SignalRequest;
use atoll_wire::rest::{
    AssignedPort, CreateSandbox, Deleted, Items, Manifest, Page, PatchSandbox, Process, Sandbox,
    SandboxEnvelope, SandboxStatus, SignalSandbox, StopSandbox, strict,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::error::ApiError;
use super::idempotency::{InTurn, Once};
use super::input::{self, Params};
use super::paging::Wanted;
use super::wait::{self, WaitParams};
use super::{App, Done, disks, externals, idempotency, watching};
use crate::admission::{self, Admitted};
use crate::owner::{self, Begin, Command, Live, Marks, OwnerHandle, Subject};
use crate::ports::PortRefusal;
use crate::store::{NewEvent, Write};
use crate::time;

const DEFAULT_GRACE_SECONDS: u32 = 10;

/// `POST /api/v1/sandboxes`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Params(wait): Params<WaitParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let marks = Marks::begin();
    // Before the body is read: a client that asks too often costs nothing.
    app.refuse_too_many()?;
    let wait = wait.checked()?;
    app.refuse_while_ending()?;
    let bytes = input::document(&headers, body).await?;
    let once = match Once::of(&headers, &bytes)? {
        Some(once) => Some(app.keys.in_turn(once).await?),
        None => None,
    };
    let earlier = match &once {
        Some(once) => once.earlier(&app).await?,
        None => None,
    };
    let sandbox = match earlier {
        Some(sandbox) => {
            // Others with such a key need not wait for as long as this client does.
            drop(once);
            sandbox
        }
        None => accept_request(&app, read_request(&headers, &bytes)?, once, marks).await?,
    };
    let sandbox = match wait {
        Some(wait) => wait::until(&app, &sandbox.id.clone(), Some(&sandbox.uid), &wait)
            .await?
            .unwrap_or(sandbox),
        None => sandbox,
    };
    Ok((StatusCode::CREATED, Json(SandboxEnvelope { sandbox: app.shown(&sandbox).into_owned() }))
        .into_response())
}

async fn accept_request(
    app: &Arc<App>,
    request: CreateSandbox,
    once: Option<InTurn>,
    marks: Marks,
) -> Result<Arc<Sandbox>, ApiError> {
    let admitted = admission::admit(&request, &app.offer).map_err(ApiError::fields)?;
    // A client that hangs up now must not leave a record without an owner.
    let accepted = tokio::spawn(accept(Arc::clone(app), request, admitted, once, marks)).await;
    accepted.map_err(|error| ApiError::unavailable(format!("the request was given up: {error}")))?
}

/// A creation, or a manifest: that one has a kind.
fn read_request(headers: &HeaderMap, bytes: &[u8]) -> Result<CreateSandbox, ApiError> {
    let value = input::value(headers, bytes)?;
    if value.get("kind").is_none() && value.get("apiVersion").is_none() {
        return Ok(strict::from_value(value)?);
    }
    let manifest: Manifest = strict::from_value(value)?;
    let mut problems = Problems::default();
    let (version, kind) = (manifest.api_version.as_deref(), Some(manifest.kind.as_str()));
    admission::kind_of_object(&mut problems, version, kind, "Sandbox");
    if !problems.is_empty() {
        return Err(ApiError::fields(problems.into_vec()));
    }
    Ok(CreateSandbox { id: Some(manifest.id), metadata: manifest.metadata, spec: manifest.spec })
}

async fn accept(
    app: Arc<App>,
    request: CreateSandbox,
    admitted: Admitted,
    once: Option<InTurn>,
    mut marks: Marks,
) -> Result<Arc<Sandbox>, ApiError> {
    let uid = SandboxUid::from_random(input::random("uid")?);
    let name = match &admitted.name {
        Some(name) => name.clone(),
        None => made_up_name(input::random("name")?)?,
    };
    let mut record = new_record(&app, &name, uid, request, &admitted);
    let ports = reserve_ports(&app, &record, &admitted).await?;
    record.status.assigned_ports = ports;
    let object = format!("sandbox/{name}");
    let message = format!("class {}", admitted.class.name());
    let event = NewEvent { warning: false, reason: "Created", object, message };
    let write = match &once {
        Some(once) => {
            let creation = once.creation(&record);
            Write::CreateOnce(record, creation)
        }
        None => Write::Create(record),
    };
    let sandbox = match app.context.store.commit(write, vec![event]).await {
        Ok(Some(sandbox)) => sandbox,
        refused => {
            give_back_ports(&app, &uid.to_string(), &admitted).await;
            refused?;
            return Err(ApiError::unavailable("the record was not written"));
        }
    };
    marks.end_now(timeline::Phase::Store);
    if once.is_some() {
        idempotency::count(&app);
    }
    app.context.metrics.created();
    let record = (*sandbox).clone();
    let subject =
        Subject { name, uid, class: admitted.class, spec: Arc::new(admitted.spec), record };
    owner::begin(&app.context, subject, Begin::Fresh(marks));
    Ok(sandbox)
}

/// Ports of this host for a sandbox that is to come, held.
async fn reserve_ports(
    app: &App,
    record: &Sandbox,
    admitted: &Admitted,
) -> Result<Vec<AssignedPort>, ApiError> {
    let wanted = &admitted.spec.ports;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let Some(network) = &app.context.network else {
        return Err(ApiError::unavailable("this server has no network"));
    };
    // A name that is taken is told as such, whatever its ports: told by the store, where two come at once.
    if app.context.store.sandbox(&record.id).is_some() {
        return Ok(Vec::new());
    }
    let reserved =
        app.context.ports.reserve(network.as_ref(), &record.uid, &record.id, wanted).await;
    reserved.map_err(|refusal| match refusal {
        PortRefusal::Wish(error) => ApiError::fields(vec![Problem {
            path: "spec.ports".to_owned(),
            message: error.to_string(),
            not_enforced: false,
        }]),
        PortRefusal::Busy(message) => ApiError::conflict(message),
        PortRefusal::Unavailable(message) => ApiError::unavailable(message),
    })
}

async fn give_back_ports(app: &App, uid: &str, admitted: &Admitted) {
    if admitted.spec.ports.is_empty() {
        return;
    }
    if let Some(network) = &app.context.network
        && let Err(error) = network.let_go(uid).await
    {
        tracing::warn!(%error, uid, "ports of a sandbox that was not created stay held");
        return;
    }
    app.context.ports.give_back(uid);
}

fn made_up_name(random: u64) -> Result<SandboxName, ApiError> {
    format!("sbx-{random:016x}")
        .parse()
        .map_err(|error| ApiError::unavailable(format!("no name: {error}")))
}

fn new_record(
    app: &App,
    name: &SandboxName,
    uid: SandboxUid,
    request: CreateSandbox,
    admitted: &Admitted,
) -> Sandbox {
    let now = time::now();
    let ttl = admitted.spec.ttl_seconds.map(Duration::from_secs);
    let expire_at = ttl.map(|ttl| time::text(time::after(now, ttl)));
    let status = SandboxStatus {
        phase: Phase::Pending.name().to_owned(),
        expire_at,
        class: Some(admitted.class.name().to_owned()),
        limits_scope: app.limits_scope(admitted.class).map(str::to_owned),
        containers: Vec::new(),
        ..SandboxStatus::default()
    };
    Sandbox {
        id: name.to_string(),
        uid: uid.to_string(),
        resource_version: 0,
        metadata: request.metadata,
        spec: request.spec,
        status,
        created_at: time::text(now),
        updated_at: String::new(),
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    label: Option<String>,
    label_selector: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    #[serde(default)]
    watch: bool,
    resource_version: Option<u64>,
}

/// `GET /api/v1/sandboxes`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Response, ApiError> {
    let label = selector("label", params.label.as_deref())?;
    let label_selector = selector("label_selector", params.label_selector.as_deref())?;
    let matches = move |sandbox: &Sandbox| {
        let labels = &sandbox.metadata.labels;
        label.matches(labels) && label_selector.matches(labels)
    };
    let wanted = Wanted { limit: params.limit, cursor: params.cursor };
    if params.watch {
        wanted.refuse_with_watch()?;
        return watching::sandboxes(&app, params.resource_version, matches);
    }
    let (sandboxes, resource_version) = app.context.store.sandboxes();
    let matching = sandboxes.iter().map(AsRef::as_ref).filter(|it| matches(it));
    let (items, next_cursor) = wanted.page(matching)?;
    if let Some(external) = app.external_of_this_node() {
        let items: Vec<Sandbox> =
            items.into_iter().map(|it| externals::with_external(it, &external)).collect();
        return Ok(Json(Page { items, resource_version, next_cursor }).into_response());
    }
    Ok(Json(Page { items, resource_version, next_cursor }).into_response())
}

/// Reads a selector of the query.
pub(super) fn selector(parameter: &str, text: Option<&str>) -> Result<Selector, ApiError> {
    Selector::parse(text.unwrap_or_default())
        .map_err(|error| ApiError::malformed(format!("{parameter}: {error}")))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GetParams {
    wait: Option<wait::Goal>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    watch: bool,
    resource_version: Option<u64>,
}

/// `GET /api/v1/sandboxes/ID`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<GetParams>,
) -> Result<Response, ApiError> {
    if params.watch {
        app.sandbox(&id)?;
        return watching::sandboxes(&app, params.resource_version, move |sandbox| sandbox.id == id);
    }
    let wait =
        WaitParams { wait: params.wait, timeout_seconds: params.timeout_seconds }.checked()?;
    let found = match wait {
        Some(wait) => wait::until(&app, &id, None, &wait).await?,
        None => Some(app.sandbox(&id)?),
    };
    Ok(match found {
        Some(sandbox) => {
            let sandbox = app.shown(&disks::with_usage(&app, &sandbox).await).into_owned();
            Json(SandboxEnvelope { sandbox }).into_response()
        }
        None => Json(Deleted { deleted: id }).into_response(),
    })
}

/// `PATCH /api/v1/sandboxes/ID`.
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SandboxEnvelope>, ApiError> {
    let patch: PatchSandbox = input::json(&headers, body).await?;
    let seconds = admission::patched_ttl(&patch).map_err(ApiError::fields)?;
    let sandbox = app.sandbox(&id)?;
    let (done, answer) = oneshot::channel();
    app.owner(&sandbox)?.send(Command::SetTtl { seconds, done }).await?;
    match answer.await {
        Ok(Ok(())) => {
            Ok(Json(SandboxEnvelope { sandbox: app.shown(&*app.sandbox(&id)?).into_owned() }))
        }
        Ok(Err(message)) => Err(ApiError::conflict(message)),
        Err(_) => Err(ApiError::no_sandbox(&id)),
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteParams {
    wait: Option<bool>,
    #[serde(default)]
    grace_seconds: u32,
}

/// `DELETE /api/v1/sandboxes/ID`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<DeleteParams>,
) -> Result<Json<Deleted>, ApiError> {
    let sandbox = app.sandbox(&id)?;
    let (done, waiter) = oneshot::channel();
    let cause = Cause { reason: "Deleted".to_owned(), message: "a client asked for it".to_owned() };
    let grace_millis = u64::from(params.grace_seconds) * 1000;
    app.owner(&sandbox)?.send(Command::Delete { grace_millis, cause, done: Some(done) }).await?;
    if params.wait == Some(false) {
        // Answered once it is on disk that it goes.
        wait::until_phase(&app, &sandbox, |phase| phase == Phase::Deleting).await;
        return Ok(Json(Deleted { deleted: id }));
    }
    match waiter.await {
        Ok(Ok(())) | Err(_) => Ok(Json(Deleted { deleted: id })),
        Ok(Err(message)) => {
            Err(ApiError::unavailable(format!("it is not gone yet, removing goes on: {message}")))
        }
    }
}

/// `POST /api/v1/sandboxes/ID/stop`.
pub(super) async fn stop(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: StopSandbox = input::json_or_default(&headers, body).await?;
    let sandbox = app.sandbox(&id)?;
    let (reply, answer) = oneshot::channel();
    let grace_millis = u64::from(request.grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS)) * 1000;
    app.owner(&sandbox)?.send(Command::Stop { grace_millis, reply }).await?;
    match answer.await {
        Ok(Ok(())) => {
            let sandbox = app.sandbox(&id)?;
            let sandbox = app.shown(&sandbox).into_owned();
            Ok((StatusCode::ACCEPTED, Json(SandboxEnvelope { sandbox })).into_response())
        }
        Ok(Err(message)) => Err(ApiError::conflict(message)),
        Err(_) => Err(ApiError::no_sandbox(&id)),
    }
}

/// `POST /api/v1/sandboxes/ID/signal`.
pub(super) async fn signal(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let request: SignalSandbox = input::json(&headers, body).await?;
    if !(1..=64).contains(&request.signal) {
        let message = format!("signal: is {}, allowed are 1 to 64", request.signal);
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message));
    }
    let (live, owner) = app.running(&id)?;
    let container = app.container(&owner, request.container.as_deref())?;
    live.sandbox
        .signal(&container, SignalRequest { signal: request.signal, everyone: request.everyone })
        .await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ContainerParams {
    container: Option<String>,
}

/// `GET /api/v1/sandboxes/ID/processes`.
pub(super) async fn processes(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<ContainerParams>,
) -> Result<Json<Items<Process>>, ApiError> {
    let (live, owner) = app.running(&id)?;
    let container = app.container(&owner, params.container.as_deref())?;
    let processes = live.sandbox.processes(&container).await?;
    let process = |it: atoll_wire::guest::ProcessInfo| Process {
        pid: it.pid,
        parent_pid: it.parent_pid,
        uid: it.uid,
        resident_kib: it.resident_kib,
        cpu_millis: it.cpu_millis,
        command: it.command,
    };
    Ok(Json(Items { items: processes.into_iter().map(process).collect(), resource_version: 0 }))
}

impl App {
    /// A record, by its id.
    pub(super) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, ApiError> {
        self.context.store.sandbox(id).ok_or_else(|| ApiError::no_sandbox(id))
    }

    /// A record's owner.
    pub(super) fn owner(&self, sandbox: &Sandbox) -> Result<OwnerHandle, ApiError> {
        self.context.owners.of(sandbox).ok_or_else(|| ApiError::no_sandbox(&sandbox.id))
    }

    /// What runs of a sandbox, or why nothing does.
    pub(super) fn running(&self, id: &str) -> Result<(Arc<Live>, OwnerHandle), ApiError> {
        let sandbox = self.sandbox(id)?;
        let owner = self.owner(&sandbox)?;
        match owner.live() {
            Some(live) => Ok((live, owner)),
            None if sandbox.status.phase == Phase::Unknown.name() => {
                let why = sandbox.status.last_error.clone().unwrap_or_default();
                Err(ApiError::unavailable(format!(
                    "sandbox {id:?} cannot be reached at the moment: {why}"
                )))
            }
            None => Err(ApiError::conflict(format!(
                "sandbox {id:?} is {}, nothing of it runs",
                sandbox.status.phase
            ))),
        }
    }

    /// The container asked for, or the first.
    pub(super) fn container(
        &self,
        owner: &OwnerHandle,
        name: Option<&str>,
    ) -> Result<String, ApiError> {
        let mut names = owner.spec.containers.iter().map(|it| it.name.as_str());
        let found = match name {
            None | Some("") => names.next(),
            Some(name) => names.find(|known| *known == name),
        };
        found.map(str::to_owned).ok_or_else(|| ApiError::no_container(name.unwrap_or_default()))
    }
}
