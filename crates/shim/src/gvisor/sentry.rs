//! Asking a running Sentry, over its control socket, what a runsc command would ask: a request here takes less than a millisecond where a
//! command takes 20 to 40, and an unanswered one tells of a container's end without a process that waits.
//!
//! Owns connections, one a request, as runsc itself makes them. The Sentry is believed in nothing but the end of its containers: answers
//! are bounded in size and time.
//! SOURCE: gVisor's pkg/urpc (JSON objects one after the other) and runsc/boot/controller.go (method names).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an answer may take (guess: a busy Sentry of a loaded host answers in milliseconds).
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;
/// Longest path of a Unix socket. SOURCE: unix(7), sun_path.
const SOCKET_PATH_BYTES: usize = 107;

#[derive(Serialize)]
struct Call<'a, A: Serialize> {
    method: &'a str,
    arg: A,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
}

/// SOURCE: runsc/boot/controller.go, SignalArgs.
#[derive(Serialize)]
struct SignalArgs<'a> {
    #[serde(rename = "CID")]
    container_id: &'a str,
    #[serde(rename = "Signo")]
    signal: i32,
    #[serde(rename = "PID")]
    pid: i32,
    #[serde(rename = "Mode")]
    mode: u8,
}

/// Who gets a signal. SOURCE: runsc/boot/controller.go, SignalDeliveryMode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiver {
    /// The container's first process.
    Init,
    /// Every process of the container.
    Everyone,
}

/// A Sentry's control socket.
#[derive(Debug, Clone)]
pub(super) struct Sentry {
    socket: PathBuf,
}

impl Sentry {
    /// Of the sandbox of that id below that `--root`.
    ///
    /// # Errors
    /// What to do when the path is too long: runsc would then put its socket elsewhere.
    pub(super) fn new(root: &Path, sandbox_id: &str) -> Result<Self, String> {
        let socket = root.join(format!("runsc-{sandbox_id}.sock"));
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES {
            return Err(format!(
                "the path of runsc's socket {} has {length} bytes, more than the {SOCKET_PATH_BYTES} of a Unix socket: \
                 choose a shorter run directory",
                socket.display()
            ));
        }
        Ok(Self { socket })
    }

    /// A connection that becomes readable when the container has ended, or the Sentry has.
    ///
    /// # Errors
    /// When the Sentry does not listen.
    pub(super) fn wait_for_end(&self, container_id: &str) -> std::io::Result<UnixStream> {
        self.send("containerManager.Wait", container_id)
    }

    /// Sends a signal; a container that has ended is an error of the Sentry's, told in its words.
    ///
    /// # Errors
    /// When the Sentry does not answer, or says no.
    pub(super) fn signal(
        &self,
        container_id: &str,
        signal: i32,
        receiver: Receiver,
    ) -> std::io::Result<()> {
        let mode = match receiver {
            Receiver::Init => 0,
            Receiver::Everyone => 1,
        };
        let args = SignalArgs { container_id, signal, pid: 0, mode };
        self.call("containerManager.Signal", args)
    }

    fn send<A: Serialize>(&self, method: &str, arg: A) -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(&serde_json::to_vec(&Call { method, arg })?)?;
        Ok(stream)
    }

    fn call<A: Serialize>(&self, method: &str, arg: A) -> std::io::Result<()> {
        let mut stream = self.send(method, arg)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut bytes = Vec::new();
        let mut part = [0_u8; 4096];
        loop {
            let read = stream.read(&mut part)?;
            bytes.extend_from_slice(&part[..read]);
            let whole = serde_json::Deserializer::from_slice(&bytes).into_iter::<Answer>().next();
            match whole {
                Some(Ok(answer)) if answer.success => return Ok(()),
                Some(Ok(answer)) => {
                    let said: String = answer.err.chars().take(300).collect();
                    return Err(std::io::Error::other(said));
                }
                Some(Err(error)) if !error.is_eof() => return Err(error.into()),
                _ if read == 0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ if bytes.len() > ANSWER_BYTES => {
                    return Err(std::io::Error::other("the Sentry's answer is too long"));
                }
                _ => {}
            }
        }
    }
}
