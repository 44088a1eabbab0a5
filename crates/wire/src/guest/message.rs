//! Messages of the guest protocol as values: made into frames, and read from frames with every bound checked.
//!
//! Both sides use the same two enums, so that no second place knows what a payload looks like. What a guest says is cut to bounds here:
//! texts, lists, data. A frame that breaks a bound which cannot be mended by cutting is an error, never a panic.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Boot, Exited, GuestKind, Hello, HelloAck, HostKind, MAX_STREAMS, ProcessInfo, ProcessSpec,
    SignalRequest, StartFailure, Started, TerminalSize, TransferOutcome, TransferRequest,
};
use crate::frame::{Frame, MAX_DATA_BYTES, MAX_PAYLOAD_BYTES, PayloadTooLarge};

/// Most characters of a text that a guest sends: a reason, a command line.
const MAX_TEXT_CHARS: usize = 1024;
/// Most processes that a guest lists.
const MAX_PROCESSES: usize = 1024;
/// Most transfers and processes a HelloAck may list: each live stream once.
const MAX_STREAM_STATES: usize = MAX_STREAMS + 1;
/// Bytes of the offset before the data of an output frame.
const OFFSET_BYTES: usize = 8;

/// A message that cannot be sent, or a frame that is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The number is of no kind of this direction: the peer is newer, or it reflects what it was sent.
    #[error("a frame of the unknown kind {kind}")]
    UnknownKind {
        /// The number.
        kind: u8,
    },
    /// The payload is not what the kind promises.
    #[error("a frame of kind {kind} with a malformed payload")]
    Malformed {
        /// The kind's number.
        kind: u8,
        /// Why, where JSON was expected.
        source: Option<serde_json::Error>,
    },
    /// More than a frame takes: arguments and environment of a process together, for instance.
    #[error("a message of kind {kind} is too large for the channel to the guest")]
    TooLarge {
        /// The kind's number.
        kind: u8,
        /// How large.
        source: PayloadTooLarge,
    },
}

/// What a host says to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMessage {
    /// [`HostKind::Hello`].
    Hello(Hello),
    /// [`HostKind::Boot`].
    Boot(Boot),
    /// [`HostKind::Start`].
    Start(ProcessSpec),
    /// [`HostKind::Exec`].
    Exec(ProcessSpec),
    /// [`HostKind::Stdin`], at most [`MAX_DATA_BYTES`].
    Stdin(Vec<u8>),
    /// [`HostKind::StdinEnd`].
    StdinEnd,
    /// [`HostKind::Resize`].
    Resize(TerminalSize),
    /// [`HostKind::Signal`].
    Signal(SignalRequest),
    /// [`HostKind::Credit`].
    Credit(u32),
    /// [`HostKind::ExitAck`].
    ExitAck,
    /// [`HostKind::Upload`].
    Upload(TransferRequest),
    /// [`HostKind::Download`].
    Download(TransferRequest),
    /// [`HostKind::ListProcesses`].
    ListProcesses,
    /// [`HostKind::SetHostname`].
    SetHostname(String),
    /// [`HostKind::Detach`].
    Detach,
}

/// What a guest says to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestMessage {
    /// [`GuestKind::HelloAck`].
    HelloAck(HelloAck),
    /// [`GuestKind::Started`].
    Started(Started),
    /// [`GuestKind::StartFailed`].
    StartFailed(StartFailure),
    /// [`GuestKind::Stdout`], at most [`MAX_DATA_BYTES`].
    Stdout {
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// [`GuestKind::Stderr`], at most [`MAX_DATA_BYTES`].
    Stderr {
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// [`GuestKind::Exited`].
    Exited(Exited),
    /// [`GuestKind::Credit`].
    Credit(u32),
    /// [`GuestKind::TransferDone`].
    TransferDone(TransferOutcome),
    /// [`GuestKind::Processes`].
    Processes(Vec<ProcessInfo>),
    /// [`GuestKind::Done`].
    Done,
    /// [`GuestKind::Refused`].
    Refused(String),
}

impl HostMessage {
    /// The frame that carries it.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`]: refuse the user's request with it.
    pub fn into_frame(self, stream: u32) -> Result<Frame, MessageError> {
        let (kind, payload) = match self {
            Self::Hello(hello) => (HostKind::Hello, json(&hello)),
            Self::Boot(boot) => (HostKind::Boot, json(&boot)),
            Self::Start(spec) => (HostKind::Start, json(&spec)),
            Self::Exec(spec) => (HostKind::Exec, json(&spec)),
            Self::Stdin(data) => (HostKind::Stdin, data),
            Self::StdinEnd => (HostKind::StdinEnd, Vec::new()),
            Self::Resize(size) => (HostKind::Resize, json(&size)),
            Self::Signal(request) => (HostKind::Signal, json(&request)),
            Self::Credit(bytes) => (HostKind::Credit, bytes.to_le_bytes().to_vec()),
            Self::ExitAck => (HostKind::ExitAck, Vec::new()),
            Self::Upload(request) => (HostKind::Upload, json(&request)),
            Self::Download(request) => (HostKind::Download, json(&request)),
            Self::ListProcesses => (HostKind::ListProcesses, Vec::new()),
            Self::SetHostname(name) => (HostKind::SetHostname, name.into_bytes()),
            Self::Detach => (HostKind::Detach, Vec::new()),
        };
        framed(kind.number(), stream, payload, kind == HostKind::Stdin)
    }

    /// Reads a frame that a host sent.
    ///
    /// # Errors
    /// [`MessageError`] when it is no message of this direction.
    pub fn from_frame(frame: Frame) -> Result<Self, MessageError> {
        let Frame { kind: number, payload, .. } = frame;
        let kind =
            HostKind::from_number(number).ok_or(MessageError::UnknownKind { kind: number })?;
        Ok(match kind {
            HostKind::Hello => Self::Hello(parse(number, &payload)?),
            HostKind::Boot => Self::Boot(parse(number, &payload)?),
            HostKind::Start => Self::Start(parse(number, &payload)?),
            HostKind::Exec => Self::Exec(parse(number, &payload)?),
            HostKind::Stdin => Self::Stdin(bounded_data(number, payload)?),
            HostKind::StdinEnd => Self::StdinEnd,
            HostKind::Resize => Self::Resize(parse(number, &payload)?),
            HostKind::Signal => Self::Signal(parse(number, &payload)?),
            HostKind::Credit => Self::Credit(word(number, &payload)?),
            HostKind::ExitAck => Self::ExitAck,
            HostKind::Upload => Self::Upload(parse(number, &payload)?),
            HostKind::Download => Self::Download(parse(number, &payload)?),
            HostKind::ListProcesses => Self::ListProcesses,
            HostKind::SetHostname => Self::SetHostname(text(number, payload)?),
            HostKind::Detach => Self::Detach,
        })
    }
}

impl GuestMessage {
    /// The frame that carries it. Guests send output by [`crate::frame::begin_frame`] instead, without a copy.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`].
    pub fn into_frame(self, stream: u32) -> Result<Frame, MessageError> {
        let data = matches!(self, Self::Stdout { .. } | Self::Stderr { .. });
        let (kind, payload) = match self {
            Self::HelloAck(ack) => (GuestKind::HelloAck, json(&ack)),
            Self::Started(started) => (GuestKind::Started, json(&started)),
            Self::StartFailed(failure) => (GuestKind::StartFailed, json(&failure)),
            Self::Stdout { offset, data } => (GuestKind::Stdout, with_offset(offset, &data)),
            Self::Stderr { offset, data } => (GuestKind::Stderr, with_offset(offset, &data)),
            Self::Exited(exited) => (GuestKind::Exited, json(&exited)),
            Self::Credit(bytes) => (GuestKind::Credit, bytes.to_le_bytes().to_vec()),
            Self::TransferDone(outcome) => (GuestKind::TransferDone, json(&outcome)),
            Self::Processes(processes) => (GuestKind::Processes, json(&processes)),
            Self::Done => (GuestKind::Done, Vec::new()),
            Self::Refused(reason) => (GuestKind::Refused, reason.into_bytes()),
        };
        framed(kind.number(), stream, payload, data)
    }

    /// Reads a frame that a guest sent: hostile input. Texts and lists are cut to their bounds, control characters in texts replaced.
    ///
    /// # Errors
    /// [`MessageError`] when it is no message of this direction.
    pub fn from_frame(frame: Frame) -> Result<Self, MessageError> {
        let Frame { kind: number, payload, .. } = frame;
        let kind =
            GuestKind::from_number(number).ok_or(MessageError::UnknownKind { kind: number })?;
        Ok(match kind {
            GuestKind::HelloAck => Self::HelloAck(bounded_ack(parse(number, &payload)?)),
            GuestKind::Started => Self::Started(parse(number, &payload)?),
            GuestKind::StartFailed => {
                let failure: StartFailure = parse(number, &payload)?;
                let message = cut(&failure.message);
                Self::StartFailed(StartFailure { message, ..failure })
            }
            GuestKind::Stdout => {
                let (offset, data) = split_offset(number, payload)?;
                Self::Stdout { offset, data }
            }
            GuestKind::Stderr => {
                let (offset, data) = split_offset(number, payload)?;
                Self::Stderr { offset, data }
            }
            GuestKind::Exited => Self::Exited(parse(number, &payload)?),
            GuestKind::Credit => Self::Credit(word(number, &payload)?),
            GuestKind::TransferDone => {
                let outcome: TransferOutcome = parse(number, &payload)?;
                Self::TransferDone(TransferOutcome {
                    error: outcome.error.map(|error| cut(&error)),
                })
            }
            GuestKind::Processes => {
                let mut processes: Vec<ProcessInfo> = parse(number, &payload)?;
                processes.truncate(MAX_PROCESSES);
                for process in &mut processes {
                    process.command = cut(&process.command);
                }
                Self::Processes(processes)
            }
            GuestKind::Done => Self::Done,
            GuestKind::Refused => Self::Refused(cut(&String::from_utf8_lossy(&payload))),
        })
    }
}

/// These types have string keys and finite numbers only, so that serialising them cannot fail; an empty payload would be refused by
/// the reader.
fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(payload)
        .map_err(|source| MessageError::Malformed { kind, source: Some(source) })
}

fn framed(kind: u8, stream: u32, payload: Vec<u8>, data: bool) -> Result<Frame, MessageError> {
    let bytes = payload.len();
    let most = if data { MAX_DATA_BYTES + OFFSET_BYTES } else { MAX_PAYLOAD_BYTES };
    if bytes > most {
        return Err(MessageError::TooLarge { kind, source: PayloadTooLarge { bytes } });
    }
    Ok(Frame { kind, stream, payload })
}

fn bounded_data(kind: u8, data: Vec<u8>) -> Result<Vec<u8>, MessageError> {
    if data.len() > MAX_DATA_BYTES {
        return Err(MessageError::Malformed { kind, source: None });
    }
    Ok(data)
}

fn with_offset(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(OFFSET_BYTES + data.len());
    payload.extend_from_slice(&offset.to_le_bytes());
    payload.extend_from_slice(data);
    payload
}

fn split_offset(kind: u8, mut payload: Vec<u8>) -> Result<(u64, Vec<u8>), MessageError> {
    let offset = payload.first_chunk::<OFFSET_BYTES>().copied().map(u64::from_le_bytes);
    let offset = offset.ok_or(MessageError::Malformed { kind, source: None })?;
    payload.drain(..OFFSET_BYTES);
    Ok((offset, bounded_data(kind, payload)?))
}

fn word(kind: u8, payload: &[u8]) -> Result<u32, MessageError> {
    let bytes = payload.try_into().map_err(|_| MessageError::Malformed { kind, source: None })?;
    Ok(u32::from_le_bytes(bytes))
}

fn text(kind: u8, payload: Vec<u8>) -> Result<String, MessageError> {
    String::from_utf8(payload).map_err(|_| MessageError::Malformed { kind, source: None })
}

fn bounded_ack(mut ack: HelloAck) -> HelloAck {
    ack.streams.truncate(MAX_STREAM_STATES);
    ack.build = cut(&ack.build).chars().take(64).collect();
    ack
}

/// A text from a guest that may stand in a log or on a terminal.
fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Fuzz body: any bytes as frames of both directions. What is read can be sent again and is read the same.
///
/// # Panics
/// When a message does not survive its own frame: a bug that the fuzzer is to find.
pub fn fuzz_guest_messages(data: &[u8]) {
    let [kind, payload @ ..] = data else { return };
    let frame = Frame { kind: *kind, stream: 1, payload: payload.to_vec() };
    if let Ok(message) = HostMessage::from_frame(frame.clone())
        && let Ok(again) = message.clone().into_frame(1)
    {
        assert_eq!(HostMessage::from_frame(again).ok(), Some(message));
    }
    if let Ok(message) = GuestMessage::from_frame(frame)
        && let Ok(again) = message.clone().into_frame(1)
    {
        assert_eq!(GuestMessage::from_frame(again).ok(), Some(message));
    }
}

#[cfg(test)]
mod tests;
