//! Trying a probe, again and again, as its plan (`atoll_model::probe`) says.
//!
//! Decides nothing: it tells where the probe stands. What a sandbox answers is hostile: its bytes are bounded, its silence too.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::probe::{Check, Progress};
use atoll_runtime::{ProcessInput, ProcessOutput, Sandbox, SandboxNetwork};
use atoll_sys::clock::monotonic_micros;
use atoll_wire::guest::{ProcessSpec, SignalRequest};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::gate::Told;

/// Most bytes of an answer's head. SOURCE: nginx and Apache take request heads of 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Longest reason that is kept.
const MAX_WHY_CHARS: usize = 200;
const SIGKILL: i32 = 9;

/// What a probe is tried on.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uid: String,
    pub(super) sandbox: Arc<dyn Sandbox>,
    pub(super) network: Option<Arc<dyn SandboxNetwork>>,
    /// Of an exec probe: where, and as what (its words are the probe's).
    pub(super) process: Option<(String, ProcessSpec)>,
}

/// Tries until it is over; `index` is told with each change.
pub(super) async fn run(
    index: usize,
    mut progress: Progress,
    target: Target,
    tell: mpsc::Sender<Told>,
) {
    let check = progress.probe().check.clone();
    while let Some(next) = progress.next() {
        let wait = next.at_micros.saturating_sub(monotonic_micros());
        tokio::time::sleep(Duration::from_micros(wait)).await;
        let outcome = match tokio::time::timeout(next.timeout, target.attempt(&check)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {:?}", next.timeout)),
        };
        let now = monotonic_micros();
        let Some(verdict) = progress.ended(next, outcome.is_ok(), now) else { continue };
        let why = outcome.err().unwrap_or_default().chars().take(MAX_WHY_CHARS).collect();
        if tell.send(Told::Verdict { index, verdict, why }).await.is_err() {
            return;
        }
    }
}

impl Target {
    async fn attempt(&self, check: &Check) -> Result<(), String> {
        match check {
            Check::Tcp { port } => self.connect(*port).await.map(drop),
            Check::Http { port, path } => get(self.connect(*port).await?, path).await,
            Check::Exec { .. } => self.exec().await,
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let network = self.network.as_ref().ok_or("this server has no network")?;
        network.connect(&self.uid, port).await.map_err(|error| with_causes(&error))
    }

    async fn exec(&self) -> Result<(), String> {
        let (container, process) = self.process.clone().ok_or("it has no command")?;
        let stream = self.sandbox.exec(&container, process).await;
        let stream = stream.map_err(|error| with_causes(&error))?;
        let mut output = stream.output;
        // A try that is given up must not leave its command behind.
        let mut running = Killed(Some(stream.input));
        while let Some(told) = output.recv().await {
            match told {
                ProcessOutput::Exited(exited) => {
                    running.0 = None;
                    return match (exited.code, exited.signal) {
                        (Some(0), _) => Ok(()),
                        (Some(code), _) => Err(format!("exit code {code}")),
                        (None, signal) => Err(format!("signal {}", signal.unwrap_or_default())),
                    };
                }
                ProcessOutput::StartFailed(failure) => return Err(failure.message),
                ProcessOutput::Lost(why) => return Err(why),
                // What it says is nobody's business.
                ProcessOutput::Started
                | ProcessOutput::Stdout(_)
                | ProcessOutput::Stderr(_)
                | ProcessOutput::TransferDone(_) => {}
            }
        }
        Err("its end was not told".to_owned())
    }
}

/// A command that is killed when nobody waits for it any more.
struct Killed(Option<mpsc::Sender<ProcessInput>>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(input) = self.0.take() {
            let kill = SignalRequest { signal: SIGKILL, everyone: false };
            // Its queue is empty: nothing else is ever told it.
            if input.try_send(ProcessInput::Signal(kill)).is_err() {
                tracing::debug!("a probe's command had ended when it was given up");
            }
        }
    }
}

/// A GET whose answer's code is from 200 to 399.
async fn get(stream: TcpStream, path: &str) -> Result<(), String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, "localhost")
        .header(hyper::header::USER_AGENT, concat!("atoll-probe/", env!("CARGO_PKG_VERSION")))
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // Both end with this function: the body is not read, however long it is.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // A server that answers and closes at once has answered: the sender knows.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = answer.map_err(|error| error.to_string())?.status().as_u16();
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP status {status}")) }
}
