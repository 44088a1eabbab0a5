//! `atoll create`: objects from manifest files, or a volume. All files are read before the first object is created.

use std::time::Duration;

use atoll_wire::rest::{
    CreateNamedVolume, Metadata, NamedVolumeEnvelope, NamedVolumeSpec, Sandbox, SandboxEnvelope,
};
use serde_json::Value;

use super::{FAILURE, Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, CreateArgs, CreateObject, CreateVolumeArgs, PlainFormat};
use crate::client::{Client, ClientError, with_query};
use crate::manifest::read;
use crate::output;

/// How long `--wait` waits for each sandbox, at most: the longest that the server offers.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// Creates what the files say; goes on after a refusal, and fails at the end then.
pub(super) async fn create(args: CreateArgs, connection: &ConnectionArgs) -> Outcome {
    if let Some(CreateObject::Volume(volume)) = &args.object {
        return create_volume(volume, connection).await;
    }
    let mut manifests = Vec::new();
    for path in &args.filename {
        let name = path.display().to_string();
        for (index, document) in read(path)?.into_iter().enumerate() {
            manifests.push((format!("{name}, document {}", index + 1), document));
        }
    }
    let client = connect(connection)?;
    let mut created: Vec<Value> = Vec::new();
    let mut sandboxes = Vec::new();
    let mut code = SUCCESS;
    for (origin, manifest) in manifests {
        let result = post(&client, &manifest).await;
        match result {
            Ok(Created::External(name)) => {
                if args.output == PlainFormat::Text {
                    output::print(&format!("external/{name} created\n"))?;
                }
            }
            Ok(Created::Sandbox(sandbox)) => {
                if args.output == PlainFormat::Text {
                    output::print(&format!("sandbox/{} created\n", sandbox.id))?;
                }
                sandboxes.push((created.len(), sandbox.id.clone()));
                created.push(serde_json::to_value(sandbox)?);
            }
            Ok(Created::Other { kind, object }) => {
                if args.output == PlainFormat::Text {
                    let id = object.get("id").and_then(Value::as_str).unwrap_or_default();
                    output::print(&format!("{kind}/{id} created\n"))?;
                }
                created.push(object);
            }
            Err(error @ ClientError::Refused { .. }) => {
                output::error(&anyhow::Error::new(error).context(origin));
                code = FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.wait {
        for (place, id) in sandboxes {
            let sandbox = wait_until_ready(&client, &id).await?;
            if !sandbox.status.ready {
                code = FAILURE;
                let why = sandbox.status.last_error.as_deref().unwrap_or("it has ended");
                output::warn(&format!("sandbox/{} is not ready: {why}", sandbox.id));
            }
            if let Some(shown) = created.get_mut(place) {
                *shown = serde_json::to_value(sandbox)?;
            }
        }
    }
    if args.output == PlainFormat::Json {
        output::print_json(&serde_json::json!({ "items": created }))?;
    }
    Ok(code)
}

/// What came of a manifest.
enum Created {
    Sandbox(Box<Sandbox>),
    /// Its name: the server shows no more of it.
    External(String),
    Other {
        kind: &'static str,
        object: Value,
    },
}

/// A manifest goes where objects of its kind are made. One of a kind that is not known is refused there, in the server's words.
async fn post(client: &Client, manifest: &Value) -> Result<Created, ClientError> {
    let text = |field: &str| manifest.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind").eq_ignore_ascii_case("External") {
        let _: Value = client.post("/api/v1/externals", manifest).await?;
        return Ok(Created::External(text("id").to_owned()));
    }
    if text("kind").eq_ignore_ascii_case("Volume") {
        let envelope: NamedVolumeEnvelope = client.post("/api/v1/volumes", manifest).await?;
        let object = serde_json::to_value(envelope.volume);
        let object = object.map_err(|error| ClientError::answer(&error))?;
        return Ok(Created::Other { kind: "volume", object });
    }
    let envelope: SandboxEnvelope = client.post("/api/v1/sandboxes", manifest).await?;
    Ok(Created::Sandbox(Box::new(envelope.sandbox)))
}

async fn create_volume(args: &CreateVolumeArgs, connection: &ConnectionArgs) -> Outcome {
    let request = CreateNamedVolume {
        api_version: None,
        kind: None,
        id: args.name.clone(),
        metadata: Metadata { labels: args.label.iter().cloned().collect() },
        spec: NamedVolumeSpec { size: args.size.clone() },
    };
    let envelope: NamedVolumeEnvelope =
        connect(connection)?.post("/api/v1/volumes", &request).await?;
    output::print(&format!("volume/{} created\n", envelope.volume.id))?;
    Ok(SUCCESS)
}

async fn wait_until_ready(client: &Client, name: &str) -> Result<Sandbox, ClientError> {
    let seconds = WAIT_LIMIT.as_secs().to_string();
    let path = with_query(
        &crate::client::sandbox_path(name),
        &[("wait", Some("ready")), ("timeout_seconds", Some(&seconds))],
    );
    let envelope: SandboxEnvelope = client.get(&path).await?;
    Ok(envelope.sandbox)
}
