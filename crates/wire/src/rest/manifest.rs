//! What a user writes. SOURCE: sandboxd-o's Sandbox; fields marked (atoll) are additions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The manifest's `apiVersion`.
pub const API_VERSION: &str = "sandboxd.o/v1";

/// A manifest file's document: `apiVersion`, `kind`, `id`, `metadata`, `spec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manifest {
    /// [`API_VERSION`]; may be left out.
    #[serde(rename = "apiVersion", default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Sandbox`, in any case.
    pub kind: String,
    /// The sandbox's name.
    pub id: String,
    /// Labels (atoll).
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: SandboxSpec,
}

/// Body of `POST /api/v1/sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateSandbox {
    /// The sandbox's name; made up when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Labels (atoll).
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: SandboxSpec,
}

/// Metadata of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metadata {
    /// Free for users.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A sandbox's specification.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SandboxSpec {
    /// `container`, `gvisor` or `sim`; the node's strongest when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Outbound traffic: to the world, and to nothing private or near. Needs a server with a network.
    #[serde(default)]
    pub egress: bool,
    /// Private destinations besides, with or without `egress`; the node's operator must allow each (`atoll up --allow-egress`) (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_allow: Vec<EgressSpec>,
    /// Seconds from creation to deletion; 0: never. A step of the wall clock moves it by nothing while the server runs; a server that is
    /// started again counts from the time of day that status `expire_at` names, but never longer than these seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ttl_seconds: i64,
    /// Seconds without an attached client after which the sandbox is deleted, counted from its creation, from the last detach and from
    /// a restart of the server; never when left out. `atoll run` sets it, so that a killed client leaves nothing behind (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detach_ttl_seconds: Option<u32>,
    /// Labels that its node must have; Pending with reason `NoNode` while none has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Published ports: reachable through this host while the sandbox is ready. Needs a server with a network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// What the containers share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeSpec>,
    /// At least one.
    pub containers: Vec<ContainerSpec>,
    /// Must pass before the sandbox is ready, and decides from then on whether it is. `tcp` and `http` need a server with a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ProbeSpec>,
    /// The hostname inside; a form of the name when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Seconds for which the CPU quota is lifted at the start, at most; 10 when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boost_seconds: Option<u32>,
    /// Size of /dev/shm, a quantity; 64Mi or the memory limit, whichever is less, when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<String>,
}

/// Ports of private addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EgressSpec {
    /// A network, or one address: `10.1.0.0/16`.
    pub cidr: String,
    /// 1 to 65535.
    pub port: i64,
    /// The last of a range that begins at `port`; `port` alone when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i64>,
    /// `tcp` (default) or `udp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortSpec {
    /// 1 to 65535.
    pub container_port: i64,
    /// Accepted and ignored, as sandboxd-o does: its manifests must not meet each other's wishes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<i64>,
    /// The host's port, of the node's range; any that is free when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_port: Option<i64>,
    /// `tcp` (default) or `udp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// What the containers share: exactly one of a memory file system and a named volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeSpec {
    /// Its name in this sandbox.
    pub name: String,
    /// A memory file system of this size, a quantity; gone with the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantity")]
    pub ephemeral_storage: Option<String>,
    /// The named volume with this id, which outlives the sandbox; Pending with reason `NoVolume` while there is none (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContainerSpec {
    /// Its name, unique in the sandbox.
    pub name: String,
    /// An image reference.
    pub image: String,
    /// `missing` (default), `always`, `never` (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
    /// Replaces the image's entrypoint and cmd both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Replaces the image's entrypoint; `args` then are its arguments (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `KEY=VALUE` entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    /// `user[:group]`, names or numbers; replaces the image's (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Capabilities to add: beyond the default set only those that the node allows (`atoll up --allow-capability`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities to drop; `ALL` for the whole default set, not for what `cap_add` adds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// `no-new-privileges[:=]true` (`false` where the node allows it), `seccomp=runtime/default`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// Read-only root.
    #[serde(default)]
    pub read_only: bool,
    /// Memory file systems of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<TmpfsSpec>,
    /// Volumes to mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMountSpec>,
    /// What it may use.
    #[serde(default)]
    pub resource: ResourceSpec,
    /// `guest` (default) or `image`: who is the first process (atoll). With `image` nobody in the sandbox keeps what atoll's guest would:
    /// should the sandbox's shim be killed, the command's standard input ends, and the exit code of a command that another shim took over
    /// is not known (reason `Unknown`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Keep standard input open for `attach` (atoll).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Give the main process a terminal (atoll).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Hold output until the first `attach`, which gets all of it (atoll).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub await_attach: bool,
    /// Replaces the image's stop signal, a name or number (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Its command starts only when these containers are ready: their own `readiness_probe` has passed, or, without one, their command
    /// was started; how they end after that does not matter. One that ends before it was ready fails the sandbox, reason
    /// `DependencyFailed`. Not together with init `image` (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// As the sandbox's own, besides it; here it may be `exec` too (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ProbeSpec>,
}

/// A memory file system of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TmpfsSpec {
    /// Absolute, clean.
    pub mount_path: String,
    /// `ro rw nosuid suid nodev dev noexec exec mode=… size=…`, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

/// Where a volume stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeMountSpec {
    /// A declared volume.
    pub name: String,
    /// Absolute, clean, not `/`, not below `/tmp`.
    pub mount_path: String,
    /// No writing through this mount.
    #[serde(default)]
    pub read_only: bool,
}

/// What a container may use: Kubernetes quantities; one figure is request and limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResourceSpec {
    /// CPUs; 1 when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantity")]
    pub cpu: Option<String>,
    /// Bytes of memory; 512Mi when left out (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantity")]
    pub memory: Option<String>,
    /// Bytes of disk for root, /tmp and logs; 128Mi when left out.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantity")]
    pub ephemeral_storage: Option<String>,
    /// Processes and threads; 128 when left out (atoll; sandboxd-o has 128 fixed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
}

/// A readiness probe.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeSpec {
    /// `tcp`, `http`, or, of a container, `exec` (atoll).
    pub protocol: String,
    /// 1 to 65535; none for `exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// For http: begins with `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For exec: what is run in the container; 0 passes (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// At least 1.
    pub initial_delay_seconds: i64,
    /// At least 1.
    pub period_seconds: i64,
    /// At least 1.
    pub timeout_seconds: i64,
    /// At least 1.
    pub success_threshold: i64,
    /// At least 1.
    pub failure_threshold: i64,
}

/// A quantity as text; YAML writers leave out the quotes, so a number is taken for its text. SOURCE: Kubernetes takes both.
fn quantity<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a quantity such as \"500m\", \"64Mi\" or 2")]
    enum Written {
        Text(String),
        Number(serde_json::Number),
    }
    Ok(Option::<Written>::deserialize(deserializer)?.map(|written| match written {
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    }))
}

pub(super) fn needed_quantity<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    quantity(deserializer)?.ok_or_else(|| serde::de::Error::custom("must not be null"))
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
