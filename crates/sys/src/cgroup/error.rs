//! What can go wrong with control groups, each with the path it happened on and what to do next.

use std::path::PathBuf;

/// A control group operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host does not offer what limits need; atoll refuses to run a sandbox without its limits.
    #[error(
        "the host offers no cgroup {}: mount it (v1) or enable it in the parent's cgroup.subtree_control (v2)",
        missing.join(", ")
    )]
    Missing {
        /// Names of the controllers that were found neither in a v1 mount nor in v2.
        missing: Vec<&'static str>,
    },
    /// A name that cannot be a directory directly below the instance's group.
    #[error("{name:?} is not a cgroup name: use 1 to 128 of A-Z a-z 0-9 _ . - and no leading dot")]
    InvalidName {
        /// The refused name, shortened.
        name: String,
    },
    /// Processes live in a v2 group that must hand controllers to its children.
    #[error(
        "cannot enable {controllers:?} in {}: processes live directly in that group (the v2 rule against \
         inner processes); move them into a child group or give atoll a delegated group of its own",
        path.display()
    )]
    InnerProcesses {
        /// The group whose `cgroup.subtree_control` refused.
        path: PathBuf,
        /// What was to be enabled, in the kernel's `+name` words.
        controllers: String,
    },
    /// The kernel refused an operation.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A control file did not hold what the kernel documents.
    #[error("{} holds no {wanted}", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The value that was looked for.
        wanted: &'static str,
    },
    /// A group still has processes after the bounded wait.
    #[error("{} still has processes {pids:?} (first 16) after {waited_ms} ms", path.display())]
    NotEmpty {
        /// The group.
        path: PathBuf,
        /// Some of the processes, as this process's pid namespace numbers them.
        pids: Vec<i32>,
        /// How long was waited.
        waited_ms: u64,
    },
}

impl CgroupError {
    /// Wraps a kernel answer with its path.
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }

    /// The kernel's error number, where one was given.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
