//! Externals: by which names nodes are reached from outside. One for a node, one node for each. What they say is shown with the node and
//! with its sandboxes when these are read: a change is seen at once, and no record of a sandbox has to follow it.

use std::borrow::Cow;
use std::sync::Arc;

use atoll_model::ids::{ObjectName, SandboxUid};
use atoll_model::validate::Problems;
use atoll_wire::rest::{CreateExternal, Deleted, External, ExternalEnvelope, Page, Sandbox};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::ApiError;
use super::input::{self, Params};
use super::paging::Wanted;
use super::{App, Done};
use crate::store::{Item, ItemKind, Write};
use crate::{admission, time};

/// Longest name by which a node is reached. SOURCE: RFC 1035, a name has 255 bytes at most.
const MAX_EXTERNAL_BYTES: usize = 255;

/// `POST /api/v1/externals`: makes it, or gives it another value.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let request: CreateExternal = input::object(&headers, body).await?;
    check(&app, &request)?;
    // Looked at and written by one at a time: two must not take one node.
    let _turn = app.externals.lock().await;
    let known = find(&app, &request.id);
    let (node_id, external) = (request.spec.node_id, request.spec.external);
    if let Some(other) = of_node(&app, &node_id).filter(|other| other.id != request.id) {
        let message =
            format!("node {node_id:?} has the external {:?}: delete that one first", other.id);
        return Err(ApiError::conflict(message));
    }
    let write = match known {
        Some(known) if known.node_id != node_id => {
            return Err(ApiError::conflict(format!(
                "external {:?} belongs to node {:?}: delete it first",
                known.id, known.node_id
            )));
        }
        Some(known) => {
            let item = External { external, ..(*known).clone() };
            Write::UpdateItem(Item::External(Arc::new(item)))
        }
        None => Write::CreateItem(Item::External(Arc::new(new(request.id, node_id, external)?))),
    };
    app.context.store.commit(write, Vec::new()).await?;
    Ok(Json(Done { ok: true }))
}

fn check(app: &App, request: &CreateExternal) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    let (version, kind) = (request.api_version.as_deref(), request.kind.as_deref());
    admission::kind_of_object(&mut problems, version, kind, "External");
    problems.take("id", request.id.parse::<ObjectName>());
    let node = &request.spec.node_id;
    if *node != app.context.node_name {
        let shown: String = node.chars().take(128).collect();
        let message =
            format!("there is no node {shown:?}; this one is {:?}", app.context.node_name);
        problems.add("spec.node_id", message);
    }
    let external = &request.spec.external;
    if external.trim().is_empty() || external.chars().any(char::is_control) {
        problems.add("spec.external", "must be an address or a name");
    } else if external.len() > MAX_EXTERNAL_BYTES {
        problems.add("spec.external", format!("is longer than {MAX_EXTERNAL_BYTES} bytes"));
    }
    if problems.is_empty() { Ok(()) } else { Err(ApiError::fields(problems.into_vec())) }
}

fn new(id: String, node_id: String, external: String) -> Result<External, ApiError> {
    let uid = SandboxUid::from_random(input::random("uid")?);
    let (created_at, updated_at) = (time::now_text(), String::new());
    Ok(External {
        id,
        uid: uid.to_string(),
        resource_version: 0,
        node_id,
        external,
        created_at,
        updated_at,
    })
}

fn find(app: &App, id: &str) -> Option<Arc<External>> {
    match app.context.store.item(ItemKind::External, id)? {
        Item::External(external) => Some(external),
        _ => None,
    }
}

fn all(app: &App) -> (Vec<Arc<External>>, u64) {
    let (items, version) = app.context.store.items(ItemKind::External);
    let external = |item| match item {
        Item::External(external) => Some(external),
        _ => None,
    };
    let mut found: Vec<_> = items.into_iter().filter_map(external).collect();
    // SOURCE: sandboxd-o lists them by id.
    found.sort_by(|a, b| a.id.cmp(&b.id));
    (found, version)
}

fn of_node(app: &App, node_id: &str) -> Option<Arc<External>> {
    all(app).0.into_iter().find(|it| it.node_id == node_id)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// `GET /api/v1/externals`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Json<Page<External>>, ApiError> {
    let (externals, resource_version) = all(&app);
    let wanted = Wanted { limit: params.limit, cursor: params.cursor };
    let (items, next_cursor) = wanted.page(externals.iter().map(AsRef::as_ref))?;
    let items = items.into_iter().cloned().collect();
    Ok(Json(Page { items, resource_version, next_cursor }))
}

/// `GET /api/v1/externals/ID`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<ExternalEnvelope>, ApiError> {
    let external = find(&app, &id).ok_or_else(|| ApiError::none_of("external", &id))?;
    Ok(Json(ExternalEnvelope { external: (*external).clone() }))
}

/// `DELETE /api/v1/externals/ID`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let external = find(&app, &id).ok_or_else(|| ApiError::none_of("external", &id))?;
    let (kind, name, uid) = (ItemKind::External, id.clone(), external.uid.clone());
    app.context.store.commit(Write::DeleteItem { kind, name, uid }, Vec::new()).await?;
    Ok(Json(Deleted { deleted: id }))
}

impl App {
    /// By which name this machine is reached from outside, where an external says so.
    pub(super) fn external_of_this_node(&self) -> Option<String> {
        of_node(self, &self.context.node_name).map(|it| it.external.clone())
    }

    /// A sandbox as it is shown: with its node's external.
    pub(super) fn shown<'a>(&self, sandbox: &'a Sandbox) -> Cow<'a, Sandbox> {
        match self.external_of_this_node() {
            Some(external) => Cow::Owned(with_external(sandbox, &external)),
            None => Cow::Borrowed(sandbox),
        }
    }
}

/// A sandbox with this external, once it has a node.
pub(super) fn with_external(sandbox: &Sandbox, external: &str) -> Sandbox {
    let mut shown = sandbox.clone();
    if shown.status.node_name.is_some() {
        shown.status.external = Some(external.to_owned());
    }
    shown
}
