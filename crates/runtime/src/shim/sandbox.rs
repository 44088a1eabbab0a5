//! A running sandbox as the server holds it: every request is a conversation of its own with the shim.

use std::path::PathBuf;

use async_trait::async_trait;
use atoll_wire::guest::{ProcessInfo, ProcessSpec, SignalRequest, TransferRequest};
use atoll_wire::shim::{NetworkPlacement, ShimReply, ShimRequest};

use crate::{DiskUsage, ProcessStream, RuntimeError, Sandbox};

use super::connection::ask_running;
use super::directory::SandboxDirectory;
use super::stream::process_stream;
use super::{blocking, disk_usage};

pub(super) struct ShimSandbox {
    uid: String,
    directory: SandboxDirectory,
    containers: Vec<String>,
    prepared_at: Option<u64>,
    network: Option<NetworkPlacement>,
}

impl ShimSandbox {
    pub(super) const fn new(
        uid: String,
        directory: SandboxDirectory,
        containers: Vec<String>,
        prepared_at: Option<u64>,
        network: Option<NetworkPlacement>,
    ) -> Self {
        Self { uid, directory, containers, prepared_at, network }
    }

    fn check(&self, container: &str) -> Result<String, RuntimeError> {
        match self.containers.iter().find(|it| *it == container) {
            Some(container) => Ok(container.clone()),
            None => Err(RuntimeError::NoContainer { container: container.to_owned() }),
        }
    }

    async fn open(&self, request: ShimRequest) -> Result<ProcessStream, RuntimeError> {
        let (reply, reader, writer) = ask_running(&self.uid, &self.directory, &request).await?;
        match reply {
            ShimReply::Ok => Ok(process_stream(reader, writer)),
            other => Err(self.nonsense(&other)),
        }
    }

    async fn tell(&self, request: ShimRequest) -> Result<(), RuntimeError> {
        match ask_running(&self.uid, &self.directory, &request).await? {
            (ShimReply::Ok, ..) => Ok(()),
            (other, ..) => Err(self.nonsense(&other)),
        }
    }

    fn nonsense(&self, reply: &ShimReply) -> RuntimeError {
        let kind = match reply {
            ShimReply::Ok => "ok",
            ShimReply::State(_) => "a state",
            ShimReply::Processes { .. } => "processes",
            ShimReply::Refused { .. } => "a refusal",
        };
        let message = format!("it answered with {kind}, which was not asked for");
        RuntimeError::Unreachable { uid: self.uid.clone(), message }
    }
}

#[async_trait]
impl Sandbox for ShimSandbox {
    fn uid(&self) -> &str {
        &self.uid
    }

    fn network(&self) -> Option<NetworkPlacement> {
        self.network
    }

    fn prepared_at_monotonic_micros(&self) -> Option<u64> {
        self.prepared_at
    }

    fn log_path(&self, container: &str) -> Option<PathBuf> {
        let container = self.check(container).ok()?;
        Some(self.directory.log(&container))
    }

    async fn disk(&self, container: &str) -> Result<Option<DiskUsage>, RuntimeError> {
        let container = self.check(container)?;
        let directory = self.directory.clone();
        blocking(move || Ok(disk_usage::of(&directory, &container))).await
    }

    async fn exec(
        &self,
        container: &str,
        process: ProcessSpec,
    ) -> Result<ProcessStream, RuntimeError> {
        let container = self.check(container)?;
        self.open(ShimRequest::Exec { container, process }).await
    }

    async fn attach(
        &self,
        container: &str,
        from_start: bool,
    ) -> Result<ProcessStream, RuntimeError> {
        let container = self.check(container)?;
        self.open(ShimRequest::Attach { container, from_start }).await
    }

    async fn upload(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError> {
        let container = self.check(container)?;
        self.open(ShimRequest::Upload { container, transfer }).await
    }

    async fn download(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError> {
        let container = self.check(container)?;
        self.open(ShimRequest::Download { container, transfer }).await
    }

    async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, RuntimeError> {
        let container = self.check(container)?;
        let request = ShimRequest::Processes { container };
        match ask_running(&self.uid, &self.directory, &request).await? {
            (ShimReply::Processes { processes }, ..) => Ok(processes),
            (other, ..) => Err(self.nonsense(&other)),
        }
    }

    async fn signal(&self, container: &str, signal: SignalRequest) -> Result<(), RuntimeError> {
        let container = self.check(container)?;
        self.tell(ShimRequest::Signal { container, signal }).await
    }

    async fn stop(&self, grace_millis: u64) -> Result<(), RuntimeError> {
        self.tell(ShimRequest::Stop { grace_millis }).await
    }

    async fn end_boost(&self) -> Result<(), RuntimeError> {
        self.tell(ShimRequest::EndBoost).await
    }

    async fn start_container(&self, container: &str) -> Result<(), RuntimeError> {
        let container = self.check(container)?;
        self.tell(ShimRequest::StartContainer { container }).await
    }
}
