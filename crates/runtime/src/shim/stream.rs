//! A process's input and output over a conversation with the shim.
//!
//! Owns the two windows: output is acknowledged (`Credit`) when the client has taken it, so that a client who does not read slows its
//! process and nobody else; input waits here until the guest has room, bounded.

use std::collections::VecDeque;

use atoll_wire::frame::MAX_DATA_BYTES;
use atoll_wire::guest::{GuestMessage, HostMessage, INITIAL_WINDOW_BYTES};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{ProcessInput, ProcessOutput, ProcessStream};

use super::connection::{FrameReader, FrameWriter};

/// Chunks of output that wait for the client: as many as the window has.
const OUTPUT_CHUNKS: usize = INITIAL_WINDOW_BYTES as usize / MAX_DATA_BYTES;
/// Messages of the client that wait for this task.
const INPUT_CHUNKS: usize = 8;
/// Input that waits for the guest's window. Signals and sizes overtake it, up to here.
const WAITING_INPUT_BYTES: usize = 256 * 1024;

/// Serves a conversation whose request was answered with `Ok`.
pub(super) fn process_stream(reader: FrameReader, writer: FrameWriter) -> ProcessStream {
    let (input, from_client) = mpsc::channel(INPUT_CHUNKS);
    let (to_client, output) = mpsc::channel(OUTPUT_CHUNKS);
    let (to_writer, notes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let outgoing = tokio::spawn(write(writer, from_client, notes));
        read(reader, to_client, to_writer).await;
        // With its half the connection closes: the shim sees that the client is gone.
        outgoing.abort();
    });
    ProcessStream { input, output }
}

/// What the reading side tells the writing side.
enum Note {
    /// The client has taken so many bytes of output.
    Taken(u32),
    /// The guest takes so many bytes of input more.
    Room(u32),
}

async fn read(
    mut reader: FrameReader,
    to_client: mpsc::Sender<ProcessOutput>,
    to_writer: mpsc::UnboundedSender<Note>,
) {
    loop {
        let next = tokio::select! {
            next = reader.next() => next,
            () = to_client.closed() => return,
        };
        let told = match next {
            Ok(Some(frame)) => match GuestMessage::from_frame(frame) {
                Ok(GuestMessage::Credit(bytes)) => {
                    // The writer may have ended before: then input is of no use.
                    drop(to_writer.send(Note::Room(bytes)));
                    continue;
                }
                Ok(message) => told(message),
                Err(error) => Some(ProcessOutput::Lost(error.to_string())),
            },
            Ok(None) => Some(ProcessOutput::Lost("the shim closed the connection".into())),
            Err(error) => Some(ProcessOutput::Lost(error.to_string())),
        };
        let Some(told) = told else { continue };
        let (bytes, last) = match &told {
            ProcessOutput::Stdout(data) | ProcessOutput::Stderr(data) => (data.len(), false),
            ProcessOutput::Started => (0, false),
            _ => (0, true),
        };
        if to_client.send(told).await.is_err() || last {
            return;
        }
        if let Some(taken) = u32::try_from(bytes).ok().filter(|bytes| *bytes > 0) {
            drop(to_writer.send(Note::Taken(taken)));
        }
    }
}

/// What a client is told; `None` for messages that are of no conversation.
fn told(message: GuestMessage) -> Option<ProcessOutput> {
    Some(match message {
        GuestMessage::Started(_) => ProcessOutput::Started,
        GuestMessage::StartFailed(failure) => ProcessOutput::StartFailed(failure),
        GuestMessage::Stdout { data, .. } => ProcessOutput::Stdout(data.into()),
        GuestMessage::Stderr { data, .. } => ProcessOutput::Stderr(data.into()),
        GuestMessage::Exited(exited) => ProcessOutput::Exited(exited),
        GuestMessage::TransferDone(outcome) => ProcessOutput::TransferDone(outcome.error),
        GuestMessage::Refused(message) => ProcessOutput::Lost(message),
        GuestMessage::Credit(_)
        | GuestMessage::HelloAck(_)
        | GuestMessage::Processes(_)
        | GuestMessage::Done => return None,
    })
}

/// Input that waits for room.
struct Waiting {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing comes after what waits.
    ended: bool,
    end_told: bool,
    room: usize,
}

async fn write(
    mut writer: FrameWriter,
    mut from_client: mpsc::Receiver<ProcessInput>,
    mut notes: mpsc::UnboundedReceiver<Note>,
) {
    let mut waiting = Waiting {
        chunks: VecDeque::new(),
        bytes: 0,
        ended: false,
        end_told: false,
        room: INITIAL_WINDOW_BYTES as usize,
    };
    let mut client_open = true;
    loop {
        let message = tokio::select! {
            biased;
            note = notes.recv() => match note {
                Some(Note::Taken(bytes)) => Some(HostMessage::Credit(bytes)),
                Some(Note::Room(bytes)) => {
                    waiting.room = waiting.room.saturating_add(bytes as usize);
                    None
                }
                None => return,
            },
            input = from_client.recv(), if client_open && waiting.bytes < WAITING_INPUT_BYTES => {
                match input {
                    Some(ProcessInput::Stdin(data)) => {
                        waiting.add(data);
                        None
                    }
                    Some(ProcessInput::StdinEnd) => {
                        waiting.ended = true;
                        None
                    }
                    Some(ProcessInput::Resize(size)) => Some(HostMessage::Resize(size)),
                    Some(ProcessInput::Signal(signal)) => Some(HostMessage::Signal(signal)),
                    None => {
                        client_open = false;
                        None
                    }
                }
            }
        };
        if let Some(message) = message
            && send(&mut writer, message).await.is_err()
        {
            return;
        }
        while let Some(message) = waiting.next() {
            if send(&mut writer, message).await.is_err() {
                return;
            }
        }
    }
}

impl Waiting {
    fn add(&mut self, data: Bytes) {
        if !self.ended && !data.is_empty() {
            self.bytes += data.len();
            self.chunks.push_back(data);
        }
    }

    /// What there is room for now.
    fn next(&mut self) -> Option<HostMessage> {
        let Some(mut chunk) = self.chunks.pop_front() else {
            let tell = self.ended && !self.end_told;
            self.end_told |= tell;
            return tell.then_some(HostMessage::StdinEnd);
        };
        let length = chunk.len().min(self.room).min(MAX_DATA_BYTES);
        let part = chunk.split_to(length);
        if !chunk.is_empty() {
            self.chunks.push_front(chunk);
        }
        if part.is_empty() {
            return None;
        }
        self.room -= part.len();
        self.bytes -= part.len();
        Some(HostMessage::Stdin(part.to_vec()))
    }
}

async fn send(writer: &mut FrameWriter, message: HostMessage) -> std::io::Result<()> {
    let frame = message.into_frame(0).map_err(std::io::Error::other)?;
    writer.send(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_keeps_to_the_window_and_ends_after_its_last_byte() {
        let (chunks, ended, end_told) = (VecDeque::new(), false, false);
        let mut waiting = Waiting { chunks, bytes: 0, ended, end_told, room: 10 };
        waiting.add(Bytes::from_static(b"0123456"));
        waiting.add(Bytes::from_static(b"789abc"));
        waiting.ended = true;
        assert_eq!(waiting.next(), Some(HostMessage::Stdin(b"0123456".to_vec())));
        assert_eq!(waiting.next(), Some(HostMessage::Stdin(b"789".to_vec())));
        assert_eq!(waiting.next(), None, "the window is full");
        waiting.room += 100;
        assert_eq!(waiting.next(), Some(HostMessage::Stdin(b"abc".to_vec())));
        assert_eq!(waiting.next(), Some(HostMessage::StdinEnd));
        assert_eq!(waiting.next(), None);
        assert_eq!(waiting.bytes, 0);
    }
}
