//! Every error of the API in one place: status, code, words, fields. Internal details go to the log, not to the client.

use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::validate::Problem;
use atoll_runtime::RuntimeError;
use atoll_wire::rest::strict::DocumentError;
use atoll_wire::rest::{ErrorBody, FieldError};
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::images::ImageSourceError;
use crate::owner::OwnerGone;
use crate::store::{Gone, StoreError};

/// An error that a client is told.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// Seconds after which it is worth trying again.
    retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            error: message.into(),
            code: code.to_owned(),
            fields: Vec::new(),
            request_id: String::new(),
        };
        Self { status, body, retry_after: None }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    pub(crate) fn no_sandbox(id: &str) -> Self {
        Self::none_of("sandbox", id)
    }

    /// There is no object of this kind with that id.
    pub(crate) fn none_of(kind: &str, id: &str) -> Self {
        let shown: String = id.chars().take(128).collect();
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {kind} {shown:?}"))
    }

    pub(crate) fn no_container(name: &str) -> Self {
        let shown: String = name.chars().take(64).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("the sandbox has no container {shown:?}"),
        )
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    /// More creations than are allowed; in `wait` there will be room for one.
    pub(crate) fn too_many(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let message = format!("sandboxes are created too fast: try again in {seconds} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message);
        Self { retry_after: Some(seconds), ..error }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {limit} bytes"),
        )
    }

    /// Problems of one or several fields.
    pub(crate) fn fields(problems: Vec<Problem>) -> Self {
        let only_not_enforced = problems.iter().all(|it| it.not_enforced);
        let code =
            if only_not_enforced && !problems.is_empty() { "not_enforced" } else { "invalid" };
        let fields =
            problems.into_iter().map(|it| FieldError { path: it.path, message: it.message });
        Self::with_fields(code, fields.collect())
    }

    fn with_fields(code: &str, fields: Vec<FieldError>) -> Self {
        let shown = fields.first().map(|it| {
            if it.path.is_empty() {
                it.message.clone()
            } else {
                format!("{}: {}", it.path, it.message)
            }
        });
        let more = fields.len().saturating_sub(1);
        let message = match (shown, more) {
            (None, _) => "the document is not valid".to_owned(),
            (Some(first), 0) => first,
            (Some(first), more) => format!("{first} (and {more} more, see fields)"),
        };
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
        error.body.fields = fields;
        error
    }

    pub(crate) fn body(&self) -> &ErrorBody {
        &self.body
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<DocumentError> for ApiError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Syntax(message) => Self::malformed(message),
            DocumentError::Fields(fields) => Self::with_fields("invalid", fields),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyExists { .. } => {
                Self::new(StatusCode::CONFLICT, "already_exists", error.to_string())
            }
            StoreError::NotFound { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string())
            }
            StoreError::Disk { .. } | StoreError::Closed => Self::unavailable(error.to_string()),
            StoreError::Newer { .. } | StoreError::Damaged { .. } => internal(&error),
        }
    }
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::new(StatusCode::GONE, "gone", gone.to_string())
    }
}

impl From<OwnerGone> for ApiError {
    fn from(_: OwnerGone) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "the sandbox has just been deleted")
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        match &error {
            RuntimeError::NoContainer { container } => Self::no_container(container),
            RuntimeError::Ended { .. } => Self::conflict(error.to_string()),
            RuntimeError::Unreachable { .. } => Self::unavailable(error.to_string()),
            RuntimeError::Refused { .. } | RuntimeError::Unsupported { .. } => {
                Self::conflict(error.to_string())
            }
            RuntimeError::Host { .. } | RuntimeError::Launch { .. } | RuntimeError::Io { .. } => {
                internal(&error)
            }
        }
    }
}

impl From<ImageSourceError> for ApiError {
    fn from(error: ImageSourceError) -> Self {
        let (status, code) = match &error {
            ImageSourceError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            ImageSourceError::InUse { .. } => (StatusCode::CONFLICT, "conflict"),
            ImageSourceError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            ImageSourceError::Failed { .. } => (StatusCode::BAD_GATEWAY, "image_pull"),
        };
        Self::new(status, code, error.to_string())
    }
}

fn internal(error: &dyn std::error::Error) -> ApiError {
    let text = with_causes(error);
    tracing::error!(error = text, "a request failed inside");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text)
}
