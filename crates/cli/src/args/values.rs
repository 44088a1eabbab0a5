//! Values of flags with a meaning of their own: kinds, references, durations, formats.

use std::str::FromStr;
use std::time::Duration;

use atoll_model::ports::PortProtocol;
use clap::ValueEnum;

/// A kind of object that the API has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResourceKind {
    /// A sandbox.
    Sandbox,
    /// An image in the local store.
    Image,
    /// This machine.
    Node,
    /// By which name a node is reached from outside.
    External,
    /// A volume that outlives sandboxes.
    Volume,
}

impl ResourceKind {
    /// The word in references: `sandbox/NAME`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Image => "image",
            Self::Node => "node",
            Self::External => "external",
            Self::Volume => "volume",
        }
    }
}

impl FromStr for ResourceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "sandbox" | "sandboxes" | "sbx" | "s" => Ok(Self::Sandbox),
            "image" | "images" | "img" => Ok(Self::Image),
            "node" | "nodes" | "n" => Ok(Self::Node),
            "external" | "externals" | "ext" | "e" => Ok(Self::External),
            "volume" | "volumes" | "vol" | "v" => Ok(Self::Volume),
            _ => Err(format!(
                "{text:?} is no kind of object: there are sandbox, volume, image, node and external"
            )),
        }
    }
}

/// One object: `KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectReference {
    pub(crate) kind: ResourceKind,
    pub(crate) name: String,
}

impl FromStr for ObjectReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((kind, name)) if !name.is_empty() => {
                Ok(Self { kind: kind.parse()?, name: self::name(name)? })
            }
            _ => {
                Err(format!("write KIND/NAME, for example sandbox/{}", text.trim_end_matches('/')))
            }
        }
    }
}

/// A port to publish: `[HOST:]PORT[/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishedPort {
    pub(crate) host_port: Option<u16>,
    pub(crate) container_port: u16,
    pub(crate) protocol: PortProtocol,
}

/// Reads a port to publish.
pub(crate) fn published_port(text: &str) -> Result<PublishedPort, String> {
    let malformed = || {
        format!("{text:?} is no port to publish: write [HOST:]PORT[/tcp|/udp], for example 8080:80")
    };
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => {
            (ports, PortProtocol::from_name(protocol).ok_or_else(malformed)?)
        }
        None => (text, PortProtocol::Tcp),
    };
    let number = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(malformed()),
        Ok(port) => Ok(port),
    };
    let (host_port, container_port) = match ports.split_once(':') {
        Some((host, container)) => (Some(number(host)?), number(container)?),
        None => (None, number(ports)?),
    };
    Ok(PublishedPort { host_port, container_port, protocol })
}

/// A volume to mount: `VOLUME:PATH[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountedVolume {
    pub(crate) volume: String,
    pub(crate) path: String,
    pub(crate) read_only: bool,
}

/// Reads a volume to mount. A path of the host is none: sandboxes have no files of the host.
pub(crate) fn mounted_volume(text: &str) -> Result<MountedVolume, String> {
    let malformed = || {
        format!("{text:?} is no volume to mount: write VOLUME:PATH[:ro], for example data:/data")
    };
    let mut parts = text.split(':');
    let (Some(volume), Some(path)) = (parts.next(), parts.next()) else {
        return Err(malformed());
    };
    let read_only = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(malformed()),
    };
    if volume.contains('/') {
        return Err(format!(
            "{volume:?} is no volume's name: files of this machine cannot be mounted; use `atoll create volume` and `atoll cp`"
        ));
    }
    if volume.is_empty() || !path.starts_with('/') || parts.next().is_some() {
        return Err(malformed());
    }
    Ok(MountedVolume { volume: volume.to_owned(), path: path.to_owned(), read_only })
}

/// All objects of a kind, or one: `KIND` or `KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectSelector {
    pub(crate) kind: ResourceKind,
    pub(crate) name: Option<String>,
}

impl FromStr for ObjectSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None => Ok(Self { kind: text.parse()?, name: None }),
            Some((kind, "")) => {
                Err(format!("{kind}/ names no object: write {kind} for all of them"))
            }
            Some((kind, name)) => Ok(Self { kind: kind.parse()?, name: Some(self::name(name)?) }),
        }
    }
}

/// Formats of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// A table with the most important columns
    Table,
    /// A table with all columns
    Wide,
    /// JSON, as the API has it
    Json,
    /// YAML, as the API has it
    Yaml,
}

/// Formats of what is no list of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlainFormat {
    /// For people
    Text,
    /// JSON
    Json,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// When the image is not here
    Missing,
    /// Each time
    Always,
    /// Never: fail when the image is not here
    Never,
}

impl PullPolicy {
    /// The word in manifests.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitCondition {
    /// Its command was started (and may have ended since)
    Running,
    /// Running, and its probe, if any, has passed
    Ready,
    /// All its containers ended with exit code 0
    Succeeded,
    /// It failed
    Failed,
    /// It is gone
    Deleted,
}

impl WaitCondition {
    /// The word on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        }
    }
}

/// A name that can be looked up. `.` and `..` are none: in a URL they would mean another place.
pub(crate) fn name(text: &str) -> Result<String, String> {
    match text {
        "" | "." | ".." => Err(format!("{text:?} is no name")),
        _ => Ok(text.to_owned()),
    }
}

/// Reads `30s`, `5m`, `1h30m`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write for example 250ms, 30s, 5m or 1h30m");
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// Reads the label `KEY=VALUE`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    atoll_model::validate::label(key, value).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads the name of a capability, or `ALL`.
pub(crate) fn capability(text: &str) -> Result<String, String> {
    atoll_sys::capabilities::CapabilitySet::parse([text]).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Reads `KEY=VALUE`, or `KEY` for its value in this process's environment.
pub(crate) fn environment_entry(text: &str) -> Result<String, String> {
    let (key, given) = match text.split_once('=') {
        Some((key, _)) => (key, true),
        None => (text, false),
    };
    if key.is_empty() {
        return Err("write KEY=VALUE".to_owned());
    }
    if given {
        return Ok(text.to_owned());
    }
    match std::env::var(key) {
        Ok(value) => Ok(format!("{key}={value}")),
        Err(_) => Err(format!("{key} is not set here: write {key}=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_kind_and_an_object() {
        let reference: ObjectReference = "sbx/a.b-c".parse().unwrap();
        assert_eq!((reference.kind, reference.name.as_str()), (ResourceKind::Sandbox, "a.b-c"));
        let image: ObjectReference = "image/registry.example:5000/team/app:1".parse().unwrap();
        assert_eq!(image.name, "registry.example:5000/team/app:1");
        for wrong in ["", "work", "sandbox/", "pod/work"] {
            assert!(wrong.parse::<ObjectReference>().is_err(), "{wrong}");
        }
        assert!("work".parse::<ObjectReference>().unwrap_err().contains("sandbox/work"));
    }

    #[test]
    fn durations_need_a_unit_and_are_not_negative() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "10", "-5s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_published_port_has_a_number_inside_and_may_have_one_outside() {
        let port = published_port("8080:80").unwrap();
        assert_eq!((port.host_port, port.container_port), (Some(8080), 80));
        let port = published_port("53/udp").unwrap();
        assert_eq!((port.host_port, port.protocol), (None, PortProtocol::Udp));
        for wrong in ["", "0", "80:", ":80", "1:2:3", "80/sctp", "65536", "-1", "127.0.0.1:80:80"] {
            assert!(published_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_volume_to_mount_has_a_name_and_a_path_inside() {
        let volume = mounted_volume("data:/srv/data").unwrap();
        assert_eq!((volume.volume.as_str(), volume.path.as_str()), ("data", "/srv/data"));
        assert!(!volume.read_only && mounted_volume("data:/srv:ro").unwrap().read_only);
        for wrong in ["", "data", "data:", ":/srv", "data:srv", "data:/srv:x", "data:/srv:ro:"] {
            assert!(mounted_volume(wrong).is_err(), "{wrong}");
        }
        assert!(mounted_volume("/etc:/etc").unwrap_err().contains("cannot be mounted"));
    }

    #[test]
    fn an_environment_entry_has_a_key() {
        assert_eq!(environment_entry("A=b=c").as_deref(), Ok("A=b=c"));
        assert!(environment_entry("=b").is_err());
        assert!(environment_entry("SURELY_NOT_SET_ANYWHERE").is_err());
    }
}
