//! Files into and out of a container, as tar streams.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::validate;
use atoll_runtime::{ProcessInput, ProcessOutput, ProcessStream};
use atoll_wire::guest::{TransferRequest, UserIds};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::input::Params;
use super::{App, Done};
use crate::owner::Live;

/// Most that is read and thrown away so that a client hears why its upload was refused (guess: what a few seconds bring on loopback).
const DISCARDED_BYTES: usize = 1 << 30;
/// For how long.
const DISCARDED_WITHIN: Duration = Duration::from_secs(10);
/// Longest silence of a client that sends files.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes handed over at a time.
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileParams {
    container: Option<String>,
    path: String,
    user: Option<String>,
}

async fn begin(
    app: &App,
    id: &str,
    params: FileParams,
) -> Result<(Arc<Live>, String, TransferRequest), ApiError> {
    let (live, owner) = app.running(id)?;
    let container = app.container(&owner, params.container.as_deref())?;
    let path = validate::absolute_path(&params.path)
        .map_err(|error| ApiError::malformed(format!("path: {error}")))?;
    let user = user(app, &live, &container, params.user.as_deref()).await?;
    Ok((live, container, TransferRequest { path, user }))
}

async fn user(
    app: &App,
    live: &Live,
    container: &str,
    wanted: Option<&str>,
) -> Result<UserIds, ApiError> {
    let index = live.plan.containers.iter().position(|it| it.name == container);
    let index = index.ok_or_else(|| ApiError::no_container(container))?;
    match wanted.filter(|user| !user.is_empty()) {
        None => Ok(live.plan.containers[index].process.user.clone()),
        Some(user) => {
            let user = validate::user(user)
                .map_err(|error| ApiError::malformed(format!("user: {error}")))?;
            let digest = live.digests.get(index).map_or("", String::as_str);
            Ok(app.context.images.resolve_user(digest, &user).await?.ids)
        }
    }
}

/// `GET /api/v1/sandboxes/ID/files`.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<FileParams>,
) -> Result<Response, ApiError> {
    let (live, container, transfer) = begin(&app, &id, params).await?;
    let ProcessStream { input, mut output } = live.sandbox.download(&container, transfer).await?;
    // The first answer decides: an error before any byte is an answer of its own.
    let first = loop {
        match output.recv().await {
            Some(ProcessOutput::Stdout(data)) => break Some(data),
            Some(ProcessOutput::TransferDone(None)) => break None,
            Some(ProcessOutput::Started | ProcessOutput::Stderr(_)) => {}
            other => return Err(failure(other)),
        }
    };
    let state = (first, output, input);
    let chunks = futures::stream::unfold(state, |(first, mut output, input)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, output, input)));
        }
        loop {
            return match output.recv().await {
                Some(ProcessOutput::Stdout(data)) => Some((Ok(data), (None, output, input))),
                Some(ProcessOutput::TransferDone(None)) => None,
                Some(ProcessOutput::Started | ProcessOutput::Stderr(_)) => continue,
                other => Some((
                    Err(std::io::Error::other(failure(other).body().error.clone())),
                    (None, closed(), input),
                )),
            };
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(chunks)).into_response())
}

/// A stream of output that is over.
fn closed() -> mpsc::Receiver<ProcessOutput> {
    mpsc::channel(1).1
}

/// `PUT /api/v1/sandboxes/ID/files`.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<FileParams>,
    mut body: Body,
) -> Result<Json<Done>, ApiError> {
    let (live, container, transfer) = begin(&app, &id, params).await?;
    let ProcessStream { input, mut output } = live.sandbox.upload(&container, transfer).await?;
    let early = tokio::select! {
        biased;
        ended = outcome(&mut output) => Some(ended),
        sent = send(&mut body, &input) => { sent?; None }
    };
    let ended = match early {
        Some(ended) => ended,
        None => outcome(&mut output).await,
    };
    if ended.is_err() {
        discard(&mut body).await;
    }
    ended.map(|()| Json(Done { ok: true }))
}

/// Reads on for a while after a refusal: a client that is cut off while it sends sees a broken connection, not the reason.
async fn discard(body: &mut Body) {
    let rest = async {
        let mut left = DISCARDED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, Bytes::len);
            let Some(less) = left.checked_sub(read) else { break };
            left = less;
        }
    };
    // Too slow to be told: it sees the connection end.
    let _ = tokio::time::timeout(DISCARDED_WITHIN, rest).await;
}

async fn outcome(output: &mut mpsc::Receiver<ProcessOutput>) -> Result<(), ApiError> {
    loop {
        match output.recv().await {
            Some(ProcessOutput::TransferDone(None)) => return Ok(()),
            Some(ProcessOutput::Started | ProcessOutput::Stdout(_) | ProcessOutput::Stderr(_)) => {}
            other => return Err(failure(other)),
        }
    }
}

async fn send(body: &mut Body, input: &mpsc::Sender<ProcessInput>) -> Result<(), ApiError> {
    loop {
        let frame = tokio::time::timeout(IDLE_DEADLINE, body.frame()).await;
        let frame = frame.map_err(|_| {
            ApiError::timeout(format!("nothing came for {} s", IDLE_DEADLINE.as_secs()))
        })?;
        let Some(frame) = frame else { break };
        let frame =
            frame.map_err(|error| ApiError::malformed(format!("the body broke off: {error}")))?;
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            let chunk: Bytes = data.split_to(data.len().min(CHUNK_BYTES));
            if input.send(ProcessInput::Stdin(chunk)).await.is_err() {
                // The other side has answered: its outcome says why.
                return Ok(());
            }
        }
    }
    input.send(ProcessInput::StdinEnd).await.ok();
    Ok(())
}

fn failure(told: Option<ProcessOutput>) -> ApiError {
    match told {
        Some(ProcessOutput::TransferDone(Some(message))) => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
        }
        Some(ProcessOutput::StartFailed(failure)) => ApiError::conflict(failure.message),
        Some(ProcessOutput::Lost(message)) => ApiError::unavailable(message),
        _ => ApiError::unavailable("the transfer broke off"),
    }
}
