//! Logs of a container: what is on disk, and with `follow` what comes, until the container has ended.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_model::state::Phase;
use atoll_wire::log::LogRecord;
use atoll_wire::rest::Sandbox;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::input::Params;
use super::{App, wait};
use crate::logs::{Changes, LogReader};
use crate::owner::OwnerHandle;
use crate::serve::until_true;

/// Chunks under way to a client.
const CHANNEL_CHUNKS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Text,
    Records,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogParams {
    container: Option<String>,
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
    #[serde(default)]
    format: Format,
}

/// `GET /api/v1/sandboxes/ID/logs`.
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Response, ApiError> {
    let sandbox = app.sandbox(&id)?;
    let owner = app.owner(&sandbox)?;
    let container = app.container(&owner, params.container.as_deref())?;
    let path = app.log_path(&owner, &sandbox, &container);
    LogReader::new(path.clone()).check().await.map_err(|error| unreadable(&container, &error))?;
    let (sender, receiver) = mpsc::channel(CHANNEL_CHUNKS);
    let mut ending = app.ending();
    tokio::spawn(async move {
        let job = Job { app, sandbox, container, path, params, sender };
        tokio::select! {
            result = job.run() => if let Err(error) = result {
                tracing::warn!(%error, id, "a log could not be read to its end");
            },
            () = until_true(&mut ending) => {}
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The place stays in the server's log: clients learn no paths of the host.
fn unreadable(container: &str, error: &std::io::Error) -> ApiError {
    tracing::error!(%error, container, "a log is refused");
    let text = format!(
        "the log of container {container:?} cannot be read, or something else stands in its place: see the server's log"
    );
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text)
}

impl App {
    /// Where a container's log lies, whether it runs or not.
    pub(super) fn log_path(
        &self,
        owner: &OwnerHandle,
        sandbox: &Sandbox,
        container: &str,
    ) -> PathBuf {
        let told = owner.live().and_then(|live| live.sandbox.log_path(container));
        told.unwrap_or_else(|| {
            let directory = self.context.sandboxes_directory.join(&sandbox.uid);
            directory.join("logs").join(format!("{container}.log"))
        })
    }
}

struct Job {
    app: Arc<App>,
    sandbox: Arc<Sandbox>,
    container: String,
    path: PathBuf,
    params: LogParams,
    sender: mpsc::Sender<Bytes>,
}

impl Job {
    async fn run(self) -> std::io::Result<()> {
        if self.params.follow {
            self.follow_until(|it| {
                !matches!(
                    Phase::from_name(&it.status.phase),
                    Some(Phase::Pending | Phase::Scheduled)
                )
            })
            .await;
        }
        let mut reader = LogReader::new(self.path.clone());
        // Before reading: what is written after a read wakes.
        let mut changes = if self.params.follow { Changes::of(&self.path).ok() } else { None };
        if let Some(count) = self.params.tail {
            let kept = tail(&mut reader, count).await?;
            if !self.give(&kept).await {
                return Ok(());
            }
        }
        let ended = self.follow_until(|it| has_ended(it, &self.container));
        tokio::pin!(ended);
        let mut over = !self.params.follow;
        loop {
            let lines = reader.read_lines().await?;
            if !lines.is_empty() {
                if !self.give(&lines).await {
                    return Ok(());
                }
                continue;
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                () = &mut ended => over = true,
                () = Changes::next(&mut changes) => {}
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    async fn follow_until(&self, decided: impl Fn(&Sandbox) -> bool) {
        wait::follow(&self.app, &self.sandbox.id, Some(&self.sandbox.uid), decided).await;
    }

    /// False: the client is gone.
    async fn give(&self, lines: &[u8]) -> bool {
        let out = match self.params.format {
            Format::Records => lines.to_vec(),
            Format::Text => text_of(lines),
        };
        out.is_empty() || self.sender.send(Bytes::from(out)).await.is_ok()
    }
}

fn has_ended(sandbox: &Sandbox, container: &str) -> bool {
    let phase = Phase::from_name(&sandbox.status.phase);
    let over = phase.is_none_or(|it| it.is_over() || it == Phase::Deleting);
    over || sandbox.status.containers.iter().any(|it| it.name == container && it.state == "exited")
}

/// The bytes as they were written, without time and stream. Lines that are no records (torn by a crash) are left out.
fn text_of(lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len());
    for record in lines.split(|byte| *byte == b'\n').filter_map(LogRecord::parse) {
        out.extend_from_slice(&record.text);
        if record.full {
            out.push(b'\n');
        }
    }
    out
}

/// The last lines of what is there now, as records.
async fn tail(reader: &mut LogReader, count: usize) -> std::io::Result<Vec<u8>> {
    let mut kept: Vec<u8> = Vec::new();
    loop {
        let lines = reader.read_lines().await?;
        if lines.is_empty() {
            return Ok(kept);
        }
        kept.extend_from_slice(&lines);
        let begin = begin_of_last(&kept, count);
        kept.drain(..begin);
    }
}

/// Where the last `count` whole lines of output begin; records of a line that goes on count with it.
fn begin_of_last(records: &[u8], count: usize) -> usize {
    let (mut begin, mut found) = (records.len(), 0);
    let mut end = records.len();
    while end > 0 {
        let start =
            records[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let ends_line = LogRecord::parse(&records[start..end - 1]).is_some_and(|it| it.full);
        if ends_line || end == records.len() {
            if found == count {
                break;
            }
            found += 1;
        }
        begin = start;
        end = start;
    }
    begin
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &[u8] = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stdout P tw\n2026-01-01T00:00:00Z stderr F o\ntorn\n2026-01-01T00:00:00Z stdout P thr\n";

    #[test]
    fn text_is_what_was_written() {
        assert_eq!(text_of(RECORDS), b"one\ntwo\nthr");
    }

    #[test]
    fn a_tail_counts_lines_and_not_records() {
        let last = |count| text_of(&RECORDS[begin_of_last(RECORDS, count)..]);
        assert_eq!(last(0), b"");
        assert_eq!(last(1), b"thr");
        assert_eq!(last(2), b"two\nthr");
        assert_eq!(last(3), b"one\ntwo\nthr");
        assert_eq!(last(100), b"one\ntwo\nthr");
        assert_eq!(begin_of_last(b"", 3), 0);
    }
}
