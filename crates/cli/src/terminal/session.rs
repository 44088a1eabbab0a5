//! Connects this process to one in a sandbox: input, output, signals, the terminal's size, until one of the two ends.
//!
//! ```text
//! stdin ──thread──► queue ──► WebSocket ──► process ──► WebSocket ──► queue ──thread──► stdout, stderr
//! SIGINT, SIGWINCH ──────────►                           (each queue is short: who is slow slows the other end)
//! ```
//! Blocking reads and writes have threads of their own, so that signals are heard while they wait.

use std::io::{Read, Write};

use atoll_wire::rest::{SignalSandbox, StreamMessage};
use bytes::Bytes;
use reqwest::Method;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::{RawTerminal, TerminalError};
use crate::client::{
    Client, ClientError, ProcessConnection, ProcessEvent, ProcessOutput, sandbox_path,
};

/// Bytes read from standard input at a time. Guess: more than a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// Messages that may wait in each direction.
const QUEUE: usize = 8;
/// Ctrl-P, Ctrl-Q leave a terminal session. SOURCE: docker's default, which fingers know.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How signals reach the process.
#[derive(Clone)]
pub(crate) enum SignalPath {
    /// Over the stream: for what was exec'ed.
    Stream,
    /// By a request of their own, so that unread input does not hold them up: for a main process.
    Request {
        /// To whom.
        client: Client,
        /// The sandbox.
        name: String,
        /// The container; the first when left out.
        container: Option<String>,
    },
    /// They do not: Ctrl-C leaves.
    Leave,
}

/// What a session connects.
pub(crate) struct Session {
    /// The process.
    pub(crate) connection: ProcessConnection,
    /// Pass standard input on.
    pub(crate) stdin: bool,
    /// Raw mode, resize, and Ctrl-C as a key.
    pub(crate) tty: bool,
    /// The keys Ctrl-P, Ctrl-Q leave.
    pub(crate) detach_keys: bool,
    /// How signals reach the process.
    pub(crate) signals: SignalPath,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// The process ended, and all its output was written.
    Exited {
        /// As a shell shows it.
        code: i32,
        /// Why, where known.
        reason: Option<String>,
    },
    /// The process could not be started.
    StartFailed {
        /// 125 to 127.
        code: i32,
        /// Why.
        message: String,
    },
    /// The server says that it is over.
    Failed {
        /// Why.
        message: String,
    },
    /// The connection broke.
    Lost(ClientError),
    /// The user left; the process goes on.
    Detached,
    /// This process was told to end by a signal (Ctrl-C for the second time: SIGINT).
    Signalled(i32),
    /// Standard output cannot be written to.
    Output(std::io::Error),
}

/// To the writer thread.
enum Written {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// From the stdin thread and from signals, to the process.
enum Typed {
    Bytes(Vec<u8>),
    End,
    Detach,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resize: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// The next one's number; SIGWINCH included.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.hangup.recv() => SignalKind::hangup().as_raw_value(),
            _ = self.quit.recv() => SignalKind::quit().as_raw_value(),
            _ = self.resize.recv() => SignalKind::window_change().as_raw_value(),
        }
    }
}

impl Session {
    /// Runs until the process or the user ends it. `started` is called once the process is known to run.
    pub(crate) async fn run(self, started: impl FnOnce() + Send) -> anyhow::Result<SessionEnd> {
        let raw = if self.tty { Some(enter_raw()?) } else { None };
        let mut signals = Signals::new()?;
        let ProcessConnection { mut input, output } = self.connection;
        let (writer, writer_ended) = spawn_writer();
        let mut pump = Box::pin(pump_output(output, writer, writer_ended, started));
        let mut typed = self.stdin.then(|| spawn_reader(self.tty && self.detach_keys));
        let mut interrupted = false;
        let end = loop {
            tokio::select! {
                end = &mut pump => break end,
                item = next_typed(&mut typed) => match item {
                    Some(Typed::Detach) => break SessionEnd::Detached,
                    Some(Typed::Bytes(bytes)) => {
                        let sending = input.stdin(&bytes);
                        match with_signals(sending, &mut pump, &mut signals, &mut interrupted, &self.signals).await {
                            Progress::Sent(Ok(())) => {}
                            Progress::Sent(Err(_)) => typed = None,
                            Progress::Ended(end) => break end,
                        }
                    }
                    Some(Typed::End) | None => {
                        typed = None;
                        // Fails only when the connection is gone, which the output tells better.
                        let _ = input.message(&StreamMessage::StdinEnd).await;
                    }
                },
                number = signals.next() => {
                    if number == SignalKind::window_change().as_raw_value() {
                        if let (true, Some(size)) = (self.tty, super::size()) {
                            let _ = input.message(&StreamMessage::Resize(size)).await;
                        }
                    } else if ends_session(number, &mut interrupted, &self.signals) {
                        break end_by(number, &self.signals);
                    } else if let SignalPath::Stream = self.signals {
                        let _ = input.message(&StreamMessage::Signal { signal: number }).await;
                    } else {
                        forward(number, &self.signals);
                    }
                }
            }
        };
        drop(raw);
        Ok(end)
    }
}

/// What happened while bytes were being sent.
enum Progress {
    Sent(Result<(), ClientError>),
    Ended(SessionEnd),
}

/// Sends input, and hears signals and output meanwhile: a process that does not read must not make the session deaf.
async fn with_signals(
    sending: impl Future<Output = Result<(), ClientError>>,
    pump: &mut (impl Future<Output = SessionEnd> + Unpin),
    signals: &mut Signals,
    interrupted: &mut bool,
    path: &SignalPath,
) -> Progress {
    tokio::pin!(sending);
    loop {
        tokio::select! {
            end = &mut *pump => return Progress::Ended(end),
            sent = &mut sending => return Progress::Sent(sent),
            number = signals.next() => {
                if number == SignalKind::window_change().as_raw_value() {
                    continue;
                }
                if ends_session(number, interrupted, path) {
                    return Progress::Ended(end_by(number, path));
                }
                forward(number, path);
            }
        }
    }
}

/// SIGINT and SIGQUIT go to the process the first time; anything else, or the second time, ends the session.
fn ends_session(number: i32, interrupted: &mut bool, path: &SignalPath) -> bool {
    let from_keyboard = number == SignalKind::interrupt().as_raw_value()
        || number == SignalKind::quit().as_raw_value();
    let again = std::mem::replace(interrupted, true);
    !from_keyboard || again || matches!(path, SignalPath::Leave)
}

fn end_by(number: i32, path: &SignalPath) -> SessionEnd {
    let interrupt = number == SignalKind::interrupt().as_raw_value();
    if interrupt && matches!(path, SignalPath::Leave) {
        SessionEnd::Detached
    } else {
        SessionEnd::Signalled(number)
    }
}

/// Sends the signal by a request, without waiting for the answer.
fn forward(number: i32, path: &SignalPath) {
    if let SignalPath::Request { client, name, container } = path {
        let body = SignalSandbox { container: container.clone(), signal: number, everyone: false };
        let client = client.clone();
        let path = format!("{}/signal", sandbox_path(name));
        tokio::spawn(async move {
            // A process that is not there yet or any more needs no signal; the second one ends the session.
            let _ = client.send(client.request(Method::POST, &path).json(&body)).await;
        });
    }
}

fn enter_raw() -> Result<RawTerminal, TerminalError> {
    RawTerminal::enter()
}

async fn next_typed(typed: &mut Option<mpsc::Receiver<Typed>>) -> Option<Typed> {
    match typed {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Hands output to the writer until the process has ended, then waits until all of it is written.
async fn pump_output(
    mut output: ProcessOutput,
    writer: mpsc::Sender<Written>,
    mut writer_ended: mpsc::Receiver<std::io::Error>,
    started: impl FnOnce() + Send,
) -> SessionEnd {
    let mut started = Some(started);
    let end = loop {
        let event = tokio::select! {
            event = output.next() => event,
            Some(error) = writer_ended.recv() => return SessionEnd::Output(error),
        };
        match event {
            Ok(Some(ProcessEvent::Message(message))) => match message {
                StreamMessage::Started => {
                    if let Some(started) = started.take() {
                        started();
                    }
                }
                StreamMessage::Exited { code, reason } => {
                    break SessionEnd::Exited { code, reason };
                }
                StreamMessage::StartFailed { code, message } => {
                    break SessionEnd::StartFailed { code, message };
                }
                StreamMessage::Error { message } => break SessionEnd::Failed { message },
                _ => {}
            },
            Ok(Some(event)) => {
                if let Some(started) = started.take() {
                    started();
                }
                let written = match event {
                    ProcessEvent::Stderr(bytes) => Written::Stderr(bytes),
                    ProcessEvent::Stdout(bytes) => Written::Stdout(bytes),
                    ProcessEvent::Message(_) => continue,
                };
                if writer.send(written).await.is_err() {
                    break SessionEnd::Failed { message: "output cannot be written".to_owned() };
                }
            }
            Ok(None) => {
                break SessionEnd::Failed { message: "the server ended the stream".to_owned() };
            }
            Err(error) => break SessionEnd::Lost(error),
        }
    };
    drop(writer);
    match writer_ended.recv().await {
        Some(error) => SessionEnd::Output(error),
        None => end,
    }
}

/// A thread that writes output in order; the receiver hears of a failure, or closes once all is written.
fn spawn_writer() -> (mpsc::Sender<Written>, mpsc::Receiver<std::io::Error>) {
    let (sender, mut queue) = mpsc::channel::<Written>(QUEUE);
    let (ended, ended_receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        while let Some(written) = queue.blocking_recv() {
            let result = match &written {
                Written::Stdout(bytes) => write_now(&mut std::io::stdout().lock(), bytes),
                Written::Stderr(bytes) => write_now(&mut std::io::stderr().lock(), bytes),
            };
            if let Err(error) = result {
                let _ = ended.blocking_send(error);
                return;
            }
        }
    });
    (sender, ended_receiver)
}

fn write_now(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// A thread that reads standard input. It may stay blocked in a read until the process exits, which nothing waits for.
fn spawn_reader(detach_keys: bool) -> mpsc::Receiver<Typed> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut keys = DetachKeys::default();
        loop {
            let read = match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let (bytes, detach) = if detach_keys {
                keys.filter(&buffer[..read])
            } else {
                (buffer[..read].to_vec(), false)
            };
            if !bytes.is_empty() && sender.blocking_send(Typed::Bytes(bytes)).is_err() {
                return;
            }
            if detach {
                let _ = sender.blocking_send(Typed::Detach);
                return;
            }
        }
        let _ = sender.blocking_send(Typed::End);
    });
    receiver
}

/// Finds the detach keys in what is typed, across reads.
#[derive(Default)]
struct DetachKeys {
    first_seen: bool,
}

impl DetachKeys {
    /// What to pass on, and whether the user leaves.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if self.first_seen && byte == DETACH_KEYS[1] {
                return (out, true);
            }
            if self.first_seen {
                out.push(DETACH_KEYS[0]);
            }
            self.first_seen = byte == DETACH_KEYS[0];
            if !self.first_seen {
                out.push(byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_found_across_reads_and_all_else_passes() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ab"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c\x10"), (b"c".to_vec(), false));
        assert_eq!(keys.filter(b"d"), (b"\x10d".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn only_the_first_ctrl_c_goes_to_the_process() {
        let mut interrupted = false;
        let interrupt = SignalKind::interrupt().as_raw_value();
        assert!(!ends_session(interrupt, &mut interrupted, &SignalPath::Stream));
        assert!(ends_session(interrupt, &mut interrupted, &SignalPath::Stream));
        let mut interrupted = false;
        assert!(ends_session(interrupt, &mut interrupted, &SignalPath::Leave));
        assert!(ends_session(15, &mut false, &SignalPath::Stream));
    }
}
