//! containerd, started for the measurement with state of its own, through its `ctr`.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use atoll_wire::shim::ContainerPlan;
use tokio::process::{Child, Command};

use super::bundle::Root;
use super::{Rival, complete, program, time_output};
use crate::bench::exec::ROUND_TRIP;
use crate::bench::statistics::micros;

/// How long containerd may take to answer, and a container to begin or end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile; outside of what is measured.
const INTERVAL: Duration = Duration::from_millis(50);

/// A containerd of our own.
pub(super) struct Containerd {
    how: String,
    ctr: PathBuf,
    /// Before the arguments of each call.
    options: Vec<String>,
    /// After `run`.
    run_options: Vec<String>,
    command: Vec<String>,
    next: AtomicU64,
    resident: Option<(String, Child)>,
    daemon: Child,
    root: Root,
}

impl Containerd {
    /// Starts it.
    pub(super) async fn start(
        plan: &ContainerPlan,
        command: &[String],
        class: &str,
    ) -> anyhow::Result<Self> {
        let (shim, runtime) = match class {
            "gvisor" => ("containerd-shim-runsc-v1", "io.containerd.runsc.v1"),
            _ => ("containerd-shim-runc-v2", "io.containerd.runc.v2"),
        };
        program(shim)?;
        let (containerd, ctr) = (program("containerd")?, program("ctr")?);
        let root = Root::mount(plan)?;
        let below = |name: &str| root.directory().join(name).display().to_string();
        let socket = below("containerd.sock");
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
            below("containerd-root"),
            below("containerd-state"),
        );
        let configuration_path = root.directory().join("containerd.toml");
        std::fs::write(&configuration_path, configuration)?;
        let daemon = Command::new(&containerd)
            .arg("--config")
            .arg(&configuration_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start containerd")?;
        let limits = &plan.limits;
        let run_options = vec![
            "--runtime".to_owned(),
            runtime.to_owned(),
            "--memory-limit".to_owned(),
            limits.memory_bytes.to_string(),
            "--env".to_owned(),
            format!("PATH={}", super::bundle::PATH),
            "--rootfs".to_owned(),
        ];
        let rival = Self {
            how: format!(
                "ctr run --runtime {runtime} of the same layers, command and memory limit, without a pod and without a network"
            ),
            ctr,
            options: vec!["--address".to_owned(), socket],
            run_options,
            command: command.to_vec(),
            next: AtomicU64::new(0),
            resident: None,
            daemon,
            root,
        };
        rival.wait_until_it_answers().await?;
        Ok(rival)
    }

    async fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut arguments: Vec<&str> = self.options.iter().map(String::as_str).collect();
        arguments.push("version");
        loop {
            match complete(&self.ctr, &arguments).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context("containerd does not answer"));
                }
                Err(_) => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    fn call(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command.args(&self.options);
        command
    }

    fn run(&self, id: &str) -> Command {
        let mut command = self.call();
        command.args(["run", "--rm"]).args(&self.run_options).arg(self.root.path()).arg(id);
        command.args(&self.command);
        command
    }

    fn new_id(&self) -> String {
        format!("atoll-bench-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[async_trait(?Send)]
impl Rival for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn how(&self) -> &str {
        &self.how
    }

    async fn provision(&self, _worker: usize) -> anyhow::Result<Vec<(String, u64)>> {
        time_output(self.run(&self.new_id())).await
    }

    async fn begin_resident(&mut self) -> anyhow::Result<()> {
        let id = self.new_id();
        let child = self
            .run(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.call().args(["task", "ls"]).output().await?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.lines().any(|line| line.starts_with(&id) && line.contains("RUNNING")) {
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "its container does not begin: {text}");
            tokio::time::sleep(INTERVAL).await;
        }
        self.resident = Some((id, child));
        Ok(())
    }

    async fn end_resident(&mut self) -> anyhow::Result<()> {
        let Some((id, mut child)) = self.resident.take() else { return Ok(()) };
        self.call().args(["task", "kill", "-s", "KILL", &id]).output().await?;
        tokio::time::timeout(PATIENCE, child.wait()).await.context("it does not end")??;
        Ok(())
    }

    async fn exec(&self, command: &[String]) -> anyhow::Result<Vec<(String, u64)>> {
        let (id, _) = self.resident.as_ref().context("it does not run")?;
        let exec_id = format!("exec-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let begun = Instant::now();
        let output = self
            .call()
            .args(["task", "exec", "--exec-id", &exec_id, id])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .await?;
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

impl Drop for Containerd {
    fn drop(&mut self) {
        // Ends in order where it can: its own files lie below the root that is removed next.
        let _ = self.daemon.start_kill();
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(INTERVAL);
        }
    }
}
