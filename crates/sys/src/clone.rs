//! New processes by clone3: in new namespaces, in a control group from their first instruction, known by a pidfd.
//!
//! Owns the fork, and what such a child does about namespaces and programs itself; nothing else that it does. Never forks a process that has threads: their locks would stay locked in the
//! child for ever.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::forking::{SingleThread, exit_copy};

/// Exit code of a child whose code panicked.
const PANIC_EXIT_CODE: i32 = 125;

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The caller has threads, or they cannot be counted.
    #[error(transparent)]
    Threads(std::io::Error),
    /// The kernel refused.
    #[error("cannot start a process in new namespaces")]
    Refused {
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl CloneError {
    fn refused(source: impl Into<std::io::Error>) -> Self {
        Self::Refused { source: source.into() }
    }
}

/// A child that was started.
#[derive(Debug)]
pub struct Child {
    /// As the caller's pid namespace numbers it; stays its until it is reaped.
    pub pid: i32,
    /// Readable when it ends.
    pub pidfd: OwnedFd,
}

/// Forks the calling process into new `namespaces` (none: an ordinary fork), in the v2 control group `cgroup` when one is given, and runs
/// `run` in the child, which then exits with its answer. The child has all descriptors of the caller, blocks no signal and ignores none that
/// the language's runtime ignores (SIGPIPE).
///
/// # Errors
/// [`CloneError::Threads`] when the caller is not single-threaded.
pub fn start(
    namespaces: UnshareFlags,
    cgroup: Option<BorrowedFd<'_>>,
    run: impl FnOnce() -> i32,
) -> Result<Child, CloneError> {
    SingleThread::verify().map_err(CloneError::Threads)?;
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from(namespaces.bits()) | libc::CLONE_PIDFD as u64;
    let mut cgroup_fd = 0;
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup_fd = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let arguments = CloneArguments {
        flags,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup_fd,
        ..CloneArguments::default()
    };
    // SAFETY: `arguments` and `pidfd` live until the call returns, in the parent and, copied, in the child. Without CLONE_VM and
    // without a stack the child is a fork: it goes on with a copy of this stack. The caller has no other thread, so no lock of
    // the allocator or the C library is held by one that the child lacks.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&arguments),
            std::mem::size_of::<CloneArguments>(),
        )
    };
    match answer {
        0 => {
            reset_signals();
            let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(PANIC_EXIT_CODE);
            exit_copy(code)
        }
        pid if pid > 0 => {
            // SAFETY: the kernel has stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(|_| {
                CloneError::refused(std::io::Error::from_raw_os_error(libc::ERANGE))
            })?;
            Ok(Child { pid, pidfd })
        }
        _ => Err(CloneError::refused(std::io::Error::last_os_error())),
    }
}

/// What exec would hand on: blocked and ignored signals. Handlers are reset by exec itself.
fn reset_signals() {
    // SAFETY: the set is initialised by the call before it is used; both calls only change how this process takes signals.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// SOURCE: include/uapi/linux/sched.h; does not fit the C library's `int`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// SOURCE: `struct clone_args` in include/uapi/linux/sched.h, all versions up to CLONE_INTO_CGROUP (5.7).
#[derive(Default)]
#[repr(C, align(8))]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Gives the calling process namespaces of its own, beginning as copies (mounts) or empty.
///
/// # Errors
/// [`CloneError::Refused`]. Sharing descriptors or memory otherwise (CLONE_FILES and the like) is refused with EINVAL.
pub fn unshare(namespaces: UnshareFlags) -> Result<(), CloneError> {
    let allowed = UnshareFlags::NEWNS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWUSER;
    if !allowed.contains(namespaces) {
        return Err(CloneError::refused(Errno::INVAL));
    }
    // SAFETY: only namespaces change, never the descriptor table that the function's contract is about.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(CloneError::refused)
}

/// Moves the calling process into a namespace of any kind.
///
/// # Errors
/// The kernel's answer.
pub fn enter(namespace: impl AsFd) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
}

/// Replaces the calling process by a program that is open (O_PATH suffices), with these arguments and this environment. Returns
/// only when it fails. Scripts need their descriptor to stay open and are refused with ENOENT when it is close-on-exec.
#[must_use]
pub fn execute(
    program: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> std::io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, and with the strings they point to they outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    std::io::Error::last_os_error()
}

/// Replaces the calling process by the program at a path, scripts too. Returns only when it fails.
#[must_use]
pub fn execute_path(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
) -> std::io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: as in `execute`.
    unsafe {
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    std::io::Error::last_os_error()
}

/// Pointers to the strings, and the null pointer that ends them. They live as long as the strings.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let ends = std::iter::once(std::ptr::null());
    strings.iter().map(|string| string.as_ptr()).chain(ends).collect()
}
