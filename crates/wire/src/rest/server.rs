//! The server itself: its version, how to end it, and the file by which others find it.

use serde::{Deserialize, Serialize};

use crate::record::ProcessId;

/// Version of [`ServerRecord`].
pub const SERVER_RECORD_VERSION: u32 = 1;

/// `<data-dir>/server.json`: written whole when the server serves, removed when it ends in order. Believe it only while the process lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// [`SERVER_RECORD_VERSION`].
    pub version: u32,
    /// The server's process.
    pub process: ProcessId,
    /// `http://127.0.0.1:8082`, or `unix:/path/of/socket`.
    pub address: String,
    /// Version of atoll.
    pub build: String,
    /// RFC 3339.
    pub started_at: String,
}

/// Answer of `GET /api/v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VersionInfo {
    /// Version of atoll.
    pub version: String,
    /// The manifest version that it reads.
    pub api_version: String,
}

/// Body of `POST /api/v1/shutdown`. Answered with 202; the server ends after the answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Shutdown {
    /// Delete every sandbox first, and leave nothing on the host; else they go on.
    #[serde(default)]
    pub delete_sandboxes: bool,
}

/// Body of `POST /api/v1/sandboxes/ID/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignalSandbox {
    /// The first container when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// 1 to 64.
    pub signal: i32,
    /// All processes of the container rather than its main process alone.
    #[serde(default)]
    pub everyone: bool,
}

/// Body of `POST /api/v1/sandboxes/ID/stop`; may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StopSandbox {
    /// Seconds from the stop signal to SIGKILL; 10 when left out, 0 kills at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

/// A process of a container, answered as [`Items`](super::Items) by `GET /api/v1/sandboxes/ID/processes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Process {
    /// Its pid inside.
    pub pid: i32,
    /// Its parent's.
    pub parent_pid: i32,
    /// User id inside.
    pub uid: u32,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// CPU time used, in milliseconds.
    pub cpu_millis: u64,
    /// Command line, cut.
    pub command: String,
}

/// A registry for which credentials are kept, answered as [`Items`](super::Items) by `GET /api/v1/registries`. Never holds the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Registry {
    /// Host and port.
    pub registry: String,
    /// User name.
    pub username: String,
}
