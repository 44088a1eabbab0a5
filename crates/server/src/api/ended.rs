//! Attaching to a container that has ended: its output comes from its log, and after it the end that was recorded, as if the client had
//! been there in time. Never less than all of it without saying so.

use std::path::PathBuf;

use atoll_model::state::EndReason;
use atoll_runtime::{ProcessOutput, ProcessStream};
use atoll_wire::guest::{Exited, StartFailure, StartFailureKind};
use atoll_wire::log::{LogRecord, LogStream};
use atoll_wire::rest::{ContainerStatus, Sandbox};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::logs::LogReader;

/// Chunks under way to a client.
const CHANNEL_CHUNKS: usize = 8;

/// A container's status, once it has ended.
pub(super) fn ended<'a>(sandbox: &'a Sandbox, container: &str) -> Option<&'a ContainerStatus> {
    sandbox.status.containers.iter().find(|it| it.name == container && it.state == "exited")
}

/// The stream of a container that has ended. With the path of its log all output, else only the end.
pub(super) fn replay(status: &ContainerStatus, log: Option<PathBuf>) -> ProcessStream {
    // Nobody takes input any more.
    let (input, _) = mpsc::channel(1);
    let (to_client, output) = mpsc::channel(CHANNEL_CHUNKS);
    let (end, dropped_bytes) = (last_word(status), status.log_dropped_bytes);
    tokio::spawn(async move {
        let last = match log {
            Some(_) if dropped_bytes > 0 => ProcessOutput::Lost(format!(
                "{dropped_bytes} bytes of its output are no longer in its log: read the rest of it with `atoll logs`"
            )),
            Some(path) => match give_output(path, &to_client).await {
                Ok(()) => end,
                Err(error) => {
                    ProcessOutput::Lost(format!("its log cannot be read to its end: {error}"))
                }
            },
            None => end,
        };
        // The client may be gone.
        to_client.send(last).await.ok();
    });
    ProcessStream { input, output }
}

/// How it ended, as its clients hear it.
fn last_word(status: &ContainerStatus) -> ProcessOutput {
    let reason = status.reason.as_deref().and_then(EndReason::from_name);
    let message = status.message.clone().unwrap_or_default();
    match (reason, status.exit_code) {
        (Some(EndReason::StartFailed), Some(code)) => {
            ProcessOutput::StartFailed(StartFailure { kind: start_failure_kind(code), message })
        }
        (reason, Some(code)) => ProcessOutput::Exited(Exited {
            code: status.signal.is_none().then_some(code),
            signal: status.signal,
            pids_limit: reason == Some(EndReason::PidsLimit),
        }),
        (_, None) if message.is_empty() => {
            ProcessOutput::Lost("how it ended is not known".to_owned())
        }
        (_, None) => ProcessOutput::Lost(format!("how it ended is not known: {message}")),
    }
}

fn start_failure_kind(code: i32) -> StartFailureKind {
    let kinds = [StartFailureKind::NotFound, StartFailureKind::NotExecutable];
    kinds.into_iter().find(|it| it.exit_code() == code).unwrap_or(StartFailureKind::Other)
}

async fn give_output(
    path: PathBuf,
    to_client: &mpsc::Sender<ProcessOutput>,
) -> std::io::Result<()> {
    let mut reader = LogReader::new(path);
    loop {
        let lines = reader.read_lines().await?;
        if lines.is_empty() {
            return Ok(());
        }
        for chunk in chunks(&lines) {
            if to_client.send(chunk).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Records as output, those of one stream that follow each other in one piece.
fn chunks(lines: &[u8]) -> Vec<ProcessOutput> {
    let mut runs: Vec<(LogStream, BytesMut)> = Vec::new();
    for record in lines.split(|byte| *byte == b'\n').filter_map(LogRecord::parse) {
        if runs.last().is_none_or(|(stream, _)| *stream != record.stream) {
            runs.push((record.stream, BytesMut::new()));
        }
        if let Some((_, bytes)) = runs.last_mut() {
            bytes.extend_from_slice(&record.text);
            bytes.extend_from_slice(if record.full { b"\n" } else { b"" });
        }
    }
    let told = |(stream, bytes): (LogStream, BytesMut)| {
        let bytes: Bytes = bytes.freeze();
        match stream {
            LogStream::Stdout => Some(ProcessOutput::Stdout(bytes)),
            LogStream::Stderr => Some(ProcessOutput::Stderr(bytes)),
            LogStream::Gap => None,
        }
    };
    runs.into_iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(exit_code: Option<i32>, signal: Option<i32>, reason: &str) -> ContainerStatus {
        let reason = Some(reason.to_owned());
        ContainerStatus { exit_code, signal, reason, ..ContainerStatus::default() }
    }

    #[test]
    fn an_end_is_told_as_it_was_recorded_and_never_guessed() {
        let exited =
            |code, signal, pids_limit| ProcessOutput::Exited(Exited { code, signal, pids_limit });
        assert_eq!(last_word(&status(Some(7), None, "Error")), exited(Some(7), None, false));
        assert_eq!(
            last_word(&status(Some(137), Some(9), "PidsLimit")),
            exited(None, Some(9), true)
        );
        assert!(matches!(
            last_word(&status(Some(127), None, "StartFailed")),
            ProcessOutput::StartFailed(StartFailure { kind: StartFailureKind::NotFound, .. })
        ));
        assert!(matches!(last_word(&status(None, None, "Unknown")), ProcessOutput::Lost(_)));
    }

    #[test]
    fn output_comes_back_byte_for_byte_in_its_order() {
        let records =
            b"t stdout F one\nt stdout P tw\nt stderr F o\nt gap F 3\nt stdout P \xff end\n";
        assert_eq!(
            chunks(records),
            [
                ProcessOutput::Stdout(Bytes::from_static(b"one\ntw")),
                ProcessOutput::Stderr(Bytes::from_static(b"o\n")),
                ProcessOutput::Stdout(Bytes::from_static(b"\xff end")),
            ]
        );
    }

    #[tokio::test]
    async fn a_log_that_has_lost_something_is_not_passed_off_as_whole() {
        let mut whole = status(Some(0), None, "Completed");
        whole.log_dropped_bytes = 5;
        let mut stream = replay(&whole, Some(PathBuf::from("/nowhere")));
        assert!(matches!(
            stream.output.recv().await,
            Some(ProcessOutput::Lost(message)) if message.starts_with("5 bytes")
        ));
        let mut only_end = replay(&whole, None);
        assert!(matches!(only_end.output.recv().await, Some(ProcessOutput::Exited(_))));
    }
}
