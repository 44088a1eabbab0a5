//! What can go wrong between client and server, in words that say what to do next.

use atoll_wire::rest::{ErrorBody, FieldError};

use crate::instance::{Instance, not_running};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers.
    #[error("{message}")]
    Unreachable {
        /// Who does not, and what to do.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to atoll at {address} broke: {message}")]
    Broken {
        /// To whom.
        address: String,
        /// How.
        message: String,
    },
    /// The server said no.
    #[error("{}", refusal(body))]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why.
        body: ErrorBody,
    },
    /// The answer makes no sense.
    #[error(
        "atoll's answer cannot be understood ({message}): is it of another version than this client?"
    )]
    Answer {
        /// What is wrong with it.
        message: String,
    },
    /// The client itself cannot be made.
    #[error("cannot begin an HTTP client: {message}")]
    Setup {
        /// Why.
        message: String,
    },
}

impl ClientError {
    pub(super) fn setup(error: &dyn std::error::Error) -> Self {
        Self::Setup { message: innermost(error) }
    }

    pub(crate) fn answer(error: &dyn std::error::Error) -> Self {
        Self::Answer { message: innermost(error) }
    }

    pub(super) fn transport(instance: &Instance, error: &reqwest::Error) -> Self {
        if error.is_connect() {
            Self::unreachable(instance, error)
        } else {
            Self::broken(instance, error)
        }
    }

    pub(super) fn unreachable(instance: &Instance, error: &dyn std::error::Error) -> Self {
        let message = match &instance.data_dir {
            Some(directory) => not_running(directory).to_string(),
            None => format!(
                "no atoll answers at {} ({}): check --server or ATOLL_SERVER, or start one there with `atoll up`",
                instance.address,
                innermost(error)
            ),
        };
        Self::Unreachable { message }
    }

    pub(super) fn broken(instance: &Instance, error: &dyn std::error::Error) -> Self {
        Self::Broken { address: instance.address.to_string(), message: innermost(error) }
    }

    pub(super) fn refused(status: u16, body: &[u8]) -> Self {
        let body = serde_json::from_slice(body).unwrap_or_else(|_| ErrorBody {
            error: format!(
                "atoll answered with HTTP status {status}: {}",
                String::from_utf8_lossy(body).chars().take(500).collect::<String>().trim()
            ),
            code: String::new(),
            fields: Vec::new(),
            request_id: String::new(),
        });
        Self::Refused { status, body }
    }

    /// The object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// The server's error with each field on a line of its own, unless the text says it all.
fn refusal(body: &ErrorBody) -> String {
    let mut text = body.error.clone();
    let said = |field: &FieldError| text.contains(&field.path) && text.contains(&field.message);
    if !body.fields.iter().all(said) {
        for field in &body.fields {
            text.push_str(&format!("\n  {}: {}", field.path, field.message));
        }
    }
    text
}

/// The last cause: the layers above it say only that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offending_field_is_shown() {
        let body = br#"{"error":"the sandbox is not valid","code":"invalid","fields":[
            {"path":"spec.containers[0].image","message":"is empty"},{"path":"id","message":"has '/'"}]}"#;
        let error = ClientError::refused(422, body);
        assert!(matches!(&error, ClientError::Refused { status: 422, .. }));
        let text = error.to_string();
        assert!(text.contains("\n  spec.containers[0].image: is empty\n  id: has '/'"), "{text}");
    }

    #[test]
    fn an_answer_that_is_no_json_is_shown_cut() {
        let error = ClientError::refused(502, "x".repeat(10_000).as_bytes());
        assert!(error.to_string().starts_with("atoll answered with HTTP status 502: xxx"));
        assert!(error.to_string().len() < 600);
    }
}
