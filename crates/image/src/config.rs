//! What an image says about how it wants to be run. Hostile: everything is bounded and checked when the image comes in.
//!
//! INVARIANT: labels, annotations, history, health checks and shells of an image are never read: nothing of it is an instruction to
//! the host.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Largest configuration read (guess: real ones have some kilobytes, long histories included).
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most layers. SOURCE: dockerd's limit (127), and overlayfs's mount data of one page.
pub(crate) const MAX_LAYERS: usize = 127;
/// Most arguments, variables, volumes or ports each (guess: real images have a dozen).
const MAX_LIST: usize = 1024;
/// Longest single argument, variable or path. SOURCE: MAX_ARG_STRLEN of linux/binfmts.h, 32 pages.
const MAX_TEXT_BYTES: usize = 128 * 1024;
/// Longest path. SOURCE: PATH_MAX.
const MAX_PATH_BYTES: usize = 4095;

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the whole command without one.
    pub cmd: Vec<String>,
    /// `KEY=VALUE`, each key once.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty: root. Resolve with [`users::resolve`](crate::users::resolve).
    pub user: String,
    /// Absolute, clean path; `/` when the image names none.
    pub working_directory: String,
    /// Name (`SIGTERM`, `TERM`) or number; empty: SIGTERM.
    pub stop_signal: String,
    /// Absolute, clean paths that hold data, ascending. Never `/`.
    pub volumes: Vec<String>,
    /// `80/tcp`, ascending.
    pub exposed_ports: Vec<String>,
    /// `linux/amd64`.
    pub platform: String,
}

/// A configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image's configuration is not usable: {field}: {reason}")]
pub struct BadConfig {
    /// Where in it.
    pub field: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// A whole configuration document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigDocument {
    pub(crate) config: ImageConfig,
    /// Digests of the decompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    config: Option<Section>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Section {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    stop_signal: Option<String>,
    #[serde(default)]
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Parses and checks a configuration document.
pub(crate) fn parse(bytes: &[u8]) -> Result<ConfigDocument, BadConfig> {
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(bad("document", format!("more than {MAX_CONFIG_BYTES} bytes")));
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| bad("document", error.to_string()))?;
    let diff_ids = document.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diff_ids.len() > MAX_LAYERS {
        return Err(bad("rootfs.diff_ids", format!("more than {MAX_LAYERS} layers")));
    }
    let section = document.config.unwrap_or_default();
    let volumes = section.volumes.unwrap_or_default().into_keys();
    let config = ImageConfig {
        entrypoint: texts("config.Entrypoint", section.entrypoint)?,
        cmd: texts("config.Cmd", section.cmd)?,
        env: environment(section.env)?,
        user: short_text("config.User", section.user)?,
        working_directory: match section.working_dir.as_deref() {
            None | Some("") => "/".to_owned(),
            Some(path) => clean_path("config.WorkingDir", path)?,
        },
        stop_signal: short_text("config.StopSignal", section.stop_signal)?,
        volumes: volume_paths(volumes)?,
        exposed_ports: texts(
            "config.ExposedPorts",
            section.exposed_ports.map(|ports| ports.into_keys().collect()),
        )?,
        platform: format!(
            "{}/{}",
            short_text("os", document.os)?,
            short_text("architecture", document.architecture)?
        ),
    };
    Ok(ConfigDocument { config, diff_ids })
}

/// This machine's architecture, as images name it.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Images for other systems are refused: nothing of them would run.
pub(crate) fn check_platform(config: &ImageConfig) -> Result<(), BadConfig> {
    let host = host_architecture();
    // Empty: written by tools that leave it out.
    let fits = config.platform == format!("linux/{host}") || config.platform == "/";
    if fits {
        Ok(())
    } else {
        Err(bad("platform", format!("{} does not run on linux/{host}", config.platform)))
    }
}

/// The layers of manifest and configuration must be the same, and there must be some.
pub(crate) fn check_layers(document: &ConfigDocument, in_manifest: usize) -> Result<(), BadConfig> {
    match document.diff_ids.len() {
        0 => Err(bad("rootfs.diff_ids", "an image without layers has nothing to run")),
        count if count != in_manifest => Err(bad(
            "rootfs.diff_ids",
            format!("{count} layers, but the manifest has {in_manifest}"),
        )),
        _ => Ok(()),
    }
}

fn bad(field: &'static str, reason: impl Into<String>) -> BadConfig {
    BadConfig { field, reason: reason.into() }
}

fn texts(field: &'static str, list: Option<Vec<String>>) -> Result<Vec<String>, BadConfig> {
    let list = list.unwrap_or_default();
    if list.len() > MAX_LIST {
        return Err(bad(field, format!("{} items, at most {MAX_LIST} are allowed", list.len())));
    }
    for text in &list {
        if text.len() > MAX_TEXT_BYTES {
            return Err(bad(field, format!("an item of more than {MAX_TEXT_BYTES} bytes")));
        }
        if text.contains('\0') {
            return Err(bad(field, "an item with a NUL byte"));
        }
    }
    Ok(list)
}

fn short_text(field: &'static str, text: Option<String>) -> Result<String, BadConfig> {
    let text = text.unwrap_or_default();
    if text.len() > 256 || text.contains(char::is_control) {
        return Err(bad(field, "longer than 256 bytes, or with control characters"));
    }
    Ok(text)
}

/// The last of several values for a key counts, as for Docker; an entry without `=` or without a key sets nothing.
fn environment(list: Option<Vec<String>>) -> Result<Vec<String>, BadConfig> {
    let list = texts("config.Env", list)?;
    let mut seen = BTreeSet::new();
    let mut kept: Vec<String> = Vec::new();
    for entry in list.into_iter().rev() {
        let Some((key, _)) = entry.split_once('=') else { continue };
        if !key.is_empty() && seen.insert(key.to_owned()) {
            kept.push(entry);
        }
    }
    kept.reverse();
    Ok(kept)
}

fn volume_paths(paths: impl Iterator<Item = String>) -> Result<Vec<String>, BadConfig> {
    let mut clean = BTreeSet::new();
    for path in paths {
        let path = clean_path("config.Volumes", &path)?;
        if path == "/" {
            return Err(bad("config.Volumes", "the root itself cannot be a volume"));
        }
        clean.insert(path);
    }
    texts("config.Volumes", Some(clean.into_iter().collect()))
}

/// An absolute path without `.`, `..`, doubled or trailing slashes.
fn clean_path(field: &'static str, path: &str) -> Result<String, BadConfig> {
    let shown = || path.chars().take(80).collect::<String>();
    if path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err(bad(
            field,
            format!("a path of more than {MAX_PATH_BYTES} bytes, or with a NUL byte"),
        ));
    }
    if !path.starts_with('/') {
        return Err(bad(field, format!("{:?} is not absolute", shown())));
    }
    let mut clean = String::new();
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        if name == ".." {
            return Err(bad(field, format!("'..' in {:?}", shown())));
        }
        clean.push('/');
        clean.push_str(name);
    }
    Ok(if clean.is_empty() { "/".to_owned() } else { clean })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<ImageConfig, BadConfig> {
        parse(format!(r#"{{"os":"linux","architecture":"amd64","config":{json}}}"#).as_bytes())
            .map(|document| document.config)
    }

    #[test]
    fn what_docker_writes_is_read() {
        let config = config(
            r#"{"Entrypoint":["/init"],"Cmd":null,"Env":["A=1","PATH=/bin","A=2","B","=x"],"User":"web:log",
                "WorkingDir":"/srv//app/.","StopSignal":"SIGQUIT","Volumes":{"/data/":{},"/a":{}},
                "ExposedPorts":{"80/tcp":{}},"Labels":null,"OnBuild":null,"ArgsEscaped":true}"#,
        )
        .unwrap();
        assert_eq!(config.entrypoint, ["/init"]);
        assert_eq!(config.env, ["PATH=/bin", "A=2"]);
        assert_eq!(
            (config.user.as_str(), config.working_directory.as_str()),
            ("web:log", "/srv/app")
        );
        assert_eq!(
            (config.volumes, config.exposed_ports),
            (vec!["/a".into(), "/data".into()], vec!["80/tcp".into()])
        );
        assert_eq!(
            (config.stop_signal.as_str(), config.platform.as_str()),
            ("SIGQUIT", "linux/amd64")
        );
    }

    #[test]
    fn an_image_without_a_configuration_has_defaults() {
        let config = parse(b"{}").unwrap().config;
        assert_eq!((config.working_directory.as_str(), config.user.as_str()), ("/", ""));
        assert!(config.entrypoint.is_empty() && config.cmd.is_empty() && config.env.is_empty());
    }

    #[test]
    fn hostile_configurations_are_refused() {
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        let many = serde_json::to_string(&vec!["A=1"; MAX_LIST + 1]).unwrap();
        for json in [
            r#"{"Volumes":{"../../etc":{}}}"#.to_owned(),
            r#"{"Volumes":{"/a/../../etc":{}}}"#.to_owned(),
            r#"{"Volumes":{"relative":{}}}"#.to_owned(),
            r#"{"Volumes":{"/":{}}}"#.to_owned(),
            r#"{"Volumes":{"/./":{}}}"#.to_owned(),
            r#"{"WorkingDir":"/proc/self/../../x"}"#.to_owned(),
            r#"{"WorkingDir":"C:\\x"}"#.to_owned(),
            "{\"Env\":[\"A=\\u0000\"]}".to_owned(),
            "{\"User\":\"a\\nb\"}".to_owned(),
            format!(r#"{{"Cmd":["{long}"]}}"#),
            format!(r#"{{"Env":{many}}}"#),
            r#"{"Env":"A=1"}"#.to_owned(),
            r#"{"Cmd":[1]}"#.to_owned(),
        ] {
            assert!(config(&json).is_err(), "{}", &json[..json.len().min(80)]);
        }
        assert!(parse(&vec![b' '; 2 << 20]).is_err());
        assert!(
            parse("[".repeat(100_000).as_bytes()).is_err(),
            "deep nesting is an error, no overflow"
        );
    }

    /// containerd GO-2026-5758: a label named a `binary://` logger, which the host then ran as root.
    #[test]
    fn labels_are_not_even_read() {
        let with = config(
            r#"{"Cmd":["a"],"Labels":{"containerd.io/log-uri":"binary:///bin/sh"},"Healthcheck":{"Test":["CMD","x"]}}"#,
        );
        assert_eq!(with, config(r#"{"Cmd":["a"]}"#));
        let shown = format!("{:?}", with.unwrap());
        assert!(!shown.contains("binary:") && !shown.contains("Healthcheck"), "{shown}");
    }
}
