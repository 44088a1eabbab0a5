//! sbxctl's configuration: a flag counts more than the environment, that more than the file.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Deserialize;

use super::arguments::{Format, GlobalArgs};
use crate::args::duration;

/// SOURCE: sandboxd-o.
const DEFAULT_FILE: &str = "/var/lib/sandboxd/sbxctl_config.json";
/// SOURCE: sandboxd-o.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8082";
/// SOURCE: sandboxd-o.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// As it is used.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) server: String,
    pub(super) shared_secret: String,
    pub(super) timeout: Duration,
    pub(super) output: Option<Format>,
}

/// As it is written; other fields are for other programs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    server: String,
    shared_secret: String,
    timeout: String,
    output: String,
}

impl Config {
    /// What the command line, the environment and the file say.
    pub(super) fn of(given: &GlobalArgs) -> anyhow::Result<Self> {
        anyhow::ensure!(
            given.node.is_none(),
            "--node: the server is its only node and asks no other: leave it out"
        );
        let file = match &given.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        let or = |given: Option<&String>, file: String| match given {
            Some(given) => given.clone(),
            None => file,
        };
        let server = or(given.server.as_ref(), file.server);
        let timeout = match (given.timeout, file.timeout.as_str()) {
            (Some(timeout), _) => timeout,
            (None, "") => DEFAULT_TIMEOUT,
            (None, text) => duration(text).map_err(anyhow::Error::msg)?,
        };
        let output = match (given.output, file.output.as_str()) {
            (None, "") => None,
            (None, text) => Some(
                Format::from_str(text, true)
                    .map_err(|_| anyhow::anyhow!("output: {text:?} is none of json, yaml, wide"))?,
            ),
            (given, _) => given,
        };
        let shared_secret = or(given.secret.as_ref(), file.shared_secret);
        anyhow::ensure!(
            !shared_secret.is_empty(),
            "no shared secret: set SBX_SHARED_SECRET, or shared_secret in {DEFAULT_FILE} (it is `token` in the server's data directory)"
        );
        let server = if server.is_empty() { DEFAULT_SERVER.to_owned() } else { server };
        Ok(Self { server, shared_secret, timeout, output })
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no configuration", path.display()))
}
