//! A sandbox under test: its events, and processes run in it.

use std::sync::Arc;

use atoll_runtime::{EventReceiver, ProcessInput, ProcessOutput, ProcessStream, Sandbox};
use atoll_wire::guest::{Exited, ProcessSpec, StartFailure};
use atoll_wire::record::ContainerExit;
use atoll_wire::shim::ShimEvent;
use bytes::Bytes;

use crate::bench::{PATIENCE, shell};

pub(crate) struct Running {
    pub(crate) uid: String,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    events: EventReceiver,
    pub(crate) seen: Vec<ShimEvent>,
}

/// What a process said and how it ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) started: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exited: Option<Exited>,
    pub(crate) failure: Option<StartFailure>,
    pub(crate) lost: Option<String>,
    pub(crate) transfer: Option<Option<String>>,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.exited.and_then(|exited| exited.code)
    }
}

impl Running {
    pub(crate) const fn new(uid: String, sandbox: Arc<dyn Sandbox>, events: EventReceiver) -> Self {
        Self { uid, sandbox, events, seen: Vec::new() }
    }

    /// The next event; `None`: the channel is closed.
    pub(crate) async fn next(&mut self) -> Option<ShimEvent> {
        let next = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let Ok(next) = next else { panic!("no event in {PATIENCE:?}; so far: {:?}", self.seen) };
        self.seen.extend(next.clone());
        next
    }

    async fn until<T>(&mut self, what: &str, pick: impl Fn(&ShimEvent) -> Option<T>) -> T {
        if let Some(found) = self.seen.iter().find_map(&pick) {
            return found;
        }
        while let Some(event) = self.next().await {
            if let Some(found) = pick(&event) {
                return found;
            }
        }
        panic!("expected {what}, and the events closed after {:?}", self.seen)
    }

    /// Waits until a container's command runs; gives the host's pid of its first process.
    pub(crate) async fn started(&mut self, name: &str) -> i32 {
        self.until(&format!("Started of {name}"), |event| match event {
            ShimEvent::Started { container, host_pid, .. } if container == name => Some(*host_pid),
            ShimEvent::LaunchFailed { message } => panic!("the launch failed: {message}"),
            ShimEvent::Exited { exit } if exit.container == name => {
                panic!("{name} was to start and ended: {exit:?}")
            }
            _ => None,
        })
        .await
    }

    /// Waits until a container has ended.
    pub(crate) async fn exit(&mut self, name: &str) -> ContainerExit {
        self.until(&format!("Exited of {name}"), |event| match event {
            ShimEvent::Exited { exit } if exit.container == name => Some(exit.clone()),
            ShimEvent::LaunchFailed { message } => panic!("the launch failed: {message}"),
            _ => None,
        })
        .await
    }

    /// Waits for the last event and that nothing follows.
    pub(crate) async fn ended(&mut self) {
        self.until("Ended", |event| matches!(event, ShimEvent::Ended).then_some(())).await;
        assert_eq!(self.next().await, None, "Ended is the last event");
    }

    /// Waits until the events close, whatever they were.
    pub(crate) async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    /// Runs a script in `main` to its end.
    pub(crate) async fn script(&self, script: &str) -> Outcome {
        self.exec("main", shell(script), b"").await
    }

    /// Runs a process to its end with that input.
    pub(crate) async fn exec(&self, name: &str, mut spec: ProcessSpec, input: &[u8]) -> Outcome {
        spec.stdin |= !input.is_empty();
        let stream = match self.sandbox.exec(name, spec).await {
            Ok(stream) => stream,
            Err(error) => panic!("an exec in {name} was refused: {error}"),
        };
        finish(stream, input).await
    }
}

/// Gives a process its input, and takes what comes, to the end.
pub(crate) async fn finish(mut stream: ProcessStream, input: &[u8]) -> Outcome {
    let sender = stream.input.clone();
    let input = Bytes::copy_from_slice(input);
    let feed = tokio::spawn(async move {
        for chunk in input.chunks(30_000) {
            let chunk = Bytes::copy_from_slice(chunk);
            if sender.send(ProcessInput::Stdin(chunk)).await.is_err() {
                return;
            }
        }
        drop(sender.send(ProcessInput::StdinEnd).await);
    });
    let outcome = tokio::time::timeout(PATIENCE, collect(&mut stream)).await;
    feed.abort();
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => panic!("a process did not end in {PATIENCE:?}"),
    }
}

/// Takes what comes, to the end.
pub(crate) async fn collect(stream: &mut ProcessStream) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(told) = stream.output.recv().await {
        match told {
            ProcessOutput::Started => outcome.started = true,
            ProcessOutput::StartFailed(failure) => outcome.failure = Some(failure),
            ProcessOutput::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
            ProcessOutput::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
            ProcessOutput::Exited(exited) => outcome.exited = Some(exited),
            ProcessOutput::TransferDone(error) => outcome.transfer = Some(error),
            ProcessOutput::Lost(why) => outcome.lost = Some(why),
        }
    }
    outcome
}
