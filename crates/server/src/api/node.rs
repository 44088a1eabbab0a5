//! The server itself and this machine: health, version, node, metrics, events, shutdown.

use std::sync::Arc;

use atoll_model::spec::Class;
use atoll_wire::rest::{API_VERSION, ClassInfo, Event, NodeInfo, Page, Shutdown, VersionInfo};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::ApiError;
use super::input::{self, Params};
use super::paging::Wanted;
use super::{App, Done, watching};

/// `GET /healthz`.
pub(super) async fn healthz() -> Json<Done> {
    Json(Done { ok: true })
}

/// `GET /api/v1/version`.
pub(super) async fn version() -> Json<VersionInfo> {
    Json(VersionInfo { version: crate::VERSION.to_owned(), api_version: API_VERSION.to_owned() })
}

/// `GET /api/v1/node`.
pub(super) async fn node(State(app): State<Arc<App>>) -> Json<NodeInfo> {
    let mut classes = Vec::new();
    for class in Class::ALL {
        if let Some(runtime) = app.context.runtimes.get(&class) {
            classes.push(ClassInfo {
                name: class.name().to_owned(),
                available: true,
                detail: runtime.traits().detail,
                limits_scope: app.limits_scope(class).unwrap_or_default().to_owned(),
            });
        } else if let Some((_, why)) =
            app.context.missing.iter().find(|(missing, _)| *missing == class)
        {
            let detail = why.clone();
            classes.push(ClassInfo {
                name: class.name().to_owned(),
                available: false,
                detail,
                limits_scope: String::new(),
            });
        }
    }
    Json(NodeInfo {
        id: app.context.node_name.clone(),
        version: crate::VERSION.to_owned(),
        pid: i32::try_from(std::process::id()).unwrap_or_default(),
        labels: app.context.node_labels.clone(),
        classes,
        default_class: app
            .offer
            .classes
            .first()
            .map(|it| it.class.name().to_owned())
            .unwrap_or_default(),
    })
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (sandboxes, _) = app.context.store.sandboxes();
    let text = app.context.metrics.text(sandboxes.iter().map(AsRef::as_ref));
    // SOURCE: OpenMetrics, media type.
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    object: Option<String>,
    #[serde(default)]
    watch: bool,
    resource_version: Option<u64>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// `GET /api/v1/events`.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Params(params): Params<EventParams>,
) -> Result<Response, ApiError> {
    let page = Wanted { limit: params.limit, cursor: params.cursor };
    if params.watch {
        page.refuse_with_watch()?;
        return watching::events(&app, params.resource_version, params.object);
    }
    let (events, resource_version) = app.context.store.events();
    let wanted =
        |event: &&Event| params.object.as_ref().is_none_or(|object| *object == event.object);
    let (items, next_cursor) = page.page(events.iter().map(AsRef::as_ref).filter(wanted))?;
    Ok(Json(Page { items, resource_version, next_cursor }).into_response())
}

/// `POST /api/v1/shutdown`.
pub(super) async fn shutdown(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: Shutdown = input::json_or_default(&headers, body).await?;
    app.begin_ending();
    if request.delete_sandboxes {
        app.delete_all().await?;
    }
    app.end();
    Ok((StatusCode::ACCEPTED, Json(Done { ok: true })).into_response())
}
