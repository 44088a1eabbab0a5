//! The protocol between a shim (the host) and the guest, the first process of a container.
//!
//! Frames of [`crate::frame`] over a pair of FIFOs which the guest has as its standard input and output. The guest is believed in
//! nothing but what it alone can know, and everything it says is bounded.
//!
//! ```text
//! host -> guest: Hello ------------------------------> (first on every opening of the channel, after padding)
//! guest -> host: HelloAck
//! host -> guest: Boot (once) --> Start (stream 0, once)
//! guest -> host: Started | StartFailed
//! host -> guest: Exec (stream n) ... Stdin, StdinEnd, Resize, Signal, Credit
//! guest -> host: Started | StartFailed, Stdout, Stderr ..., Exited (stream n, after the last output)
//! host -> guest: ExitAck (stream n): the guest forgets the process; on stream 0 it ends itself, with the process's exit code
//! ```
//!
//! A stream number is used once in a sandbox's life. Messages are made and read by [`HostMessage`] and [`GuestMessage`].
//!
//! **Output** is counted: each [`HostKind`] `Credit` lets the guest send so many bytes more of that stream (standard output and error
//! together); it begins with [`INITIAL_WINDOW_BYTES`]. Data frames of output begin with the offset (u64 le) of their first byte in
//! their own direction of the stream, so that a reader who takes over knows what it missed.
//!
//! **Input** has a window of [`INITIAL_STDIN_WINDOW_BYTES`], which the guest refills with `Credit` as the process takes it, and also when
//! it drops what nobody reads any more.
//!
//! **Taking over.** A host that opens the channel again writes [`crate::frame::resync_padding`] and a Hello with an epoch that nobody
//! inside can guess (random). The guest then writes the same padding and its HelloAck. Until the host has read the HelloAck with its
//! own epoch it may take `Stdout` and `Stderr` frames for output and must ignore all others: it may have begun to read in the middle
//! of bytes that the workload chose. HelloAck says all that was missed. After it every stream's output window is
//! [`INITIAL_WINDOW_BYTES`] again, counted from `stdout_sent_bytes` and `stderr_sent_bytes`, and the input window of every stream in it is 0 until
//! the `Credit` that follows at once.
//!
//! **Ends.** `Exited` of a stream comes after all output that its process wrote. It is kept until `ExitAck`. When the command (stream 0)
//! could not be started, `StartFailed` is kept like an exit: HelloAck then shows it as exited with [`StartFailureKind::exit_code`], and
//! `ExitAck` ends the guest with that code. `StartFailed` of another stream and `TransferDone` end their stream at once. Processes which
//! outlive the one of their stream may go on writing: their output is read and dropped.

mod message;

use serde::{Deserialize, Serialize};

pub use message::{GuestMessage, HostMessage, MessageError, fuzz_guest_messages};

/// The version of this protocol. A host speaks with every guest of a version it knows: sandboxes outlive updates.
pub const PROTOCOL_VERSION: u32 = 1;
/// Bytes that may be under way on a stream before the first `Credit`.
pub const INITIAL_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes of standard input that may be under way on a new stream before the guest's first `Credit`: as much as a pipe holds. What a
/// process does not read lies in the guest's memory, which is the sandbox's.
pub const INITIAL_STDIN_WINDOW_BYTES: u32 = 64 * 1024;
/// Most execs and transfers at the same time in one container.
pub const MAX_STREAMS: usize = 256;
/// The guest's exit code when it was killed or broken rather than told to end.
pub const GUEST_FAILURE_EXIT_CODE: i32 = 125;

macro_rules! kinds {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }
        impl $name {
            /// The kind of that number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
            /// The number in a frame.
            #[must_use]
            pub const fn number(self) -> u8 {
                self as u8
            }
        }
    };
}

kinds! {
    /// Kinds of frames from host to guest.
    HostKind {
        /// JSON [`Hello`].
        Hello = 1,
        /// JSON [`Boot`]. Answered only by `Refused` on stream 0, when it cannot be applied: nothing is started then.
        Boot = 2,
        /// JSON [`ProcessSpec`], stream 0: begin the image's command.
        Start = 3,
        /// JSON [`ProcessSpec`]: begin another process.
        Exec = 4,
        /// Bytes for the process's standard input.
        Stdin = 5,
        /// No payload: standard input ends.
        StdinEnd = 6,
        /// JSON [`TerminalSize`].
        Resize = 7,
        /// JSON [`SignalRequest`].
        Signal = 8,
        /// u32 le: so many more bytes may be sent on this stream.
        Credit = 9,
        /// No payload: the exit is recorded.
        ExitAck = 10,
        /// JSON [`TransferRequest`]: a tar follows as `Stdin` frames; answered by `TransferDone`.
        Upload = 11,
        /// JSON [`TransferRequest`]: a tar is sent as `Stdout` frames, then `TransferDone`.
        Download = 12,
        /// No payload: answered by `Processes`.
        ListProcesses = 13,
        /// UTF-8 text: the new hostname; answered by `Done` or `Refused`.
        SetHostname = 14,
        /// No payload: whoever asked for this stream is gone. Its input ends; its process gets SIGHUP (terminal) or goes on with its output
        /// dropped. `Exited` and `ExitAck` follow as ever.
        Detach = 15,
    }
}

kinds! {
    /// Kinds of frames from guest to host. They do not overlap with [`HostKind`]: a reflected frame is no answer.
    GuestKind {
        /// JSON [`HelloAck`].
        HelloAck = 65,
        /// JSON [`Started`].
        Started = 66,
        /// JSON [`StartFailure`]; the stream ends with it.
        StartFailed = 67,
        /// u64 le offset, then bytes.
        Stdout = 68,
        /// u64 le offset, then bytes.
        Stderr = 69,
        /// JSON [`Exited`].
        Exited = 70,
        /// u32 le: so many more bytes of standard input may be sent.
        Credit = 71,
        /// JSON [`TransferOutcome`].
        TransferDone = 72,
        /// JSON list of [`ProcessInfo`].
        Processes = 73,
        /// No payload.
        Done = 74,
        /// UTF-8 text: why a request was refused.
        Refused = 75,
    }
}

/// Opens, or opens again, the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions that the host speaks.
    pub versions: Vec<u32>,
    /// Comes back in the answer: tells this answer from one to an earlier host.
    pub epoch: u64,
}

/// The guest's answer, and all that a host who takes over must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The version chosen; 0 when it speaks none of them.
    pub version: u32,
    /// From the [`Hello`].
    pub epoch: u64,
    /// Version of atoll that the guest was built with.
    pub build: String,
    /// [`Boot`] was received.
    pub booted: bool,
    /// Streams that are not acknowledged yet.
    pub streams: Vec<StreamState>,
}

/// One live or unacknowledged stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// Its number.
    pub stream: u32,
    /// The process, when started.
    pub pid: Option<i32>,
    /// Bytes of standard output sent so far (they may have been lost with an earlier host).
    pub stdout_sent_bytes: u64,
    /// Bytes of standard error sent so far.
    pub stderr_sent_bytes: u64,
    /// How it ended, when it has ended and all its output has been sent.
    pub exited: Option<Exited>,
}

/// What the guest needs before it starts anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The hostname to set; `None` leaves it.
    pub hostname: Option<String>,
    /// The system call filter (an array of `struct sock_filter`, base64) for every process but the guest; empty: none.
    pub seccomp_filter_base64: String,
    /// Most processes of the workload at a time that the guest itself enforces; `None` where the kernel does.
    pub pids_limit: Option<u64>,
    /// What the kernel is to enforce beside; `None` where users of the kernel are not the sandbox's alone.
    #[serde(default)]
    pub user_limits: Option<UserLimits>,
}

/// Most processes and threads that a user may have at a time (RLIMIT_NPROC), as one that starts another one sees it: all of the user's in
/// the whole kernel count, guests too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLimits {
    /// For root.
    pub root: u64,
    /// For any other user. What a guest starts counts as root's, also after it has become somebody else.
    pub other: u64,
}

/// A process to start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; at least one. A program without `/` is looked for in PATH of `env`.
    pub args: Vec<String>,
    /// `KEY=VALUE` entries, whole: nothing is inherited.
    pub env: Vec<String>,
    /// Absolute working directory; made when missing only where [`Self::make_working_directory`].
    pub working_directory: String,
    /// Make the working directory (the image's WORKDIR) when it is not there.
    pub make_working_directory: bool,
    /// User, group, supplementary groups: as numbers, resolved by the host.
    pub user: UserIds,
    /// Bits of the capabilities to have (permitted, effective for root; bounding for all).
    pub capabilities: u64,
    /// no_new_privs, always true unless the node allows otherwise.
    pub no_new_privileges: bool,
    /// Standard input is wanted; else it is /dev/null.
    pub stdin: bool,
    /// A terminal of this size is wanted; output then comes as `Stdout` only.
    pub terminal: Option<TerminalSize>,
    /// Umask of the process, octal 022 by default.
    pub umask: u32,
    /// oom_score_adj of the process: higher than the guest's, so that it is killed first.
    pub oom_score_adj: i32,
    /// Soft and hard limit of open files.
    pub open_files: Option<u64>,
}

/// Environments hold secrets: they are not shown.
impl std::fmt::Debug for ProcessSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessSpec")
            .field("args", &self.args)
            .field("env", &format_args!("[{} entries]", self.env.len()))
            .field("working_directory", &self.working_directory)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserIds {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups inside.
    pub supplementary_gids: Vec<u32>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A signal for a stream's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// 1 to 64.
    pub signal: i32,
    /// All processes of the container but the guest, rather than the stream's process alone.
    pub everyone: bool,
}

/// A process has been exec'ed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its pid inside.
    pub pid: i32,
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The class of failure.
    pub kind: StartFailureKind,
    /// For people; bounded by the reader.
    pub message: String,
}

/// Classes of failures to start a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailureKind {
    /// No such program (a shell says 127).
    NotFound,
    /// Found, but not to be executed (126).
    NotExecutable,
    /// The working directory is missing or no directory.
    WorkingDirectory,
    /// No room for another process.
    TooManyProcesses,
    /// A request that makes no sense or a limit of the protocol.
    BadRequest,
    /// Anything else.
    Other,
}

impl StartFailureKind {
    /// The exit code that shells use for it. SOURCE: POSIX shell, 2.8.2.
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// How a process ended. Sent after all of its output that came before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when a signal ended it.
    pub signal: Option<i32>,
    /// The guest ended the workload because it reached its pids limit.
    #[serde(default)]
    pub pids_limit: bool,
}

impl Exited {
    /// The number a shell would show: the code, or 128 and the signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128_i32.saturating_add(self.signal.unwrap_or(0)))
    }
}

/// A copy into or out of the container, as a tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRequest {
    /// Absolute path inside: the directory to unpack into (`Upload`), or the file or directory to pack (`Download`), which becomes
    /// the tar's single top entry under its base name.
    pub path: String,
    /// Who reads or writes: files are made as this user.
    pub user: UserIds,
}

/// How a copy went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOutcome {
    /// `None`: all well.
    pub error: Option<String>,
}

/// One process inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its pid inside.
    pub pid: i32,
    /// Its parent's.
    pub parent_pid: i32,
    /// User id inside.
    pub uid: u32,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// CPU time used, in milliseconds.
    pub cpu_millis: u64,
    /// Command line, cut.
    pub command: String,
}
