//! Images and the credentials of registries.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::image_reference::{ImageReference, parse_registry};
use atoll_model::state::Phase;
use atoll_wire::rest::{
    CollectedImages, Deleted, ImageInfo, ImageProgress, Items, PullImage, Registry,
    RegistryCredentials,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::error::ApiError;
use super::input::{self, Params};
use super::{App, Done};
use crate::images::{ImageSourceError, Progress};

/// Longest silence of a client that sends an archive.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Progress lines under way; more are dropped: the next one says the same and more.
const PROGRESS_LINES: usize = 64;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReferenceParams {
    reference: String,
}

fn reference(text: &str) -> Result<ImageReference, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("reference: {error}"))
    })
}

/// Adds which sandboxes use an image.
fn with_users(app: &App, mut image: ImageInfo) -> ImageInfo {
    let (sandboxes, _) = app.context.store.sandboxes();
    let uses = |it: &&Arc<atoll_wire::rest::Sandbox>| {
        let over = Phase::from_name(&it.status.phase).is_some_and(Phase::is_over);
        !over
            && it
                .status
                .containers
                .iter()
                .any(|it| it.image_digest.as_deref() == Some(&image.digest))
    };
    image.used_by = sandboxes.iter().filter(uses).map(|it| it.id.clone()).collect();
    image
}

/// `GET /api/v1/images`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Items<ImageInfo>>, ApiError> {
    let images = app.context.images.list().await?;
    let items = images.into_iter().map(|image| with_users(&app, image)).collect();
    Ok(Json(Items { items, resource_version: 0 }))
}

/// `GET /api/v1/images/inspect`.
pub(super) async fn inspect(
    State(app): State<Arc<App>>,
    Params(params): Params<ReferenceParams>,
) -> Result<Json<ImageInfo>, ApiError> {
    let image = app.context.images.inspect(&reference(&params.reference)?).await?;
    Ok(Json(with_users(&app, image)))
}

/// `DELETE /api/v1/images`.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Params(params): Params<ReferenceParams>,
) -> Result<Json<Deleted>, ApiError> {
    let reference = reference(&params.reference)?;
    let image = with_users(&app, app.context.images.inspect(&reference).await?);
    if image.references.len() <= 1 && !image.used_by.is_empty() {
        return Err(ApiError::conflict(format!(
            "image {} is used by {}",
            reference.familiar(),
            image.used_by.join(", ")
        )));
    }
    app.context.images.remove(&reference).await?;
    Ok(Json(Deleted { deleted: reference.familiar() }))
}

/// `POST /api/v1/images/gc`.
pub(super) async fn collect(
    State(app): State<Arc<App>>,
) -> Result<Json<CollectedImages>, ApiError> {
    Ok(Json(app.context.images.collect().await?))
}

/// `POST /api/v1/images/pull`.
pub(super) async fn pull(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: PullImage = input::json(&headers, body).await?;
    let reference = reference(&request.reference)?;
    if request.plain_http && !reference.registry_is_loopback() {
        let message = "plain_http: only for registries on loopback; others need TLS";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message));
    }
    let (progress, lines) = progress();
    let images = Arc::clone(&app.context.images);
    let work = async move {
        images.pull(&reference, request.plain_http, progress).await?;
        Ok(vec![images.inspect(&reference).await?])
    };
    Ok(progress_stream(Box::pin(work), lines))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportParams {
    reference: Option<String>,
}

/// `POST /api/v1/images/import`.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Params(params): Params<ImportParams>,
    body: Body,
) -> Result<Response, ApiError> {
    let reference = params.reference.as_deref().map(reference).transpose()?;
    let chunks = tokio_stream::StreamExt::timeout(body.into_data_stream(), IDLE_DEADLINE);
    let chunks = chunks.map(|chunk| match chunk {
        Ok(chunk) => chunk.map_err(std::io::Error::other),
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the client sent nothing for too long",
        )),
    });
    let (progress, lines) = progress();
    let archive = StreamReader::new(Box::pin(chunks.into_stream()));
    let images = Arc::clone(&app.context.images);
    let work = async move { images.import(Box::new(archive), reference.as_ref(), progress).await };
    Ok(progress_stream(Box::pin(work), lines))
}

fn progress() -> (Progress, mpsc::Receiver<ImageProgress>) {
    let (sender, receiver) = mpsc::channel(PROGRESS_LINES);
    let progress: Progress = Arc::new(move |line| {
        // Full: a client reads slowly. The pull does not wait for it.
        sender.try_send(line).ok();
    });
    (progress, receiver)
}

type ImageWork = BoxFuture<'static, Result<Vec<ImageInfo>, ImageSourceError>>;

/// Lines of progress, then the outcome. When the client goes, the work is dropped.
fn progress_stream(work: ImageWork, lines: mpsc::Receiver<ImageProgress>) -> Response {
    let state = Some((work, lines));
    let stream = futures::stream::unfold(state, |state| async move {
        let (mut work, mut lines) = state?;
        tokio::select! {
            biased;
            Some(line) = lines.recv() => Some((line, Some((work, lines)))),
            result = &mut work => Some((outcome(result), None)),
        }
    });
    let encoded = stream.map(|line| {
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Ok::<Bytes, Infallible>(Bytes::from(text))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(encoded)).into_response()
}

fn outcome(result: Result<Vec<ImageInfo>, ImageSourceError>) -> ImageProgress {
    match result {
        Ok(images) => ImageProgress {
            status: "done".to_owned(),
            done: Some(images),
            ..ImageProgress::default()
        },
        Err(error) => {
            let error = ApiError::from(error).body().clone();
            ImageProgress {
                status: "failed".to_owned(),
                error: Some(error),
                ..ImageProgress::default()
            }
        }
    }
}

/// `GET /api/v1/registries`.
pub(super) async fn registries(
    State(app): State<Arc<App>>,
) -> Result<Json<Items<Registry>>, ApiError> {
    Ok(Json(Items { items: app.context.images.registries().await?, resource_version: 0 }))
}

fn registry(text: &str) -> Result<String, ApiError> {
    parse_registry(text).map_err(|error| {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("registry: {error}"))
    })
}

/// `PUT /api/v1/registries/REGISTRY/credentials`.
pub(super) async fn set_credentials(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let credentials: RegistryCredentials = input::json(&headers, body).await?;
    app.context.images.set_credentials(&registry(&name)?, &credentials).await?;
    Ok(Json(Done { ok: true }))
}

/// `DELETE /api/v1/registries/REGISTRY/credentials`.
pub(super) async fn remove_credentials(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let name = registry(&name)?;
    if app.context.images.remove_credentials(&name).await? {
        Ok(Json(Deleted { deleted: name }))
    } else {
        Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there are no credentials for {name}"),
        ))
    }
}
