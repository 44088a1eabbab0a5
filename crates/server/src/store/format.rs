//! How a record lies on disk: JSON with a version of its own. Older is read, newer refuses the start: setting it aside would orphan what runs.

use atoll_wire::rest;
use serde::{Deserialize, Serialize};

/// Version of a record's form.
const RECORD_FORMAT: u32 = 1;

#[derive(Serialize)]
struct Stored<'a> {
    format: u32,
    sandbox: &'a rest::Sandbox,
}

#[derive(Deserialize)]
struct Envelope {
    format: u32,
    sandbox: serde_json::Value,
}

/// Writes a record.
pub(crate) fn encode(sandbox: &rest::Sandbox) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&Stored { format: RECORD_FORMAT, sandbox })
        .map_err(|error| error.to_string())
}

/// Why a record was not read.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// A newer atoll wrote it: nothing is wrong with it.
    Newer { found: u32, known: u32 },
    /// It cannot be believed.
    Bad(String),
}

/// Reads a record.
pub(crate) fn decode(uid: &str, body: &[u8]) -> Result<rest::Sandbox, Unreadable> {
    let envelope: Envelope =
        serde_json::from_slice(body).map_err(|error| Unreadable::Bad(error.to_string()))?;
    if envelope.format > RECORD_FORMAT {
        return Err(Unreadable::Newer { found: envelope.format, known: RECORD_FORMAT });
    }
    believe(uid, envelope.sandbox).map_err(Unreadable::Bad)
}

fn believe(uid: &str, value: serde_json::Value) -> Result<rest::Sandbox, String> {
    let sandbox: rest::Sandbox =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    if sandbox.uid != uid || uid.parse::<atoll_model::ids::SandboxUid>().is_err() {
        return Err(format!("names uid {:?}", sandbox.uid));
    }
    if let Err(error) = sandbox.id.parse::<atoll_model::ids::SandboxName>() {
        return Err(format!("its id {error}"));
    }
    if atoll_model::state::Phase::from_name(&sandbox.status.phase).is_none() {
        return Err(format!("has the unknown phase {:?}", sandbox.status.phase));
    }
    Ok(sandbox)
}
