//! Connections to a shim: one a conversation. Finding it, the first request, frames in and out.
//!
//! Owns the transport and its deadlines. Knows nothing of what a conversation is about.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_wire::frame::{Decoder, Frame};
use atoll_wire::shim::{REPLY_KIND, REQUEST_KIND, ShimReply, ShimRequest};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::RuntimeError;

use super::directory::{Found, SandboxDirectory, ShimLock};

/// How long a shim may take to answer a request (guess: it never waits for a guest before it answers, but its host may be busy).
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Between tries to reach a shim that has just begun: it listens within a millisecond.
const PAUSE: Duration = Duration::from_millis(1);
/// Longest path of a socket, with its closing zero. SOURCE: unix(7), sun_path.
const MAX_SOCKET_PATH_BYTES: usize = 107;
const READ_BYTES: usize = 64 * 1024;

/// The incoming side.
pub(super) struct FrameReader {
    half: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// The outgoing side.
pub(super) struct FrameWriter {
    half: OwnedWriteHalf,
    bytes: Vec<u8>,
}

/// Both sides of a connection.
pub(super) fn frames(stream: UnixStream) -> (FrameReader, FrameWriter) {
    let (read, write) = stream.into_split();
    let reader = FrameReader { half: read, decoder: Decoder::new(), buffer: Vec::new() };
    (reader, FrameWriter { half: write, bytes: Vec::new() })
}

impl FrameReader {
    /// The next frame; `None` when the shim has closed. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Ok(Some(frame));
            }
            self.half.readable().await?;
            self.buffer.clear();
            self.buffer.reserve(READ_BYTES);
            match self.half.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(_) => self.decoder.push(&self.buffer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nothing is kept for a conversation that is silent.
                    self.buffer = Vec::new();
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl FrameWriter {
    /// Writes a frame whole.
    pub(super) async fn send(&mut self, frame: &Frame) -> std::io::Result<()> {
        self.bytes.clear();
        frame.encode(&mut self.bytes).map_err(std::io::Error::other)?;
        self.half.write_all(&self.bytes).await
    }
}

/// Why there is no conversation.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Nobody listens: the shim is gone or has not begun to.
    NobodyListens(String),
    /// Somebody listens and does not answer as a shim does.
    Silent(String),
    /// The request itself cannot be sent.
    Unfit(String),
}

/// Connects and asks; gives the answer and the open conversation.
pub(super) async fn ask(
    directory: &SandboxDirectory,
    request: &ShimRequest,
) -> Result<(ShimReply, FrameReader, FrameWriter), ConnectError> {
    let payload =
        serde_json::to_vec(request).map_err(|error| ConnectError::Unfit(error.to_string()))?;
    let frame = Frame { kind: REQUEST_KIND, stream: 0, payload };
    frame.encode(&mut Vec::new()).map_err(|error| ConnectError::Unfit(error.to_string()))?;
    let conversation = async {
        let stream = connect(&directory.socket()).await?;
        let (mut reader, mut writer) = frames(stream);
        let lost = |error: std::io::Error| ConnectError::Silent(error.to_string());
        writer.send(&frame).await.map_err(lost)?;
        let answer = reader.next().await.map_err(lost)?;
        let closed = || ConnectError::NobodyListens("it closed the connection".into());
        let reply = parse_reply(&answer.ok_or_else(closed)?)?;
        Ok((reply, reader, writer))
    };
    match tokio::time::timeout(ANSWER_WITHIN, conversation).await {
        Ok(answer) => answer,
        Err(_) => Err(ConnectError::Silent(format!("no answer in {ANSWER_WITHIN:?}"))),
    }
}

fn parse_reply(frame: &Frame) -> Result<ShimReply, ConnectError> {
    if frame.kind != REPLY_KIND {
        return Err(ConnectError::Silent(format!("a frame of kind {} is no answer", frame.kind)));
    }
    serde_json::from_slice(&frame.payload)
        .map_err(|error| ConnectError::Silent(format!("its answer is malformed: {error}")))
}

async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
            ConnectError::NobodyListens(error.to_string())
        }
        _ => ConnectError::Silent(error.to_string()),
    };
    if path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
        return UnixStream::connect(path).await.map_err(failed);
    }
    // Too long for an address: through a descriptor of its directory.
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ConnectError::Unfit("a socket without a name".into()));
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    UnixStream::connect(short).await.map_err(failed)
}

/// [`ask`] for a sandbox that is believed to run: a shim that lives and does not listen yet is waited for.
pub(super) async fn ask_running(
    uid: &str,
    directory: &SandboxDirectory,
    request: &ShimRequest,
) -> Result<(ShimReply, FrameReader, FrameWriter), RuntimeError> {
    let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
    let unreachable = |message: String| RuntimeError::Unreachable { uid: uid.to_owned(), message };
    loop {
        let why = match ask(directory, request).await {
            Ok((ShimReply::Refused { message }, ..)) => {
                return Err(RuntimeError::Refused { message });
            }
            Ok(answer) => return Ok(answer),
            Err(ConnectError::Unfit(message)) => return Err(RuntimeError::Refused { message }),
            Err(ConnectError::Silent(message)) => return Err(unreachable(message)),
            Err(ConnectError::NobodyListens(message)) => message,
        };
        if matches!(directory.end(), Found::Whole(_)) {
            return Err(RuntimeError::Ended { what: "the sandbox".into() });
        }
        let lives = matches!(directory.lock(), Ok(ShimLock::Held));
        if !lives || tokio::time::Instant::now() >= deadline {
            return Err(unreachable(why));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
