//! Class `sim`: a model of a node in memory, for tests and scale. It isolates nothing and starts nothing.
//!
//! Owns a tiny model of processes (`true`, `false`, `exit N`, `sleep SECONDS`, `echo`, `cat`, `env`, `kill -N $$`, `exhaust-memory`,
//! `sh -c` with these; anything else is not found), latency and faults on demand. What a real host keeps while a server restarts is in
//! [`SimHost`]: hand it to the next [`SimRuntime`]. Uploads are kept as they came and given back by a download of the same path.

mod host;
mod log;
mod output;
mod program;
mod sandbox;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_wire::guest::{ProcessInfo, ProcessSpec, SignalRequest, TransferRequest};
use atoll_wire::shim::SandboxPlan;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::{
    Adoption, ClassTraits, EventReceiver, LimitsScope, ProcessInput, ProcessOutput, ProcessStream,
    Runtime, RuntimeClass, RuntimeError, Sandbox,
};

use host::Entry;
pub use host::{SimHost, SimLatency, SimLaunchFault};
use output::{CHANNEL_CHUNKS, Output};
use program::{Control, Program};
use sandbox::{Found, SimSandbox};

/// Class `sim` on a [`SimHost`].
pub struct SimRuntime {
    host: Arc<SimHost>,
}

impl SimRuntime {
    /// A runtime on this host; needs to be used inside a tokio runtime.
    #[must_use]
    pub const fn new(host: Arc<SimHost>) -> Self {
        Self { host }
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    fn class(&self) -> RuntimeClass {
        RuntimeClass::Sim
    }

    fn traits(&self) -> ClassTraits {
        ClassTraits {
            limits_scope: LimitsScope::Container,
            image_init: false,
            detail: "a model in memory: isolates nothing".into(),
        }
    }

    async fn prewarm(&self, _disk_bytes: u64) {}

    async fn launch(
        &self,
        plan: SandboxPlan,
    ) -> Result<(Arc<dyn Sandbox>, EventReceiver), RuntimeError> {
        let latency = self.host.latency();
        if !latency.launch.is_zero() {
            tokio::time::sleep(latency.launch).await;
        }
        let (failure, hangs) = match self.host.next_fault() {
            Some(SimLaunchFault::Host(message)) => return Err(RuntimeError::Host { message }),
            Some(SimLaunchFault::Refused(message)) => return Err(RuntimeError::Launch { message }),
            Some(SimLaunchFault::Failed(message)) => (Some(message), false),
            Some(SimLaunchFault::Hangs) => (None, true),
            None => (None, false),
        };
        let uid = plan.uid.clone();
        let sandbox = Arc::new(SimSandbox::new(plan, self.host.log_directory().cloned()));
        if !self.host.add(&uid, Arc::clone(&sandbox)) {
            return Err(RuntimeError::Launch { message: format!("{uid} exists already") });
        }
        let events = sandbox.subscribe();
        if !hangs {
            tokio::spawn(Arc::clone(&sandbox).begin(latency.start, failure));
        }
        Ok((Arc::new(Handle(sandbox)), events))
    }

    async fn adopt(&self, uid: &str) -> Result<Adoption, RuntimeError> {
        loop {
            return Ok(match self.host.find(uid) {
                Some(Entry::Known(sandbox)) => match sandbox.adopt() {
                    Found::Running(state, events) => {
                        Adoption::Running(Arc::new(Handle(sandbox)), state, events)
                    }
                    Found::Over(end) => Adoption::Ended(end),
                    // Killed since it was looked for: the host says by now what became of it.
                    Found::Vanished => continue,
                },
                Some(Entry::Gone(reason)) => Adoption::Gone { reason },
                Some(Entry::Corrupt(reason)) => {
                    self.host.remove(uid);
                    let directory = PathBuf::from("/sim/quarantine").join(uid);
                    Adoption::Quarantined { directory, reason }
                }
                None => Adoption::Gone { reason: "there is nothing of it on this host".into() },
            });
        }
    }

    async fn inventory(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.host.uids())
    }

    async fn clear(&self, uid: &str) -> Result<(), RuntimeError> {
        if let Some(Entry::Known(sandbox)) = self.host.remove(uid) {
            sandbox.kill_unseen();
        }
        Ok(())
    }

    async fn destroy(&self, uid: &str) -> Result<(), RuntimeError> {
        if let Some(Entry::Known(sandbox)) = self.host.remove(uid) {
            sandbox.kill_unseen();
        }
        if let Some(directory) = self.host.log_directory() {
            let logs = directory.join(uid);
            match tokio::fs::remove_dir_all(&logs).await {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RuntimeError::Io { operation: "remove", path: logs, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn shutdown(&self) {}
}

struct Handle(Arc<SimSandbox>);

#[async_trait]
impl Sandbox for Handle {
    fn uid(&self) -> &str {
        &self.0.plan.uid
    }

    fn log_path(&self, container: &str) -> Option<PathBuf> {
        self.0.log_path(container)
    }

    async fn exec(
        &self,
        container: &str,
        process: ProcessSpec,
    ) -> Result<ProcessStream, RuntimeError> {
        let index = self.running(container)?;
        let (to_client, output) = mpsc::channel(CHANNEL_CHUNKS);
        let (control, controlled) = mpsc::unbounded_channel();
        if !process.stdin {
            drop(control.send(Control::InputEnd));
        }
        let parsed = Program::parse(&process);
        if parsed.is_ok() {
            self.0.add_exec(index, control.clone());
        }
        tokio::spawn(async move {
            let output = Output::One(to_client);
            match parsed {
                Ok(program) => {
                    output.tell(ProcessOutput::Started).await;
                    let end = program.run(controlled, &output).await;
                    output.tell(ProcessOutput::Exited(end.exited)).await;
                }
                Err(failure) => output.tell(ProcessOutput::StartFailed(failure)).await,
            }
        });
        Ok(ProcessStream { input: forward_input(vec![control]), output })
    }

    async fn attach(
        &self,
        container: &str,
        from_start: bool,
    ) -> Result<ProcessStream, RuntimeError> {
        let index = self.0.index(container)?;
        let ended = || RuntimeError::Ended { what: format!("container {container}") };
        let output = self.0.mains[index].attach(from_start).ok_or_else(ended)?;
        let control = self.0.control(index).ok();
        Ok(ProcessStream { input: forward_input(control.into_iter().collect()), output })
    }

    async fn upload(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError> {
        let index = self.running(container)?;
        let (input, mut from_client) = mpsc::channel(CHANNEL_CHUNKS);
        let (to_client, output) = mpsc::channel(CHANNEL_CHUNKS);
        let sandbox = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut tar = BytesMut::new();
            while let Some(told) = from_client.recv().await {
                match told {
                    ProcessInput::Stdin(bytes) => tar.extend_from_slice(&bytes),
                    ProcessInput::StdinEnd => {
                        sandbox.put_file(index, &transfer.path, tar.freeze());
                        drop(to_client.send(ProcessOutput::TransferDone(None)).await);
                        return;
                    }
                    ProcessInput::Resize(_) | ProcessInput::Signal(_) => {}
                }
            }
        });
        Ok(ProcessStream { input, output })
    }

    async fn download(
        &self,
        container: &str,
        transfer: TransferRequest,
    ) -> Result<ProcessStream, RuntimeError> {
        const CHUNK_BYTES: usize = 32 * 1024;
        let index = self.running(container)?;
        let (to_client, output) = mpsc::channel(CHANNEL_CHUNKS);
        let file = self.0.file(index, &transfer.path);
        tokio::spawn(async move {
            let Some(mut tar) = file else {
                let message = format!("{}: no such file", transfer.path);
                drop(to_client.send(ProcessOutput::TransferDone(Some(message))).await);
                return;
            };
            while !tar.is_empty() {
                let chunk: Bytes = tar.split_to(tar.len().min(CHUNK_BYTES));
                if to_client.send(ProcessOutput::Stdout(chunk)).await.is_err() {
                    return;
                }
            }
            drop(to_client.send(ProcessOutput::TransferDone(None)).await);
        });
        Ok(ProcessStream { input: forward_input(Vec::new()), output })
    }

    async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, RuntimeError> {
        let index = self.running(container)?;
        let container = &self.0.plan.containers[index];
        let main = self.0.host_pid(index).map(|_| ProcessInfo {
            pid: 2,
            parent_pid: 1,
            uid: container.process.user.uid,
            resident_kib: 0,
            cpu_millis: 0,
            command: container.process.args.join(" "),
        });
        Ok(main.into_iter().collect())
    }

    async fn signal(&self, container: &str, signal: SignalRequest) -> Result<(), RuntimeError> {
        let index = self.running(container)?;
        let controls = match signal.everyone {
            true => self.0.controls(index),
            false => vec![self.0.control(index)?],
        };
        for control in controls {
            // A process that has ended does not listen.
            drop(control.send(Control::Signal(signal.signal)));
        }
        Ok(())
    }

    async fn stop(&self, grace_millis: u64) -> Result<(), RuntimeError> {
        self.0.reach()?;
        self.0.stop(grace_millis);
        Ok(())
    }

    async fn end_boost(&self) -> Result<(), RuntimeError> {
        self.0.reach()
    }

    async fn start_container(&self, container: &str) -> Result<(), RuntimeError> {
        let index = self.0.index(container)?;
        self.0.reach()?;
        self.0.control(index)?;
        self.0.start_held(index);
        Ok(())
    }
}

impl Handle {
    fn running(&self, container: &str) -> Result<usize, RuntimeError> {
        let index = self.0.index(container)?;
        self.0.reach()?;
        self.0.control(index)?;
        match self.0.host_pid(index) {
            Some(_) => Ok(index),
            None => Err(RuntimeError::Refused { message: format!("{container} has not begun") }),
        }
    }
}

/// Passes a client's input on to the processes (none: it is taken and dropped).
fn forward_input(controls: Vec<mpsc::UnboundedSender<Control>>) -> mpsc::Sender<ProcessInput> {
    let (input, mut from_client) = mpsc::channel(CHANNEL_CHUNKS);
    tokio::spawn(async move {
        while let Some(told) = from_client.recv().await {
            for control in &controls {
                let told = match &told {
                    ProcessInput::Stdin(bytes) => Control::Input(bytes.clone()),
                    ProcessInput::StdinEnd => Control::InputEnd,
                    ProcessInput::Signal(signal) => Control::Signal(signal.signal),
                    ProcessInput::Resize(_) => continue,
                };
                // A process that has ended does not listen.
                drop(control.send(told));
            }
        }
    });
    input
}
