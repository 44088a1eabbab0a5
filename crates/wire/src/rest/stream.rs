//! Exec and attach over a WebSocket.
//!
//! `GET /api/v1/sandboxes/ID/exec` and `…/attach` upgrade to a WebSocket. The client's first message is text, JSON of [`ExecRequest`] or
//! [`AttachRequest`]. Then binary messages: the first byte is a [`StreamChannel`], the rest data. Text messages are [`StreamMessage`]s.
//! The server closes after `Exited`, `StartFailed` or `Error`.

use serde::{Deserialize, Serialize};

/// First byte of a binary message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamChannel {
    /// Client to server.
    Stdin = 0,
    /// Server to client.
    Stdout = 1,
    /// Server to client.
    Stderr = 2,
}

/// Run a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The first container when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, added to the container's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The container's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    /// `user[:group]`; the container's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Standard input will come.
    #[serde(default)]
    pub stdin: bool,
    /// A terminal is wanted.
    #[serde(default)]
    pub tty: bool,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// Input and output of the main process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The first container when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// All output from the beginning, where the spec says `await_attach` and nobody else has taken it; also of a container that has
    /// ended, as long as its log has dropped nothing.
    #[serde(default)]
    pub from_start: bool,
    /// Standard input will come.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A text message after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum StreamMessage {
    /// Client: standard input ends.
    StdinEnd,
    /// Client: the terminal changed.
    Resize(Size),
    /// Client: a signal for the process, 1 to 64.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Server: the process runs.
    Started,
    /// Server: the process ended, all output was sent.
    Exited {
        /// As a shell shows it.
        code: i32,
        /// `Completed`, `Error`, `OutOfMemory`, … where known.
        reason: Option<String>,
    },
    /// Server: the process could not be started.
    StartFailed {
        /// 127 not found, 126 not executable, 125 otherwise.
        code: i32,
        /// Why.
        message: String,
    },
    /// Server: anything else; the stream is over.
    Error {
        /// Why.
        message: String,
    },
}
