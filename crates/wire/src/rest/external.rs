//! Externals: names or addresses by which a node is reached from outside. SOURCE: sandboxd-o's External. For people and their programs
//! to read; nothing in atoll depends on them.

use serde::{Deserialize, Serialize};

/// Body of `POST /api/v1/externals`, also as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateExternal {
    /// [`API_VERSION`](super::API_VERSION); may be left out.
    #[serde(rename = "apiVersion", default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `External`, in any case; may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub id: String,
    /// What it says.
    pub spec: ExternalSpec,
}

/// What an external says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExternalSpec {
    /// A node that is there. A node has one external at most, and an external one node.
    pub node_id: String,
    /// An address or a name.
    pub external: String,
}

/// An external.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct External {
    /// Its name.
    pub id: String,
    /// What names it in the store (atoll).
    pub uid: String,
    /// Counts every change of any object (atoll).
    #[serde(default)]
    pub resource_version: u64,
    /// Its node.
    pub node_id: String,
    /// An address or a name.
    pub external: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// `{"external": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExternalEnvelope {
    /// The external.
    pub external: External,
}
