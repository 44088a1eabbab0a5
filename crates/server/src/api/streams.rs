//! Exec and attach: a WebSocket on one side, a process of a sandbox on the other. A client that does not read slows its own process down.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::state::Phase;
use atoll_runtime::{ProcessInput, ProcessOutput, ProcessStream, RuntimeError};
use atoll_wire::guest::{ProcessSpec, SignalRequest, TerminalSize};
use atoll_wire::rest::{
    AttachRequest, ExecRequest, Sandbox, Size, StreamChannel, StreamMessage, strict,
};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::{App, ended, wait};
use crate::owner::{Command, Live, OwnerHandle};

/// A first message holds a command and its environment.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
const FIRST_MESSAGE_DEADLINE: Duration = Duration::from_secs(15);

type Sink = SplitSink<WebSocket, Message>;

/// `GET /api/v1/sandboxes/ID/exec`.
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let sandbox = app.sandbox(&id)?;
    let owner = app.owner(&sandbox)?;
    Ok(bounded(upgrade).on_upgrade(move |socket| async move {
        let (mut sink, mut source) = socket.split();
        let begun = begin_exec(&app, &sandbox, &owner, &mut source).await;
        converse(&mut sink, source, begun).await;
    }))
}

/// `GET /api/v1/sandboxes/ID/attach`.
pub(super) async fn attach(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let sandbox = app.sandbox(&id)?;
    let owner = app.owner(&sandbox)?;
    Ok(bounded(upgrade).on_upgrade(move |socket| async move {
        let (mut sink, mut source) = socket.split();
        let Ok(_attached) = Attached::to(owner.clone()).await else { return };
        let begun = begin_attach(&app, &sandbox, &owner, &mut source).await;
        converse(&mut sink, source, begun).await;
    }))
}

fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES)
}

/// For as long as it lives, a client counts as attached.
struct Attached(OwnerHandle);

impl Attached {
    async fn to(owner: OwnerHandle) -> Result<Self, ApiError> {
        owner.send(Command::Attached).await?;
        Ok(Self(owner))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.try_send(Command::Detached);
    }
}

async fn first<T: DeserializeOwned>(source: &mut SplitStream<WebSocket>) -> Result<T, ApiError> {
    let message = tokio::time::timeout(FIRST_MESSAGE_DEADLINE, source.next()).await;
    let expected = || ApiError::malformed("the first message must be text: a request in JSON");
    match message.map_err(|_| ApiError::timeout("no request came"))? {
        Some(Ok(Message::Text(text))) => Ok(strict::from_json(text.as_bytes())?),
        _ => Err(expected()),
    }
}

async fn begin_exec(
    app: &App,
    sandbox: &Sandbox,
    owner: &OwnerHandle,
    source: &mut SplitStream<WebSocket>,
) -> Result<ProcessStream, ApiError> {
    let request: ExecRequest = first(source).await?;
    let container = app.container(owner, request.container.as_deref())?;
    // Also of one that is not ready yet: that is when somebody looks what it does.
    let begun = |it: &Sandbox| {
        let waits = Phase::from_name(&it.status.phase)
            .is_none_or(|phase| matches!(phase, Phase::Pending | Phase::Scheduled));
        let mut containers = it.status.containers.iter();
        !waits || containers.any(|of| of.name == container && of.started_at.is_some())
    };
    wait::follow(app, &sandbox.id, Some(&sandbox.uid), begun).await;
    let (live, _) = app.running(&sandbox.id)?;
    let process = process(app, &live, &container, request).await?;
    Ok(live.sandbox.exec(&container, process).await?)
}

/// A further process of a container: what its main process has, but for what was asked.
async fn process(
    app: &App,
    live: &Live,
    container: &str,
    request: ExecRequest,
) -> Result<ProcessSpec, ApiError> {
    let index = live.plan.containers.iter().position(|it| it.name == container);
    let index = index.ok_or_else(|| ApiError::no_container(container))?;
    let base = &live.plan.containers[index].process;
    let invalid = |message: String| {
        ApiError::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    };
    if request.command.first().is_none_or(String::is_empty) {
        return Err(invalid("command: must name a program".to_owned()));
    }
    if request.command.iter().chain(&request.env).any(|word| word.contains('\0')) {
        return Err(invalid("command, env: must not contain NUL".to_owned()));
    }
    let mut env = base.env.clone();
    for (index, text) in request.env.iter().enumerate() {
        let entry = atoll_model::validate::env_entry(text)
            .map_err(|error| invalid(format!("env[{index}]: {error}")))?;
        let prefix = format!("{}=", entry.key);
        env.retain(|known| !known.starts_with(&prefix));
        env.push(text.clone());
    }
    let has = |env: &[String], key: &str| env.iter().any(|entry| entry.starts_with(key));
    if request.tty && !has(&env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    let user = match request.user.as_deref().filter(|user| !user.is_empty()) {
        None => base.user.clone(),
        Some(user) => {
            let user = atoll_model::validate::user(user)
                .map_err(|error| invalid(format!("user: {error}")))?;
            let digest = live.digests.get(index).map_or("", String::as_str);
            app.context.images.resolve_user(digest, &user).await?.ids
        }
    };
    let working_directory = match request.work_dir.filter(|it| !it.is_empty()) {
        None => base.working_directory.clone(),
        Some(path) => atoll_model::validate::absolute_path(&path)
            .map_err(|error| invalid(format!("work_dir: {error}")))?,
    };
    let size = request.size.unwrap_or(Size { rows: 24, columns: 80 });
    let process = ProcessSpec {
        args: request.command,
        env,
        working_directory,
        make_working_directory: false,
        user,
        stdin: request.stdin,
        terminal: request.tty.then_some(TerminalSize { rows: size.rows, columns: size.columns }),
        ..base.clone()
    };
    match crate::plan::process_bytes(&process) {
        bytes if bytes > crate::plan::MAX_PROCESS_BYTES => Err(invalid(format!(
            "command, env: are {bytes} bytes with the container's environment, at most {} fit; use files or standard input",
            crate::plan::MAX_PROCESS_BYTES
        ))),
        _ => Ok(process),
    }
}

async fn begin_attach(
    app: &App,
    sandbox: &Sandbox,
    owner: &OwnerHandle,
    source: &mut SplitStream<WebSocket>,
) -> Result<ProcessStream, ApiError> {
    let request: AttachRequest = first(source).await?;
    let container = app.container(owner, request.container.as_deref())?;
    let stream = main_stream(app, sandbox, owner, &container, request.from_start).await?;
    if let Some(size) = request.size {
        // Lost only with the process.
        stream
            .input
            .send(ProcessInput::Resize(TerminalSize { rows: size.rows, columns: size.columns }))
            .await
            .ok();
    }
    Ok(stream)
}

/// The main process's stream: of its shim while that has it, of what was recorded afterwards.
async fn main_stream(
    app: &App,
    sandbox: &Sandbox,
    owner: &OwnerHandle,
    container: &str,
    from_start: bool,
) -> Result<ProcessStream, ApiError> {
    let mut live = owner.watch_live();
    let over = |it: &Sandbox| {
        Phase::from_name(&it.status.phase)
            .is_none_or(|it| it.is_over() || it == Phase::Deleting || it == Phase::Unknown)
    };
    let found = tokio::select! {
        biased;
        found = live.wait_for(Option::is_some) => found.ok().and_then(|it| it.clone()),
        _ = wait::follow(app, &sandbox.id, Some(&sandbox.uid), over) => None,
    };
    let Some(live) = found else {
        return stream_of_ended(app, sandbox, owner, container, from_start).await;
    };
    match live.sandbox.attach(container, from_start).await {
        Ok(stream) => Ok(stream),
        // Between the look and the request: what is being recorded says how.
        Err(RuntimeError::Ended { .. }) => {
            let ended = |it: &Sandbox| over(it) || ended::ended(it, container).is_some();
            wait::follow(app, &sandbox.id, Some(&sandbox.uid), ended).await;
            stream_of_ended(app, sandbox, owner, container, from_start).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn stream_of_ended(
    app: &App,
    sandbox: &Sandbox,
    owner: &OwnerHandle,
    container: &str,
    from_start: bool,
) -> Result<ProcessStream, ApiError> {
    let now = app.sandbox(&sandbox.id)?;
    let status = ended::ended(&now, container).filter(|_| now.uid == sandbox.uid);
    let Some(status) = status.filter(|_| now.status.phase != Phase::Deleting.name()) else {
        let (live, _) = app.running(&sandbox.id)?;
        return Ok(live.sandbox.attach(container, from_start).await?);
    };
    let mut containers = owner.spec.containers.iter();
    let kept = containers.any(|it| it.name.as_str() == container && it.await_attach);
    if !from_start || !kept {
        return Ok(ended::replay(status, None));
    }
    if status.log_dropped_bytes > 0
        && let Some(live) = owner.unread()
        && let Ok(stream) = live.sandbox.attach(container, true).await
    {
        return Ok(stream);
    }
    Ok(ended::replay(status, Some(app.log_path(owner, &now, container))))
}

/// Passes everything on in both directions until either side is done.
async fn converse(
    sink: &mut Sink,
    source: SplitStream<WebSocket>,
    begun: Result<ProcessStream, ApiError>,
) {
    match begun {
        Err(error) => {
            let message = StreamMessage::Error { message: error.body().error.clone() };
            tell(sink, &message).await.ok();
        }
        Ok(ProcessStream { input, output }) => {
            tokio::select! {
                () = take_input(source, input) => {}
                () = give_output(sink, output) => {}
            }
        }
    }
    // The client may be gone already.
    sink.send(Message::Close(None)).await.ok();
    sink.flush().await.ok();
}

async fn tell(sink: &mut Sink, message: &StreamMessage) -> Result<(), axum::Error> {
    // Strings and numbers: there is nothing that could not be written.
    sink.send(Message::Text(serde_json::to_string(message).unwrap_or_default().into())).await
}

/// Ends when the client is gone.
async fn take_input(mut source: SplitStream<WebSocket>, input: mpsc::Sender<ProcessInput>) {
    while let Some(Ok(message)) = source.next().await {
        let told = match message {
            Message::Binary(data) if data.first() == Some(&(StreamChannel::Stdin as u8)) => {
                ProcessInput::Stdin(data.slice(1..))
            }
            Message::Text(text) => match strict::from_json(text.as_bytes()) {
                Ok(StreamMessage::StdinEnd) => ProcessInput::StdinEnd,
                Ok(StreamMessage::Resize(size)) => {
                    ProcessInput::Resize(TerminalSize { rows: size.rows, columns: size.columns })
                }
                Ok(StreamMessage::Signal { signal }) if (1..=64).contains(&signal) => {
                    ProcessInput::Signal(SignalRequest { signal, everyone: false })
                }
                // A message that is not known is for a later version.
                _ => continue,
            },
            Message::Close(_) => return,
            _ => continue,
        };
        if input.send(told).await.is_err() {
            // The process takes nothing more; its output may still come.
            break;
        }
    }
    // Until the client hangs up.
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

/// Ends with the process.
async fn give_output(sink: &mut Sink, mut output: mpsc::Receiver<ProcessOutput>) {
    while let Some(told) = output.recv().await {
        let sent = match told {
            ProcessOutput::Stdout(data) => {
                sink.send(Message::Binary(framed(StreamChannel::Stdout, &data))).await
            }
            ProcessOutput::Stderr(data) => {
                sink.send(Message::Binary(framed(StreamChannel::Stderr, &data))).await
            }
            ProcessOutput::Started => tell(sink, &StreamMessage::Started).await,
            ProcessOutput::StartFailed(failure) => {
                let code = failure.kind.exit_code();
                tell(sink, &StreamMessage::StartFailed { code, message: failure.message }).await
            }
            ProcessOutput::Exited(exited) => {
                let reason = exited.pids_limit.then(|| "PidsLimit".to_owned());
                tell(sink, &StreamMessage::Exited { code: exited.shell_code(), reason }).await
            }
            ProcessOutput::TransferDone(_) => Ok(()),
            ProcessOutput::Lost(message) => tell(sink, &StreamMessage::Error { message }).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

fn framed(channel: StreamChannel, data: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.put_u8(channel as u8);
    out.extend_from_slice(data);
    out.freeze()
}
