//! `atoll version`: of this program, and of the instance if one runs.

use atoll_wire::rest::VersionInfo;

use super::{Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, PlainFormat, VersionArgs};
use crate::output;

/// Prints the versions. No instance is no failure.
pub(super) async fn version(args: VersionArgs, connection: &ConnectionArgs) -> Outcome {
    let client = env!("CARGO_PKG_VERSION");
    let server = match connect(connection) {
        Ok(client) => client.get::<VersionInfo>("/api/v1/version").await.ok(),
        Err(_) => None,
    };
    match args.output {
        PlainFormat::Json => {
            output::print_json(&serde_json::json!({ "client": client, "server": server }))?;
        }
        PlainFormat::Text => {
            output::print(&format!("atoll {client}\n"))?;
            match server {
                Some(server) => output::print(&format!(
                    "server {} (manifests {})\n",
                    server.version, server.api_version
                ))?,
                None => output::print("server: none runs here\n")?,
            }
        }
    }
    Ok(SUCCESS)
}
