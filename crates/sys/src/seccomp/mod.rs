//! The system call filter of class `container`: a profile as data (`seccomp/container.json`), compiled to BPF.
//!
//! Owns what a sandbox may ask of the host's kernel. The profile decides every system call of the known table by name, with a reason
//! for each family; what a newer kernel adds answers ENOSYS, so that libraries fall back, until somebody has decided it.
//! Installs nothing by itself except through [`install`] and [`Filter::install`]. [`Filter::guarding`] makes another, small filter.
//!
//! An own compiler of 150 lines, because the profile needs three answers in one filter (allow, EPERM and friends, ENOSYS):
//! seccompiler knows one answer for a match and one for the rest, and stacking filters makes each call pass both.

mod compile;
mod filter;
mod guard;
mod profile;

use std::sync::OnceLock;

use rustix::io::Errno;

pub use compile::compile;
pub use filter::Filter;
pub use profile::{Arch, Profile};

/// A profile that cannot be used, or a kernel that refused the filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The text is no profile.
    #[error("the seccomp profile is malformed")]
    Malformed {
        /// Where and why.
        source: serde_json::Error,
    },
    /// A profile of a newer atoll.
    #[error("the seccomp profile has version {version}; this build reads version 1")]
    Version {
        /// The version found.
        version: u32,
    },
    /// A name that no architecture has.
    #[error("{syscall:?} in the seccomp profile is no system call of x86_64 or aarch64")]
    UnknownSyscall {
        /// The name.
        syscall: String,
    },
    /// A system call that two places decide.
    #[error("{syscall} is decided twice in the seccomp profile")]
    Twice {
        /// The name.
        syscall: String,
    },
    /// A family without a reason.
    #[error("{family:?} in the seccomp profile has no reason")]
    NoReason {
        /// The family, or the conditional system call.
        family: String,
    },
    /// A condition that cannot be compiled.
    #[error("the condition of {syscall} in the seccomp profile {problem}")]
    Condition {
        /// The system call.
        syscall: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More instructions than the kernel takes.
    #[error("the seccomp filter has {instructions} instructions; the kernel takes 4096")]
    TooLong {
        /// How many there are.
        instructions: usize,
    },
    /// The kernel refused the filter.
    #[error("the kernel refused the seccomp filter (no_new_privs must be set before)")]
    Refused {
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The compiled default profile of class `container` for this machine, compiled once in a process: an array of
/// `struct sock_filter` as bytes, ready for [`install`] or for a message to the process that installs it.
pub fn container_filter() -> Result<&'static [u8], SeccompError> {
    static FILTER: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(filter) = FILTER.get() {
        return Ok(filter);
    }
    let filter = compile(&Profile::container_default()?, Arch::NATIVE)?;
    Ok(FILTER.get_or_init(|| filter))
}

/// [`Filter::install`] for a compiled filter as bytes.
///
/// # Errors
/// [`SeccompError::Refused`] with EINVAL for bytes that are no filter.
pub fn install(filter: &[u8]) -> Result<(), SeccompError> {
    let refused = |errno: Errno| SeccompError::Refused { source: errno.into() };
    let filter = Filter::from_bytes(filter).ok_or_else(|| refused(Errno::INVAL))?;
    filter.install().map_err(refused)
}

#[cfg(test)]
mod tests;
