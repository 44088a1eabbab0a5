//! What every request passes: an id, the token, a count, and errors in one shape whoever made them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tracing::Instrument;

use super::App;
use super::error::ApiError;

/// Answers carry it, errors name it, the log has it.
const REQUEST_ID: &str = "x-request-id";
/// Longest id that a client may choose.
const MAX_ID_BYTES: usize = 64;
/// Longest error body that is given a request id.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// Ids of requests: a random beginning for each server, then a count.
pub(crate) struct RequestIds {
    prefix: u32,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new(prefix: u32) -> Self {
        Self { prefix, next: AtomicU64::new(1) }
    }

    /// The client's own, where it can be believed to be one, or a new one.
    fn of(&self, request: &Request) -> String {
        let given = request.headers().get(REQUEST_ID).and_then(|it| it.to_str().ok());
        let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let good = |id: &&str| (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(sane);
        given.filter(good).map_or_else(|| self.next(), str::to_owned)
    }

    fn next(&self) -> String {
        format!("{:08x}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The outermost layer.
pub(crate) async fn pass(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = app.request_ids.of(&request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match authorized(&app, &request) {
        Ok(()) => {
            // Whatever is logged on the way names the request.
            let span = tracing::info_span!("request", %method, path, request_id = id);
            next.run(request).instrument(span).await
        }
        Err(error) => error.into_response(),
    };
    let status = response.status();
    app.context.metrics.answered(status.as_u16());
    tracing::debug!(%method, path, status = status.as_u16(), request_id = id, "answered");
    let mut response = if status.is_client_error() || status.is_server_error() {
        complete_error(response, &method, &path, &id).await
    } else {
        response
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn authorized(app: &App, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    if path == "/healthz" || super::document::is_open(path) {
        return Ok(());
    }
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    // SOURCE: sandboxd-o: the scheme may be left out, and is read in any case.
    let token = match given.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => given.trim(),
    };
    if bool::from(token.as_bytes().ct_eq(app.token.as_bytes())) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "unauthorized"))
}

/// Gives errors of the router and of extractors the shape of all others, and all their request id.
async fn complete_error(response: Response, method: &Method, path: &str, id: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    let ours = parts.headers.get(header::CONTENT_TYPE).is_some_and(|it| it == "application/json");
    let text = axum::body::to_bytes(body, MAX_ERROR_BYTES).await.unwrap_or_default();
    let known = if ours { serde_json::from_slice(&text).ok() } else { None };
    let mut error: atoll_wire::rest::ErrorBody = known.unwrap_or_else(|| {
        let shown: String = path.chars().take(200).collect();
        let error = match parts.status {
            StatusCode::NOT_FOUND => {
                ApiError::new(parts.status, "not_found", format!("there is no {shown:?}"))
            }
            StatusCode::METHOD_NOT_ALLOWED => ApiError::new(
                parts.status,
                "method_not_allowed",
                format!("{shown:?} does not take {method}"),
            ),
            _ => ApiError::new(parts.status, "malformed", String::from_utf8_lossy(&text)),
        };
        error.body().clone()
    });
    id.clone_into(&mut error.request_id);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Strings only: there is nothing that could not be written.
    Response::from_parts(parts, Body::from(serde_json::to_vec(&error).unwrap_or_default()))
}
