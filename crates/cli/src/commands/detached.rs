//! Starting a server in the background, and how the two halves speak: one line over the child's standard output.
//!
//! `serving ADDRESS` or `error TEXT`. After that line the child's standard output is /dev/null; its log is `server.log` (the part
//! before it `server.log.1`).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use atoll_server::{DataDir, ListenAddress};
use rustix::stdio::{dup2_stderr, dup2_stdout};

use super::bounded_log::{self, BoundedLog};
use crate::output;

/// What a server that was started says.
pub(super) struct Serving {
    /// Where it serves.
    pub(super) address: String,
    /// Its process id.
    pub(super) pid: u32,
}

/// Starts `atoll up` with these flags for this data directory in the background; returns once it serves.
pub(super) fn start(
    data_dir: &Path,
    listen: &ListenAddress,
    flags: &[String],
) -> anyhow::Result<Serving> {
    DataDir::create(data_dir)?;
    let data_dir = data_dir
        .canonicalize()
        .with_context(|| format!("cannot resolve the data directory {}", data_dir.display()))?;
    let log_path = log_path(&data_dir);
    let log = bounded_log::append(&log_path)
        .with_context(|| format!("cannot open {}", log_path.display()))?;
    let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
        .arg("up")
        .arg("--detached")
        .arg("--data-dir")
        .arg(&data_dir)
        .arg("--listen")
        .arg(listen.to_string())
        .args(flags)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start the server")?;
    let pid = child.id();
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("cannot hear from the server")?;
    }
    let line = line.trim_end();
    if let Some(address) = line.strip_prefix("serving ") {
        return Ok(Serving { address: address.to_owned(), pid });
    }
    let status = child.wait().context("cannot wait for the server")?;
    match line.strip_prefix("error ") {
        Some(message) => anyhow::bail!("{}", message.replace('\u{1f}', "\n")),
        None => anyhow::bail!("the server ended at once ({status}); see {}", log_path.display()),
    }
}

/// Where the log of a server in the background lies.
pub(super) fn log_path(data_dir: &Path) -> PathBuf {
    data_dir.join("server.log")
}

/// In the child: the same log, set aside when it becomes large. What else is written to standard error goes along.
pub(super) fn bounded_log(data_dir: &Path) -> anyhow::Result<BoundedLog> {
    let path = log_path(data_dir);
    let follow = |file: &File| dup2_stderr(file).map_err(std::io::Error::from);
    BoundedLog::open(&path, bounded_log::LIMIT_BYTES, follow)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// In the child: it serves.
pub(super) fn tell_serving(address: &str) {
    tell(&format!("serving {address}"));
}

/// In the child: it does not.
pub(super) fn tell_failure(error: &anyhow::Error) {
    tell(&format!("error {error:#}"));
}

fn tell(line: &str) {
    // Whoever started the server may have gone: it serves all the same.
    let _ = output::print(&format!("{}\n", line.replace('\n', "\u{1f}")));
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stdout(&null);
    }
}
