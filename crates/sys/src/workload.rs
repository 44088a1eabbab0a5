//! Starts a process as a lesser user: identity, capabilities, system call filter, limits and descriptors are in force before its first
//! instruction, and what cannot be applied fails the start with the exact step.
//!
//! Owns nothing that lives on: the caller reaps. Forks, or shares its memory with the child until that execs ([`Memory`]), but never waits
//! for it as vfork does: a workload of the same user could stop the child in that moment, and the caller with it. Never inherits a
//! descriptor or a signal disposition.

mod child;
pub mod hiding;
mod shared_memory;

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::errno::last_errno;
use crate::forking::{SingleThread, exit_copy};
use crate::seccomp::Filter;

/// Who a process is, and what it may do.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// Supplementary groups, whole.
    pub supplementary_gids: Vec<u32>,
    /// The bounding set, as a kernel mask, and for user 0 what is permitted and effective. What the caller does not have itself
    /// is not given. Inheritable and ambient sets are empty.
    pub capabilities: u64,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// The filter to put in force last of all.
    pub filter: Option<Filter>,
}

/// A program to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// Paths to try in this order, as `execvp` does with PATH.
    pub candidates: Vec<CString>,
    /// Arguments, the name first.
    pub args: Vec<CString>,
    /// The whole environment.
    pub env: Vec<CString>,
    /// Entered as the new user.
    pub working_directory: CString,
    /// Who it is.
    pub identity: Identity,
    /// Its umask.
    pub umask: u32,
    /// Written to oom_score_adj where the kernel lets it.
    pub oom_score_adj: i32,
    /// Soft and hard limit of open files.
    pub open_files: (u64, u64),
    /// Most processes and threads of its user, its own included (RLIMIT_NPROC); `None`: as the caller's.
    pub processes: Option<u64>,
    /// Standard input becomes the controlling terminal.
    pub controlling_terminal: bool,
}

/// The step at which a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// A session, or the controlling terminal.
    Session = 1,
    /// Standard streams.
    Descriptors = 2,
    /// Resource limits.
    Limits = 3,
    /// Users, groups, capabilities.
    Identity = 4,
    /// no_new_privs and the system call filter.
    Filter = 5,
    /// The working directory.
    WorkingDirectory = 6,
    /// The program itself.
    Execute = 7,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::Session,
        Self::Descriptors,
        Self::Limits,
        Self::Identity,
        Self::Filter,
        Self::WorkingDirectory,
        Self::Execute,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// Why a process did not come to execute its program. It has ended, or is about to, and wants to be reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot start a process: {step:?} failed")]
pub struct StartError {
    /// Where.
    pub step: Step,
    /// The kernel's answer.
    pub source: Errno,
}

/// No process could be made at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a process")]
pub struct ForkError {
    /// The kernel's answer: EAGAIN at a limit of processes.
    #[from]
    pub source: Errno,
}

/// What memory a child has until it executes its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// A copy of the caller's.
    Copied,
    /// The caller's own, which costs no second address space: in gVisor a process of the host and milliseconds. Right only where whoever
    /// may not inspect the caller may not inspect the child either, once it has become another user. Linux with `fs.suid_dumpable` at 1
    /// is not such a place.
    Shared,
}

/// A process that has been forked and will tell whether it executed its program.
#[derive(Debug)]
pub struct Starting {
    pid: i32,
    status: OwnedFd,
    /// What the child said before it ended.
    failure: Option<StartError>,
    /// What the child runs on and reads, where memory is shared.
    shared: Option<shared_memory::Lent>,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Not executed yet.
    Pending,
    /// The program runs (or the process was killed before it could).
    Executed,
    /// It failed.
    Failed(StartError),
}

impl Starting {
    /// The process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when [`progress`](Self::progress) has news.
    #[must_use]
    pub const fn status(&self) -> &OwnedFd {
        &self.status
    }

    /// Asks, without waiting.
    #[must_use]
    pub fn progress(&mut self) -> Progress {
        loop {
            let mut message = [0; child::STATUS_BYTES];
            match rustix::io::read(&self.status, &mut message) {
                Err(Errno::AGAIN | Errno::INTR) => return Progress::Pending,
                // The descriptor was closed by exec, or with its process: the child runs no code of ours any more.
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    let [step, errno @ ..] = message;
                    let step = Step::from_number(step).unwrap_or(Step::Execute);
                    let source = Errno::from_raw_os_error(i32::from_le_bytes(errno));
                    self.failure = Some(StartError { step, source });
                }
            }
        }
        if let Some(lent) = self.shared.take() {
            lent.give_back();
        }
        self.failure.map_or(Progress::Executed, Progress::Failed)
    }
}

/// A program that is ready to be started: all descriptors that it takes are open.
#[derive(Debug)]
pub struct Prepared<'a> {
    plan: child::Plan,
    status: OwnedFd,
    child_status: OwnedFd,
    standard: std::marker::PhantomData<BorrowedFd<'a>>,
}

/// Prepares to start a program with these three standard streams. All else that the caller has open is closed.
///
/// # Errors
/// [`ForkError`].
pub fn prepare(program: Program, standard: [BorrowedFd<'_>; 3]) -> Result<Prepared<'_>, ForkError> {
    let (status, child_status) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&status, true)?;
    let plan =
        child::Plan::new(program, standard.map(|fd| fd.as_raw_fd()), child_status.as_raw_fd());
    Ok(Prepared { plan, status, child_status, standard: std::marker::PhantomData })
}

impl Prepared<'_> {
    /// Starts it. Opens nothing.
    ///
    /// # Errors
    /// [`ForkError`]; what fails later is told by [`Starting::progress`].
    pub fn start(self, memory: Memory) -> Result<Starting, ForkError> {
        let Self { plan, status, child_status, .. } = self;
        let (pid, shared) = match memory {
            Memory::Copied => (fork(&plan)?, None),
            Memory::Shared => {
                let (pid, lent) = shared_memory::start(plan)?;
                (pid, Some(lent))
            }
        };
        drop(child_status);
        Ok(Starting { pid, status, failure: None, shared })
    }
}

fn fork(plan: &child::Plan) -> Result<i32, ForkError> {
    // SAFETY: the child only runs `Plan::execute`, which makes system calls on memory prepared above and never returns: no lock
    // that another thread may have held is taken.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno().into()),
        0 => plan.execute(),
        pid => Ok(pid),
    }
}

/// Runs `work` in a child process of that identity, with these standard streams and nothing else open, and an address space of at most so
/// many bytes. The child ends with the number that `work` returns; with 125 when the identity could not be taken on.
///
/// # Errors
/// [`ForkError`]: EBUSY when the calling process has other threads, whose locks the child would find taken for ever.
pub fn start_helper(
    identity: &Identity,
    standard: [BorrowedFd<'_>; 3],
    address_space_bytes: u64,
    work: impl FnOnce() -> i32,
) -> Result<i32, ForkError> {
    SingleThread::verify().map_err(|_| Errno::BUSY)?;
    let standard = standard.map(|fd| fd.as_raw_fd());
    let plan = child::IdentityPlan::new(identity.clone());
    // SAFETY: this is the process's only thread, so the child's copy of memory is whole; the child never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno().into()),
        0 => {
            let become_helper = || -> Result<(), (Step, Errno)> {
                child::take_standard_streams(&standard)?;
                child::close_all_others()?;
                child::bound_address_space(address_space_bytes)?;
                plan.take_on()?;
                plan.confine()
            };
            let code = match become_helper() {
                Ok(()) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                    .unwrap_or(HELPER_FAILED),
                Err(_) => HELPER_FAILED,
            };
            exit_copy(code)
        }
        pid => Ok(pid),
    }
}

/// Exit code of a helper that could not become what it should.
const HELPER_FAILED: i32 = 125;

/// A raw descriptor of a child's plan.
type Raw = RawFd;

#[cfg(test)]
mod tests;
