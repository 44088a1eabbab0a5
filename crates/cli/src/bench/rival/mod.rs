//! Other ways to run the same command from the same files, with the same limits.

mod bundle;
mod containerd;
mod namespaces;
mod oci;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use async_trait::async_trait;
use atoll_wire::shim::ContainerPlan;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::provision::{ENDED, FIRST_OUTPUT};
use super::statistics::micros;
use crate::args::Against;

/// Another way to run a container. Everything that it made is gone when it is dropped.
#[async_trait(?Send)]
pub(crate) trait Rival {
    /// As on the command line.
    fn name(&self) -> &'static str;

    /// What exactly is run, for the report.
    fn how(&self) -> &str;

    /// One container from nothing to gone: stages and microseconds. `worker`: nobody else has this number at the time.
    async fn provision(&self, worker: usize) -> anyhow::Result<Vec<(String, u64)>>;

    /// Begins the container in which [`Rival::exec`] runs commands.
    async fn begin_resident(&mut self) -> anyhow::Result<()>;

    /// Ends it.
    async fn end_resident(&mut self) -> anyhow::Result<()>;

    /// One command in it.
    async fn exec(&self, command: &[String]) -> anyhow::Result<Vec<(String, u64)>>;
}

/// Prepares a rival. An error says why it cannot be had here.
pub(super) async fn prepare(
    against: Against,
    plan: &ContainerPlan,
    command: &[String],
    class: &str,
    workers: usize,
) -> anyhow::Result<Box<dyn Rival>> {
    Ok(match against {
        Against::Runc => Box::new(oci::Oci::runc(plan, command, workers).await?),
        Against::Runsc => Box::new(oci::Oci::runsc(plan, command, workers).await?),
        Against::Containerd => Box::new(containerd::Containerd::start(plan, command, class).await?),
    })
}

/// The first program of that name in PATH.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// Runs a program whose output is the container's: when the first byte came, and when the program had ended.
async fn time_output(mut command: Command) -> anyhow::Result<Vec<(String, u64)>> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start it")?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut first = [0; 1];
    let read = stdout.read(&mut first).await?;
    let first_micros = micros(begun.elapsed());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await?;
    let ended = child.wait_with_output().await?;
    let ended_micros = micros(begun.elapsed());
    anyhow::ensure!(
        ended.status.success() && read == 1,
        "it ended with {}: {}",
        ended.status,
        String::from_utf8_lossy(&ended.stderr).trim()
    );
    Ok(vec![(FIRST_OUTPUT.to_owned(), first_micros), (ENDED.to_owned(), ended_micros)])
}

/// Runs a program to its end, successfully.
async fn complete(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} {} ended with {}: {}",
        program.display(),
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
