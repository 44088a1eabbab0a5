//! Errors as one line of text, for logs, statuses and people.

use std::error::Error;

/// An error with everything that it came from: each describes its own layer only.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
