//! Manifest files: several YAML or JSON documents in one text, each turned into the JSON that the server reads.
//!
//! Whether a document is a good manifest is the server's to say; here it only has to be a document.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use atoll_wire::rest::strict::{DocumentError, yaml_documents};
use serde_json::Value;

/// Largest file that is read: far more than a manifest needs, less than the server would refuse anyway.
const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// Why a text is no manifest file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Neither YAML nor JSON.
    #[error("{source_name}, document {document}: {message}")]
    Syntax {
        /// The file.
        source_name: String,
        /// Which document, from 1.
        document: usize,
        /// What is wrong, and where.
        message: String,
    },
    /// A list, a number, a text.
    #[error(
        "{source_name}, document {document}: is no manifest: it should begin with 'kind: Sandbox'"
    )]
    NotAnObject {
        /// The file.
        source_name: String,
        /// Which document, from 1.
        document: usize,
    },
    /// No document at all.
    #[error("{source_name}: is empty")]
    Empty {
        /// The file.
        source_name: String,
    },
}

/// The documents of a file; `-` is standard input.
///
/// # Errors
/// It cannot be read, is larger than any manifest, or [`ManifestError`].
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    let name = path.display().to_string();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
    };
    let bytes = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > MAX_FILE_BYTES) {
        anyhow::bail!("{name} is larger than {} MiB: no manifest is", MAX_FILE_BYTES >> 20);
    }
    Ok(documents(&name, &text)?)
}

/// The documents of a text, empty ones left out.
fn documents(source_name: &str, text: &str) -> Result<Vec<Value>, ManifestError> {
    let mut found = Vec::new();
    for (index, document) in yaml_documents(text.as_bytes()).enumerate() {
        let value = document.map_err(|error| ManifestError::Syntax {
            source_name: source_name.to_owned(),
            document: index + 1,
            message: match error {
                DocumentError::Syntax(message) => message,
                DocumentError::Fields(fields) => {
                    fields.into_iter().map(|field| field.message).collect::<Vec<_>>().join(", ")
                }
            },
        })?;
        match value {
            Value::Null => {}
            Value::Object(_) => found.push(value),
            _ => {
                return Err(ManifestError::NotAnObject {
                    source_name: source_name.to_owned(),
                    document: index + 1,
                });
            }
        }
    }
    if found.is_empty() {
        return Err(ManifestError::Empty { source_name: source_name.to_owned() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_hold_several_documents_in_either_form() {
        let found = documents(
            "f",
            "kind: Sandbox\nid: a\n---\n\n---\n{\"kind\": \"Sandbox\", \"id\": \"b\"}\n",
        )
        .unwrap();
        let ids: Vec<_> = found.iter().map(|value| value["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_document() {
        let error = documents("f.yaml", "kind: Sandbox\n---\nkind: [\n").unwrap_err().to_string();
        assert!(error.starts_with("f.yaml, document 2: "), "{error}");
        // What the server would refuse is not made harmless on the way to it.
        let twice = documents("f", "kind: Sandbox\nid: a\nid: b\n").unwrap_err().to_string();
        assert!(twice.contains("\"id\" is there twice"), "{twice}");
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..10 {
            let previous = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert!(matches!(documents("f", &bomb), Err(ManifestError::Syntax { .. })));
        assert!(matches!(documents("f", "- a"), Err(ManifestError::NotAnObject { .. })));
        assert!(matches!(documents("f", "# nothing\n"), Err(ManifestError::Empty { .. })));
    }
}
