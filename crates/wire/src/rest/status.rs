//! What the API answers. SOURCE: sandboxd-o's Sandbox; fields marked (atoll) are additions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::manifest::{Metadata, SandboxSpec};

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sandbox {
    /// Its name.
    pub id: String,
    /// What names it on the host, 16 hexadecimal digits (atoll).
    pub uid: String,
    /// Counts every change of any object; for watching (atoll).
    pub resource_version: u64,
    /// Labels (atoll).
    #[serde(default)]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: SandboxSpec,
    /// What is.
    pub status: SandboxStatus,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// `{"sandbox": …}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SandboxEnvelope {
    /// The sandbox.
    pub sandbox: Sandbox,
}

/// `{"items": […]}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Items<T> {
    /// In order of creation.
    pub items: Vec<T>,
    /// The store's version as of which this list is complete: where a watch may begin (atoll).
    #[serde(default)]
    pub resource_version: u64,
}

/// A page of a list: [`Items`], and where the next page begins (atoll).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<T> {
    /// In order.
    pub items: Vec<T>,
    /// The store's version as of which this page is right.
    #[serde(default)]
    pub resource_version: u64,
    /// What to ask for as `cursor` to get the next page; none where this is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `{"deleted": id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Deleted {
    /// The name.
    pub deleted: String,
}

/// Any error: sandboxd-o's `error`, and more for those who read on (atoll).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What went wrong and what to do, for people.
    pub error: String,
    /// A word for programs: `not_found`, `already_exists`, `invalid`, `not_enforced`, `unauthorized`, `too_large`, `conflict`, `unavailable`, `internal`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The offending fields of a 422, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldError>,
    /// Finds the request in the logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// One offending field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FieldError {
    /// Its path: `spec.containers[0].resource.memory`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// A sandbox's status.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SandboxStatus {
    /// `Pending`, `Scheduled`, `Running`, `Failed`, `Deleting`, `Succeeded` (atoll: all containers exited with 0), `Unknown` (atoll: it
    /// cannot be seen at the moment).
    pub phase: String,
    /// This machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Address, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Its published ports, while they are its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assigned_ports: Vec<AssignedPort>,
    /// By which name its node is reached from outside, where an external says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// When it will be deleted, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<String>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// One word for why the phase is what it is: `OutOfMemory`, `PidsLimit`, `StartFailed`, `ImagePull`, … (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The class it runs in (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Whether limits hold for each container or as a sum: `container` or `sandbox` (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_scope: Option<String>,
    /// Ready: started, and its probe (if any) passes (atoll).
    #[serde(default)]
    pub ready: bool,
    /// Each container (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerStatus>,
    /// Kubernetes-style conditions: `Ready`, `ReadinessGate` (where there are probes or ports), `ImagesReady`, `Adopted` (atoll).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where the time of its creation went (atoll).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

/// A published port as it was assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AssignedPort {
    /// On the host.
    pub host_port: u16,
    /// In the sandbox.
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A container's status (atoll).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `running`, `exited`, `unknown`.
    pub state: String,
    /// Manifest digest of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Exit code as a shell shows it (128 and the signal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OutOfMemory`, `PidsLimit`, `HostPidsBackstop`, `Stopped`, `StartFailed`, `GuestDied`, `SentryDied`, `HostError`, `Unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Bytes of output that rotation dropped or a crash lost.
    #[serde(default)]
    pub log_dropped_bytes: u64,
    /// While it is held: the containers it depends on that are not ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// Its own readiness probe has passed since it was started: what depends on it may start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_passed: bool,
    /// What its disk holds: in the answer for one sandbox, as long as it runs and its disk can be seen; not in lists and watches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStatus>,
}

/// What a container's disk holds at the moment: its root and /tmp (atoll).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskStatus {
    /// What bounds it: `image`, `btrfs`, `project-quota`.
    pub backend: String,
    /// Bytes that its files may take.
    pub limit_bytes: u64,
    /// Bytes that they take.
    pub used_bytes: u64,
}

/// A condition, as Kubernetes has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
}

/// Consecutive phases that sum to the total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timeline {
    /// RFC 3339: when the request was accepted.
    pub begun_at: String,
    /// Sum of the phases, microseconds.
    pub total_micros: u64,
    /// In order: store, queue, image, prepare, spawn, sandbox, command, ready (where there are probes or ports), publish.
    pub phases: Vec<TimelinePhase>,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TimelinePhase {
    /// Its name.
    pub name: String,
    /// Its length.
    pub micros: u64,
}

/// An event: something happened to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// RFC 3339.
    pub time: String,
    /// The store's version with which it became visible.
    pub resource_version: u64,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One word: `Created`, `Pulling`, `Pulled`, `Started`, `Exited`, `Killed`, `Failed`, `Deleted`, `Adopted`, `Quarantined`, …
    pub reason: String,
    /// `sandbox/NAME`.
    pub object: String,
    /// For people.
    pub message: String,
}

/// One line of a watch (`?watch=true`): newline-delimited JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WatchEvent<T> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The object; none with `BOOKMARK`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<T>,
    /// The version up to which the watcher has seen everything.
    pub resource_version: u64,
}

/// A node. SOURCE: sandboxd-o's Node; this machine is the only one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Node {
    /// Its name.
    pub id: String,
    /// Labels that a sandbox's `node_selector` is matched against.
    pub metadata: Metadata,
    /// Where it is reached; a loopback address.
    pub ip: String,
    /// Where it is reached.
    pub port: u16,
    /// No new sandboxes are placed on it.
    pub unschedulable: bool,
    /// `Ready`: it answers.
    pub state: String,
    /// How it became a node: `self`.
    pub source: String,
    /// RFC 3339: since when this server runs.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What it has and what is spoken for.
    pub resources: NodeResources,
}

/// What a node has. SOURCE: sandboxd-o.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeResources {
    /// Thousandths of a CPU.
    pub capacity_cpu_milli: i64,
    /// Bytes.
    pub capacity_memory_bytes: i64,
    /// Thousandths of a CPU that sandboxes may ask for.
    pub allocatable_cpu_milli: i64,
    /// Bytes that sandboxes may ask for.
    pub allocatable_memory_bytes: i64,
    /// Thousandths of a CPU that sandboxes that are not over ask for.
    pub used_cpu_milli: i64,
    /// Bytes that sandboxes that are not over ask for.
    pub used_memory_bytes: i64,
    /// What is left; less than 0 where more is promised than there is.
    pub available_cpu_milli: i64,
    /// What is left; less than 0 where more is promised than there is.
    pub available_memory_bytes: i64,
    /// How much of the capacity is allocatable.
    pub max_alloc_percent: u32,
    /// By which name it is reached from outside; `(none)` where no external says so.
    pub external: String,
}

/// `{"node": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeEnvelope {
    /// The node.
    pub node: Node,
}

/// Body of `PATCH /api/v1/sandboxes/ID` (atoll).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PatchSandbox {
    /// What changes.
    pub spec: PatchSpec,
}

/// What of a sandbox can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PatchSpec {
    /// Seconds from now to its deletion; 0: never.
    pub ttl_seconds: i64,
}

/// `GET /api/v1/node`: what this machine is and offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// Its name.
    pub id: String,
    /// Version of atoll.
    pub version: String,
    /// Process id of the server.
    pub pid: i32,
    /// Free for users.
    pub labels: BTreeMap<String, String>,
    /// Each class and whether it can be had.
    pub classes: Vec<ClassInfo>,
    /// The class of a sandbox that names none.
    pub default_class: String,
}

/// A class on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClassInfo {
    /// `container`, `gvisor`, `sim`.
    pub name: String,
    /// Can be had.
    pub available: bool,
    /// Why not and what to install, or how it isolates.
    pub detail: String,
    /// `container` or `sandbox`.
    pub limits_scope: String,
}

/// An image in the local store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageInfo {
    /// Its references, familiar form.
    pub references: Vec<String>,
    /// Manifest digest.
    pub digest: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// RFC 3339.
    pub imported_at: String,
    /// RFC 3339.
    pub last_used_at: Option<String>,
    /// Sandboxes that use it.
    pub used_by: Vec<String>,
    /// Number of layers.
    pub layers: u32,
    /// The image's configuration (inspect only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
}

/// Body of `POST /api/v1/images/pull`; answered by lines of [`ImageProgress`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PullImage {
    /// What.
    pub reference: String,
    /// Speak plain HTTP: loopback registries only.
    #[serde(default)]
    pub plain_http: bool,
}

/// One line of a pull's or an import's progress; the last has `done` or `error`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageProgress {
    /// For people: what is being done.
    pub status: String,
    /// The layer concerned, short digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Bytes so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// The images, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Vec<ImageInfo>>,
    /// Why it failed, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Answer of `POST /api/v1/images/gc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CollectedImages {
    /// References and digests that were removed.
    pub removed: Vec<String>,
    /// Bytes freed.
    pub freed_bytes: u64,
}

/// Body of `PUT /api/v1/registries/REGISTRY/credentials`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RegistryCredentials {
    /// User name.
    pub username: String,
    /// Password or token; never shown again.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
