//! Copies of a single-threaded process, and what such a process does at its beginning.
//!
//! A copy shares its pages with the original until one of them writes, so starting it costs a fraction of a program's start.

use std::fs;
use std::io::{Error, ErrorKind};
use std::marker::PhantomData;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a fork returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// In the copy.
    Child,
    /// In the original, with the copy's pid.
    Parent(i32),
}

/// Proof that a process had one thread when it was asked for. Stays on its thread.
#[derive(Debug)]
pub struct SingleThread(PhantomData<*const ()>);

impl SingleThread {
    /// Counts the threads.
    ///
    /// # Errors
    /// `Unsupported` with more than one thread; what reading /proc answers.
    pub fn verify() -> std::io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "a process with threads cannot be forked safely",
            )),
        }
    }

    /// Copies the process.
    ///
    /// # Errors
    /// The kernel's (too many processes, no memory).
    pub fn fork(&self) -> std::io::Result<Forked> {
        // SAFETY: with one thread no lock can be held by somebody who does not exist in the copy, so the copy may run anything.
        match unsafe { libc::fork() } {
            -1 => Err(Error::last_os_error()),
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(pid)),
        }
    }
}

/// Whether ended children wait to be asked how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedChildren {
    /// They stay until they are reaped: the default.
    Stay,
    /// They vanish at once. Copies inherit it.
    Vanish,
}

/// Decides about ended children.
///
/// # Errors
/// The kernel's: none is documented for these arguments.
pub fn set_ended_children(which: EndedChildren) -> std::io::Result<()> {
    let flags = match which {
        EndedChildren::Stay => 0,
        EndedChildren::Vanish => libc::SA_NOCLDWAIT,
    };
    // SAFETY: the default action without a handler, in a zeroed structure, which is a valid value of it.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Takes over the descriptor that this program was started with, and closes every other from 3 on. The first act of a program's `main`,
/// before it opens anything: whatever is open then has no owner in this process.
///
/// # Errors
/// `Unsupported` when called again or with threads; `NotFound` when there is no such descriptor.
pub fn take_inherited(number: RawFd) -> std::io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(Error::from(ErrorKind::Unsupported));
    }
    // SAFETY: asks for a flag; a number that is not open is answered with an error.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(Error::from(ErrorKind::NotFound));
    }
    // SAFETY: called once, at the start of the program, when nothing in it owns a descriptor yet.
    unsafe { crate::process::close_all_but(&[number]) }.map_err(Error::other)?;
    // SAFETY: sets the flag to close at exec on a descriptor that is open and nobody's.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the descriptor is open and, as above, has no other owner.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    SingleThread::verify()?;
    Ok(owned)
}

/// Ends a copy without the clean-up that belongs to the original.
pub fn exit_copy(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing of this program runs afterwards.
    unsafe { libc::_exit(code) }
}
