//! Reading what clients send: unknown fields and wrong types are errors that name the field's path and the nearest known name.
//!
//! Two steps: text to a value, bounded in depth, nodes and bytes (a YAML of a kilobyte can stand for terabytes), then value to a shape.
//! Never panics and never builds more than the bounds say. Shapes need no attribute for it: what a shape knows is asked of its own
//! `Deserialize`.

use serde::de::{DeserializeOwned, DeserializeSeed};

use super::FieldError;

mod bounded;
mod known;

use bounded::{Bounded, Budget};
use known::Segment;

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentError {
    /// Not JSON or YAML at all, or beyond all bounds: a 400.
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
    let wrong = |error: serde_json::Error| {
        DocumentError::Syntax(format!("the body is not JSON that is read here: {error}"))
    };
    let budget = Budget::new();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Bounded::new(&budget).deserialize(&mut deserializer).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(value)
}

/// Reads YAML without a shape yet. A second document is an error rather than ignored.
///
/// # Errors
/// [`DocumentError::Syntax`].
pub fn yaml_value(text: &[u8]) -> Result<serde_json::Value, DocumentError> {
    let budget = Budget::new();
    let mut documents = serde_yaml_ng::Deserializer::from_slice(text);
    let empty = || DocumentError::Syntax("the body is empty".to_owned());
    let document = documents.next().ok_or_else(empty)?;
    let value = Bounded::new(&budget).deserialize(document).map_err(|error| {
        DocumentError::Syntax(format!("the body is not YAML that is read here: {error}"))
    })?;
    match documents.next() {
        None if value.is_null() => Err(empty()),
        None => Ok(value),
        Some(_) => Err(DocumentError::Syntax(
            "the body holds more than one document; send one at a time".to_owned(),
        )),
    }
}

/// Reads each document of a YAML text without a shape yet, each within bounds of its own; an empty one is null. Nothing comes after a
/// document with an error.
pub fn yaml_documents(
    text: &[u8],
) -> impl Iterator<Item = Result<serde_json::Value, DocumentError>> {
    let mut documents = serde_yaml_ng::Deserializer::from_slice(text);
    let mut broken = false;
    std::iter::from_fn(move || {
        let document = if broken { None } else { documents.next() }?;
        let value = Bounded::new(&Budget::new())
            .deserialize(document)
            .map_err(|error| DocumentError::Syntax(error.to_string()));
        broken = value.is_err();
        Some(value)
    })
}

/// Reads a value.
///
/// # Errors
/// [`DocumentError::Fields`].
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, DocumentError> {
    /// More are not told: who has so many typing errors has one mistake.
    const MOST: usize = 50;
    let mut unknown: Vec<Vec<Segment>> = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(
        deserializer,
        &mut |path: serde_ignored::Path<'_>| {
            if unknown.len() < MOST {
                unknown.push(known::segments(&path));
            }
        },
    ));
    let unknown = unknown.iter().map(|path| unknown_field::<T>(path));
    match result {
        Ok(value) if unknown.len() == 0 => Ok(value),
        Ok(_) => Err(DocumentError::Fields(unknown.collect())),
        Err(error) => {
            let path = track.path().to_string();
            let wrong = FieldError {
                path: if path == "." { String::new() } else { path },
                message: error.to_string(),
            };
            Err(DocumentError::Fields(unknown.chain(std::iter::once(wrong)).collect()))
        }
    }
}

/// How alike a name must be to be suggested (Jaro-Winkler). Guess: typing errors have more, other words less.
const ALIKE: f64 = 0.8;

fn unknown_field<T: DeserializeOwned>(path: &[Segment]) -> FieldError {
    let name = match path.last() {
        Some(Segment::Key(key)) => key.as_str(),
        _ => "",
    };
    let shown: String = name.chars().take(64).collect();
    let names = known::names_at::<T>(path).unwrap_or_default();
    let alike = names.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
    let nearest = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    let message = match nearest {
        Some((_, nearest)) => format!("unknown field {shown:?}, did you mean {nearest:?}?"),
        None if names.is_empty() => format!("unknown field {shown:?}"),
        None => format!("unknown field {shown:?}; known here: {}", names.join(", ")),
    };
    FieldError { path: known::shown(path), message }
}

/// Fuzz body: any bytes are read or refused, in bounded time and memory, and what is read as a manifest reads again from what it is
/// written as.
///
/// # Panics
/// When it does not: a bug that the fuzzer is to find.
pub fn fuzz_manifest(data: &[u8]) {
    use super::{CreateSandbox, ExecRequest, Manifest};
    for value in [json_value(data), yaml_value(data)].into_iter().flatten() {
        // Only that these never panic.
        let _ =
            (from_value::<CreateSandbox>(value.clone()), from_value::<ExecRequest>(value.clone()));
        if let Ok(manifest) = from_value::<Manifest>(value) {
            let text = serde_json::to_vec(&manifest).unwrap_or_default();
            assert_eq!(
                from_json::<Manifest>(&text),
                Ok(manifest),
                "{}",
                String::from_utf8_lossy(&text)
            );
        }
    }
}

#[cfg(test)]
mod tests;
