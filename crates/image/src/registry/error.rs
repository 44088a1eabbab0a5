//! Why a registry could not be used, in words that show nothing secret: no address's query, no header.

use crate::digest::Digest;
use crate::error::ImageErrorKind;

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Plain HTTP to another machine.
    #[error(
        "plain HTTP is spoken to registries on this machine only, and {registry} is elsewhere: use TLS"
    )]
    PlainHttp {
        /// Which registry.
        registry: String,
    },
    /// A file of a private certificate authority cannot be used.
    #[error("the certificate file {} cannot be used: {detail}", path.display())]
    Certificate {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        detail: String,
    },
    /// No answer.
    #[error("{host} cannot be reached: {detail}")]
    Unreachable {
        /// The registry, or where it redirected to; with the port, unless that is the scheme's own.
        host: String,
        /// Why, as far as it is known.
        detail: String,
    },
    /// It does not prove to be who it says.
    #[error("{host} shows a certificate that is not trusted: {detail}")]
    NotTrusted {
        /// The registry, or where it redirected to.
        host: String,
        /// What is wrong with its certificate, and what can be done.
        detail: String,
    },
    /// An answer ended early.
    #[error("the connection broke off: {detail}")]
    Cut {
        /// How.
        detail: String,
    },
    /// It is not there.
    #[error("{registry} has no {name}{}", advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default())]
    NotFound {
        /// Which registry.
        registry: String,
        /// Repository, and tag or digest.
        name: String,
        /// What to do, where more is known.
        advice: Option<String>,
    },
    /// It wants credentials, or others.
    #[error("{registry} refuses access{}: {detail}; log in with 'atoll login {registry}'", if *known { " with the credentials known for it" } else { "" })]
    Unauthorized {
        /// Which registry.
        registry: String,
        /// Credentials were sent.
        known: bool,
        /// What it says, escaped.
        detail: String,
    },
    /// Another status than expected.
    #[error("{registry} answered with status {status}: {detail}")]
    Status {
        /// Which registry.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What it says, escaped.
        detail: String,
    },
    /// It redirects to where we do not go.
    #[error("it redirects in a way that is not followed: {detail}")]
    Redirect {
        /// What was refused.
        detail: String,
    },
    /// An answer longer than allowed.
    #[error("its answer is longer than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// Content that is not what its digest says.
    #[error(
        "{what} should be {expected} but is {actual}: it was changed or damaged on the way, and is not used"
    )]
    Digest {
        /// Which content.
        what: String,
        /// The digest promised.
        expected: Digest,
        /// The digest found.
        actual: Digest,
    },
    /// It does not speak the protocol.
    #[error("it does not keep to the protocol: {detail}")]
    Protocol {
        /// What is wrong.
        detail: String,
    },
}

impl RegistryError {
    /// The kind, for an edge's status codes.
    #[must_use]
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::NotFound { .. } => ImageErrorKind::NotFound,
            Self::Unauthorized { .. } => ImageErrorKind::Unauthorized,
            Self::PlainHttp { .. } | Self::Digest { .. } | Self::TooLarge { .. } => {
                ImageErrorKind::Invalid
            }
            Self::Certificate { .. } => ImageErrorKind::Internal,
            Self::Unreachable { .. }
            | Self::NotTrusted { .. }
            | Self::Cut { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Protocol { .. } => ImageErrorKind::Unavailable,
        }
    }

    /// A request to that host and port without an answer.
    pub(crate) fn no_answer(host: String, error: &reqwest::Error) -> Self {
        let mut detail = chain(error);
        // SOURCE: rustls, Error::InvalidCertificate. It lies too deep in foreign errors to be taken out of them.
        if !detail.contains("invalid peer certificate") {
            // SOURCE: rustls, InvalidMessage::InvalidContentType: what came is no record of TLS.
            if detail.contains("InvalidContentType") {
                detail +=
                    " (it does not speak TLS; --plain-http is for registries on this machine)";
            }
            return Self::Unreachable { host, detail };
        }
        // BadSignature: an authority of the same name, with another key, is trusted.
        if detail.contains("UnknownIssuer") || detail.contains("BadSignature") {
            detail +=
                " (put the certificate of a private authority into the data directory's certs/)";
        }
        Self::NotTrusted { host, detail }
    }

    /// A body that ended early.
    pub(crate) fn cut(error: &reqwest::Error) -> Self {
        Self::Cut { detail: chain(error) }
    }

    /// Whether the same request may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }
}

/// An error and its sources, without the address: its query may be a signature.
pub(super) fn chain(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let mut parts: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        source = error.source();
    }
    if error.is_timeout() {
        parts.push("nothing came for too long".to_owned());
    }
    if parts.is_empty() {
        parts.push(if error.is_connect() {
            "no connection".to_owned()
        } else {
            "the request failed".to_owned()
        });
    }
    parts.join(": ")
}

/// What a registry said, for people: escaped, cut at 200 characters.
pub(super) fn printable(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
    if text.is_empty() { "it does not say why".to_owned() } else { text.escape_debug().to_string() }
}
