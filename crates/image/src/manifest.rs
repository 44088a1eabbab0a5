//! Manifests and indexes of OCI and Docker, version 2: parsed from bounded bytes, checked, and written for imports.
//!
//! Shapes of our own rather than a crate's: lenient where registries differ (null lists, missing media types), strict where safety
//! needs it (digests, sizes, counts).

use serde::{Deserialize, Serialize};

use crate::config::{MAX_CONFIG_BYTES, MAX_LAYERS, host_architecture};
use crate::digest::Digest;

/// Largest manifest. SOURCE: OCI distribution-spec, "registries should accept at least 4 MiB".
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most manifests in an index (guess: real ones have up to forty, attestations included).
const MAX_INDEX_ENTRIES: usize = 512;
/// Largest compressed layer, 64 GiB: as much as may come out of it.
const MAX_LAYER_BYTES: u64 = 64 << 30;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Points at content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<PlatformShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlatformShape {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// One image: a configuration and layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest document turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    /// Images of several platforms.
    Index(Vec<Descriptor>),
}

/// A manifest that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the manifest is not usable: {reason}")]
pub struct BadManifest {
    /// What is wrong.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifests: Option<Vec<Descriptor>>,
}

/// Parses a manifest or an index.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, BadManifest> {
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(bad(format!("it has more than {MAX_MANIFEST_BYTES} bytes")));
    }
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if shape.schema_version != 2 {
        return Err(bad(format!(
            "schema version {} (2 is needed: push the image again with a newer tool)",
            shape.schema_version
        )));
    }
    // A document that is both would be read differently by different tools. SOURCE: CVE-2021-41190.
    match (shape.manifests, shape.config, shape.layers) {
        (Some(manifests), None, None) => index(shape.media_type.as_deref(), manifests),
        (None, Some(config), layers) => {
            manifest(shape.media_type.as_deref(), config, layers.unwrap_or_default())
        }
        _ => Err(bad("it is neither an image nor an index, or both at once".to_owned())),
    }
}

fn index(media_type: Option<&str>, manifests: Vec<Descriptor>) -> Result<Document, BadManifest> {
    if !matches!(media_type, None | Some(OCI_INDEX | DOCKER_INDEX)) {
        return Err(bad("an index that calls itself something else".to_owned()));
    }
    if manifests.len() > MAX_INDEX_ENTRIES {
        return Err(bad(format!("an index of more than {MAX_INDEX_ENTRIES} manifests")));
    }
    Ok(Document::Index(manifests))
}

fn manifest(
    media_type: Option<&str>,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Result<Document, BadManifest> {
    if !matches!(media_type, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) {
        return Err(bad("a manifest that calls itself something else".to_owned()));
    }
    if config.size > MAX_CONFIG_BYTES {
        return Err(bad(format!("a configuration of more than {MAX_CONFIG_BYTES} bytes")));
    }
    if layers.len() > MAX_LAYERS {
        return Err(bad(format!("{} layers, at most {MAX_LAYERS} are allowed", layers.len())));
    }
    if let Some(layer) = layers.iter().find(|layer| layer.size > MAX_LAYER_BYTES) {
        return Err(bad(format!("layer {} has more than {MAX_LAYER_BYTES} bytes", layer.digest)));
    }
    Ok(Document::Manifest(Manifest { config, layers }))
}

fn bad(reason: String) -> BadManifest {
    BadManifest { reason }
}

/// The image for Linux on this machine's processor; `None` when the index has none.
pub(crate) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    manifests.iter().find(|descriptor| {
        descriptor.platform.as_ref().is_some_and(|platform| {
            platform.os == "linux"
                && platform.architecture == host_architecture()
                // v8 is all that arm64 has; amd64's higher levels run only on newer processors.
                && matches!(platform.variant.as_deref(), None | Some("" | "v8" | "v1"))
        })
    })
}

/// What an index offers, for an error.
pub(crate) fn offered(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(|platform| {
            format!("{}/{}", platform.os, platform.architecture).escape_debug().take(40).collect()
        })
        .collect();
    names.sort();
    names.dedup();
    names.truncate(20);
    names.join(", ")
}

/// The manifest of an imported image, as bytes that are the same for the same content.
pub(crate) fn write(
    config: (Digest, u64),
    layers: &[(Digest, u64)],
) -> serde_json::Result<Vec<u8>> {
    let descriptor = |media_type: &str, (digest, size): &(Digest, u64)| Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.clone(),
        size: *size,
        platform: None,
        annotations: None,
    };
    serde_json::to_vec(&Shape {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config: Some(descriptor(OCI_CONFIG, &config)),
        layers: Some(layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect()),
        manifests: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(format!("{os}{architecture}{variant:?}").as_bytes()),
            size: 1,
            platform: Some(PlatformShape {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = (Digest::of(b"c"), 1);
        let layers = [(Digest::of(b"l"), 2), (Digest::of(b"m"), 3)];
        let bytes = write(config.clone(), &layers).unwrap();
        assert_eq!(bytes, write(config.clone(), &layers).unwrap());
        let Document::Manifest(manifest) = parse(&bytes).unwrap() else { panic!("an index") };
        assert_eq!(manifest.config.digest, config.0);
        assert_eq!(manifest.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn this_machines_image_is_chosen() {
        let host = host_architecture();
        let all = [
            descriptor("unknown", "unknown", None),
            descriptor("windows", host, None),
            descriptor("linux", "s390x", None),
            descriptor("linux", host, None),
        ];
        assert_eq!(choose(&all), Some(&all[3]));
        assert_eq!(choose(&all[..3]), None);
        assert_eq!(offered(&all[1..3]), format!("linux/s390x, windows/{host}"));
    }

    #[test]
    fn ambiguous_and_oversized_documents_are_refused() {
        let digest = Digest::of(b"x");
        let one = format!(r#"{{"digest":"{digest}","size":1}}"#);
        let huge = format!(r#"{{"digest":"{digest}","size":99999999999999}}"#);
        let many = vec![one.clone(); 600].join(",");
        for text in [
            format!(r#"{{"schemaVersion":2,"config":{one},"layers":[],"manifests":[]}}"#),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{one},"layers":[]}}"#
            ),
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"config":{huge},"layers":[]}}"#),
            format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{huge}]}}"#),
            format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{many}]}}"#),
            format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#
                .to_owned(),
            r#"{"schemaVersion":2,"config":{"digest":"sha512:00","size":1},"layers":[]}"#
                .to_owned(),
            format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":-1}},"layers":[]}}"#
            ),
            "{}".to_owned(),
            String::new(),
            "[".repeat(200_000),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(120)]);
        }
    }
}
