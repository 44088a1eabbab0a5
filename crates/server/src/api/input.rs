//! Reading what clients send: bounded in size and time, strictly.

use std::time::Duration;

use atoll_wire::rest::strict;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::error::ApiError;

/// Largest document. Guess: a manifest of 32 containers has kilobytes; this leaves room for files in environments, and for ten thousand
/// containers to be refused by their number.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 4 << 20;
/// Longest wait for a whole document.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(15);
/// Documents up to this size are read at once.
const SMALL_DOCUMENT_BYTES: usize = 64 << 10;
/// Larger ones that are read at the same time; further ones wait, within their deadline. With them thousands of connections cannot
/// fill the memory. Guess: manifests of megabytes are rare.
static LARGE_DOCUMENTS: Semaphore = Semaphore::const_new(8);

/// Reads a document.
pub(crate) async fn document(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_DOCUMENT_BYTES as u64) {
        return Err(ApiError::too_large(MAX_DOCUMENT_BYTES));
    }
    match tokio::time::timeout(DOCUMENT_DEADLINE, gather(body)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::timeout(format!(
            "the body did not arrive within {} s",
            DOCUMENT_DEADLINE.as_secs()
        ))),
    }
}

async fn gather(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut large = None;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::malformed(format!("the body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > MAX_DOCUMENT_BYTES {
                return Err(ApiError::too_large(MAX_DOCUMENT_BYTES));
            }
            if large.is_none() && bytes.len() + data.len() > SMALL_DOCUMENT_BYTES {
                // Never closed: only waits.
                large = LARGE_DOCUMENTS.acquire().await.ok();
            }
            bytes.extend_from_slice(&data);
        }
    }
    drop(large);
    Ok(bytes)
}

/// Reads an object's document: JSON, or YAML with a content type that says so.
pub(crate) async fn object<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = document(headers, body).await?;
    Ok(strict::from_value(value(headers, &bytes)?)?)
}

/// What a document says, whatever it is to be: JSON, or YAML with a content type that says so.
pub(crate) fn value(headers: &HeaderMap, bytes: &[u8]) -> Result<serde_json::Value, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let is_yaml = content_type.is_some_and(|it| it.contains("yaml"));
    Ok(if is_yaml { strict::yaml_value(bytes)? } else { strict::json_value(bytes)? })
}

/// Reads a JSON body; an empty one is the default where there is one.
pub(crate) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    Ok(strict::from_json(&document(headers, body).await?)?)
}

/// The same; an empty body is the default.
pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = document(headers, body).await?;
    if bytes.is_empty() { Ok(T::default()) } else { Ok(strict::from_json(&bytes)?) }
}

/// Random bits for a new object.
pub(crate) fn random(what: &str) -> Result<u64, ApiError> {
    getrandom::u64().map_err(|error| ApiError::unavailable(format!("no random {what}: {error}")))
}

/// The query, strictly: a parameter that is not known is an error.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => Err(ApiError::malformed(rejection.body_text())),
        }
    }
}
