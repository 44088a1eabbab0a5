//! Reading what clients send: unknown fields and wrong types are errors that name the field's path.
//!
//! Never panics and never builds more than the (bounded) text asks for.

use serde::de::DeserializeOwned;

use super::FieldError;

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentError {
    /// Not JSON or YAML at all: a 400.
    Syntax(String),
    /// Read, but some fields are wrong: a 422.
    Fields(Vec<FieldError>),
}

/// Reads JSON.
///
/// # Errors
/// [`DocumentError`].
pub fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, DocumentError> {
    from_value(json_value(text)?)
}

/// Reads JSON without a shape yet.
///
/// # Errors
/// [`DocumentError::Syntax`].
pub fn json_value(text: &[u8]) -> Result<serde_json::Value, DocumentError> {
    serde_json::from_slice(text)
        .map_err(|error| DocumentError::Syntax(format!("the body is not JSON: {error}")))
}

/// Reads YAML without a shape yet.
///
/// # Errors
/// [`DocumentError::Syntax`].
pub fn yaml_value(text: &[u8]) -> Result<serde_json::Value, DocumentError> {
    serde_yaml_ng::from_slice(text)
        .map_err(|error| DocumentError::Syntax(format!("the body is not YAML: {error}")))
}

/// Reads a JSON value.
///
/// # Errors
/// [`DocumentError::Fields`].
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, DocumentError> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(
        deserializer,
        &mut |path: serde_ignored::Path<'_>| {
            unknown.push(path.to_string());
        },
    ));
    let path = track.path().to_string();
    match result {
        Ok(value) if unknown.is_empty() => Ok(value),
        Ok(_) => {
            Err(DocumentError::Fields(unknown.iter().map(|path| unknown_field(path)).collect()))
        }
        Err(error) => {
            Err(DocumentError::Fields(vec![FieldError { path, message: error.to_string() }]))
        }
    }
}

fn unknown_field(path: &str) -> FieldError {
    FieldError { path: path.to_owned(), message: "is not a known field".to_owned() }
}
