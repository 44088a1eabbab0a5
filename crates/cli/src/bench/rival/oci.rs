//! runc and runsc by their command lines.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use atoll_wire::shim::ContainerPlan;
use tokio::process::Command;

use super::bundle::{Root, configuration};
use super::namespaces::{NetworkNamespace, WithoutNetSysctls};
use super::{Rival, program, time_output};
use crate::bench::exec::ROUND_TRIP;
use crate::bench::statistics::micros;

/// How long a container may take to begin or end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often its state is asked for meanwhile; outside of what is measured.
const INTERVAL: Duration = Duration::from_millis(20);

/// An OCI runtime.
pub(super) struct Oci {
    name: &'static str,
    how: String,
    program: PathBuf,
    /// Before the arguments of each call.
    options: Vec<String>,
    /// One for each worker.
    bundles: Vec<PathBuf>,
    /// Calls go through nsenter into this mount namespace.
    mounts: Option<WithoutNetSysctls>,
    next: AtomicU64,
    resident: Option<(String, tokio::process::Child)>,
    _networks: Vec<NetworkNamespace>,
    _root: Root,
}

impl Oci {
    /// `runc run`.
    pub(super) async fn runc(
        plan: &ContainerPlan,
        command: &[String],
        workers: usize,
    ) -> anyhow::Result<Self> {
        let program = program("runc")?;
        let root = Root::mount(plan)?;
        let state = root.directory().join("runc");
        let options = vec!["--root".to_owned(), state.display().to_string()];
        let mut bundles = Vec::new();
        for worker in 0..workers {
            bundles.push(write_bundle(plan, &root, command, worker, None)?);
        }
        Ok(Self {
            name: "runc",
            how: "runc run of the same layers, command and limits".to_owned(),
            program,
            options,
            bundles,
            mounts: None,
            next: AtomicU64::new(0),
            resident: None,
            _networks: Vec::new(),
            _root: root,
        })
    }

    /// `runsc run --network=sandbox` in network namespaces made before.
    pub(super) async fn runsc(
        plan: &ContainerPlan,
        command: &[String],
        workers: usize,
    ) -> anyhow::Result<Self> {
        let program = program("runsc")?;
        let root = Root::mount(plan)?;
        let state = root.directory().join("runsc");
        let options =
            ["--root", &state.display().to_string(), "--network=sandbox", "--platform=systrap"]
                .map(str::to_owned)
                .to_vec();
        let mut networks = Vec::new();
        let mut bundles = Vec::new();
        for worker in 0..workers {
            let network =
                NetworkNamespace::create(&format!("atoll-bench-{}-{worker}", std::process::id()))
                    .await?;
            bundles.push(write_bundle(plan, &root, command, worker, Some(&network.path()))?);
            networks.push(network);
        }
        let mut rival = Self {
            name: "runsc",
            how: "runsc run --network=sandbox of the same layers, command and limits, in a network namespace made before"
                .to_owned(),
            program,
            options,
            bundles,
            mounts: None,
            next: AtomicU64::new(0),
            resident: None,
            _networks: networks,
            _root: root,
        };
        if let Err(error) = rival.provision(0).await {
            anyhow::ensure!(
                format!("{error:#}").contains("root network namespace"),
                "runsc does not run: {error:#}"
            );
            rival.mounts = Some(WithoutNetSysctls::create()?);
            rival.how.push_str(", entered by nsenter (this runsc needs it on this kernel)");
        }
        Ok(rival)
    }

    /// A call of the runtime.
    fn call(&self) -> Command {
        let mut command = match &self.mounts {
            None => Command::new(&self.program),
            Some(mounts) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount={}", mounts.path().display())).arg(&self.program);
                command
            }
        };
        command.args(&self.options);
        command
    }

    fn new_id(&self) -> String {
        format!("atoll-bench-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    async fn status(&self, id: &str) -> anyhow::Result<String> {
        let output = self.call().args(["state", id]).stdin(Stdio::null()).output().await?;
        let state: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok(state["status"].as_str().unwrap_or("absent").to_owned())
    }

    async fn wait_for_status(&self, id: &str, wanted: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await?;
            if status == wanted {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "it is {status}, not {wanted}");
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

#[async_trait(?Send)]
impl Rival for Oci {
    fn name(&self) -> &'static str {
        self.name
    }

    fn how(&self) -> &str {
        &self.how
    }

    async fn provision(&self, worker: usize) -> anyhow::Result<Vec<(String, u64)>> {
        let id = self.new_id();
        let bundle = self.bundles.get(worker).context("no bundle for this worker")?;
        let mut command = self.call();
        command.arg("run").arg("--bundle").arg(bundle).arg(&id);
        time_output(command).await
    }

    async fn begin_resident(&mut self) -> anyhow::Result<()> {
        let id = self.new_id();
        let bundle = self.bundles.first().context("no bundle")?;
        let child = self
            .call()
            .arg("run")
            .arg("--bundle")
            .arg(bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.wait_for_status(&id, "running").await?;
        self.resident = Some((id, child));
        Ok(())
    }

    async fn end_resident(&mut self) -> anyhow::Result<()> {
        let Some((id, mut child)) = self.resident.take() else { return Ok(()) };
        let killed = self.call().args(["kill", &id, "KILL"]).output().await?;
        anyhow::ensure!(
            killed.status.success(),
            "cannot kill it: {}",
            String::from_utf8_lossy(&killed.stderr).trim()
        );
        tokio::time::timeout(PATIENCE, child.wait()).await.context("it does not end")??;
        // `run` deletes it at its end; a second time is harmless.
        let _ = self.call().args(["delete", &id]).output().await;
        Ok(())
    }

    async fn exec(&self, command: &[String]) -> anyhow::Result<Vec<(String, u64)>> {
        let (id, _) = self.resident.as_ref().context("it does not run")?;
        let begun = Instant::now();
        let output =
            self.call().arg("exec").arg(id).args(command).stdin(Stdio::null()).output().await?;
        let took = micros(begun.elapsed());
        anyhow::ensure!(
            output.status.success(),
            "it ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(vec![(ROUND_TRIP.to_owned(), took)])
    }
}

fn write_bundle(
    plan: &ContainerPlan,
    root: &Root,
    command: &[String],
    worker: usize,
    network: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let bundle = root.directory().join(format!("bundle-{worker}"));
    std::fs::create_dir(&bundle)?;
    let cgroup = format!("/atoll-bench/{}-{worker}", std::process::id());
    let configuration = configuration(plan, &root.path(), command, &cgroup, network);
    std::fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&configuration)?)?;
    Ok(bundle)
}
