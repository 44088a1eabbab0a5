//! Named volumes, which outlive sandboxes (atoll).

use serde::{Deserialize, Serialize};

use super::manifest::{Metadata, needed_quantity};

/// Body of `POST /api/v1/volumes`, and a manifest file's document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateNamedVolume {
    /// [`super::API_VERSION`]; may be left out.
    #[serde(rename = "apiVersion", default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Volume`, in any case; may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub id: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: NamedVolumeSpec,
}

/// A named volume's specification. It cannot be changed afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedVolumeSpec {
    /// Most bytes that its files take, a quantity. With images the file system's own tables and its journal are part of it.
    #[serde(deserialize_with = "needed_quantity")]
    pub size: String,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedVolume {
    /// Its name.
    pub id: String,
    /// What names it on the host, 16 hexadecimal digits.
    pub uid: String,
    /// Counts every change of any object.
    pub resource_version: u64,
    /// Labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: NamedVolumeSpec,
    /// What is.
    pub status: NamedVolumeStatus,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// A named volume's status.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedVolumeStatus {
    /// `Pending` (being made), `Ready`, `Lost` (its files are not on this host any more).
    pub phase: String,
    /// What bounds it: `image`, `project-quota` or `btrfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Bytes that its files may take: of an image less than its size. In the answer for one volume, where the backend knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Bytes that its files take. In the answer for one volume, where the backend knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Names of the sandboxes that have it: it cannot be deleted while there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<String>,
    /// Why it is `Lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `{"volume": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedVolumeEnvelope {
    /// The volume.
    pub volume: NamedVolume,
}
