//! What a sandbox leaves on disk for whoever comes after a crash.
//!
//! Files are written whole (temporary file, sync, rename) and carry a version: older is read, newer refused by who reads.

use serde::{Deserialize, Serialize};

/// Version of the records below.
pub const RECORD_VERSION: u32 = 1;

/// One process for good: pid, start time in clock ticks after boot, and the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the host numbers it.
    pub pid: i32,
    /// SOURCE: proc_pid_stat(5), field 22.
    pub start_time_ticks: u64,
    /// SOURCE: /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// `shim.json`: written before the first container's command is started, and again by a shim that adopts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The shim itself.
    pub shim: ProcessId,
    /// Each container that was begun.
    pub containers: Vec<ContainerRecord>,
}

/// A container that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name.
    pub name: String,
    /// Its first process (engine gvisor: the Sentry).
    pub init: ProcessId,
    /// When its command was exec'ed, microseconds since 1970; `None`: not yet.
    pub started_at_unix_micros: Option<i64>,
    /// How it ended, if it has.
    pub exit: Option<ContainerExit>,
    /// It was held, and its command was asked for: it is started, or is to be.
    #[serde(default)]
    pub released: bool,
}

/// `end.json`: the truth about a sandbox that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// When, microseconds since 1970.
    pub ended_at_unix_micros: i64,
    /// Each container's end.
    pub containers: Vec<ContainerExit>,
    /// Why it could not be begun, if so.
    pub launch_failure: Option<String>,
    /// Bytes of output dropped or lost, by container in the order of `containers`.
    pub log_dropped_bytes: Vec<u64>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// Its name.
    pub container: String,
    /// Exit code of its command, when known.
    pub code: Option<i32>,
    /// Signal that ended its command, when known.
    pub signal: Option<i32>,
    /// Why.
    pub reason: ExitReason,
    /// More about it, for people; empty when there is nothing to say.
    pub message: String,
    /// When, microseconds since 1970; `None` when nobody saw it.
    pub finished_at_unix_micros: Option<i64>,
}

impl ContainerExit {
    /// The number a shell would show, when known: the code, or 128 and the signal.
    #[must_use]
    pub fn shell_code(&self) -> Option<i32> {
        self.code.or_else(|| self.signal.map(|signal| signal.saturating_add(128)))
    }
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code, or a signal that nobody of atoll sent.
    Error,
    /// The memory limit.
    OutOfMemory,
    /// The workload's own pids limit.
    PidsLimit,
    /// The host's backstop for threads of the isolating process (gvisor): not the workload's fault alone.
    HostPidsBackstop,
    /// Asked to stop, or killed, by a user or a deadline.
    Stopped,
    /// The command could not be started.
    StartFailed,
    /// atoll's guest was killed or broke; what the command would have answered is not known.
    GuestDied,
    /// The isolating process (Sentry) broke.
    SentryDied,
    /// The host could not keep what the sandbox was promised, a limit for example, and it was ended.
    HostError,
    /// Nobody saw it.
    Unknown,
}
