//! Named volumes.

use std::sync::Arc;

use atoll_model::ids::{ObjectName, SandboxUid};
use atoll_model::validate::{self as rules, Problems};
use atoll_wire::rest::{
    CreateNamedVolume, Deleted, NamedVolume, NamedVolumeEnvelope, NamedVolumeStatus, Page,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::App;
use super::error::ApiError;
use super::input::{self, Params};
use super::paging::Wanted;
use super::sandboxes::selector;
use crate::volumes::{self, PENDING, VolumeError};
use crate::{admission, time};

/// `POST /api/v1/volumes`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<NamedVolumeEnvelope>), ApiError> {
    app.refuse_while_ending()?;
    let request: CreateNamedVolume = input::object(&headers, body).await?;
    let volume = admitted(&app, request)?;
    // A client that hangs up now must not leave half of it.
    let context = Arc::clone(&app.context);
    let made =
        tokio::spawn(async move { context.volumes.create(&context.store, volume).await }).await;
    let volume = made.map_err(|error| given_up(&error))??;
    let volume = app.context.volumes.shown_with_usage(&volume).await;
    Ok((StatusCode::CREATED, Json(NamedVolumeEnvelope { volume })))
}

fn given_up(error: &tokio::task::JoinError) -> ApiError {
    ApiError::unavailable(format!("the request was given up: {error}"))
}

/// Checks a request and makes its record.
fn admitted(app: &App, request: CreateNamedVolume) -> Result<NamedVolume, ApiError> {
    let mut problems = Problems::default();
    let name = problems.take("id", request.id.parse::<ObjectName>());
    admission::kind_of_object(
        &mut problems,
        request.api_version.as_deref(),
        request.kind.as_deref(),
        "Volume",
    );
    admission::labels(&mut problems, &request.metadata);
    let least = app.context.volumes.disks().map(|disks| disks.least_bytes());
    match least {
        Ok(least) => {
            let size = rules::bytes_between(
                &request.spec.size,
                atoll_model::units::Bytes(least),
                rules::MAX_BYTES,
            );
            problems.take("spec.size", size);
        }
        Err(error) => problems.not_enforced("spec.size", &error.to_string()),
    }
    let (Some(name), true) = (name, problems.is_empty()) else {
        return Err(ApiError::fields(problems.into_vec()));
    };
    let uid = SandboxUid::from_random(input::random("uid")?);
    Ok(NamedVolume {
        id: name.to_string(),
        uid: uid.to_string(),
        resource_version: 0,
        metadata: request.metadata,
        spec: request.spec,
        status: NamedVolumeStatus { phase: PENDING.to_owned(), ..NamedVolumeStatus::default() },
        created_at: time::now_text(),
        updated_at: String::new(),
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    label: Option<String>,
    label_selector: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// `GET /api/v1/volumes`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Json<Page<NamedVolume>>, ApiError> {
    let label = selector("label", params.label.as_deref())?;
    let label_selector = selector("label_selector", params.label_selector.as_deref())?;
    let wanted = Wanted { limit: params.limit, cursor: params.cursor };
    let (volumes, resource_version) = volumes::volumes(&app.context.store);
    let matches = |labels| label.matches(labels) && label_selector.matches(labels);
    let matching = volumes.iter().filter(|it| matches(&it.metadata.labels));
    let (page, next_cursor) = wanted.page(matching)?;
    let items = page.into_iter().map(|it| app.context.volumes.shown(it)).collect();
    Ok(Json(Page { items, resource_version, next_cursor }))
}

/// `GET /api/v1/volumes/ID`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<NamedVolumeEnvelope>, ApiError> {
    let volume = app.volume(&id)?;
    let volume = app.context.volumes.shown_with_usage(&volume).await;
    Ok(Json(NamedVolumeEnvelope { volume }))
}

/// `DELETE /api/v1/volumes/ID`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    app.refuse_while_ending()?;
    let volume = app.volume(&id)?;
    let context = Arc::clone(&app.context);
    let deleted =
        tokio::spawn(async move { context.volumes.delete(&context.store, &volume).await }).await;
    deleted.map_err(|error| given_up(&error))??;
    Ok(Json(Deleted { deleted: id }))
}

impl App {
    fn volume(&self, id: &str) -> Result<NamedVolume, ApiError> {
        volumes::volume_of(&self.context.store, id).ok_or_else(|| ApiError::none_of("volume", id))
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::Store(error) => error.into(),
            VolumeError::InUse { .. } | VolumeError::Pending { .. } => {
                Self::conflict(error.to_string())
            }
            VolumeError::Disk(_) | VolumeError::NoDisks => Self::unavailable(error.to_string()),
        }
    }
}
