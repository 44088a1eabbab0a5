//! Waiting for descriptors and for the end of children at once, in a process of one thread that no signal may disturb.
//!
//! Every signal is blocked all the time; only SIGCHLD is let in, and only while waiting. Needs no descriptor of its own and nothing but
//! `ppoll`, which every kernel (gVisor too) has.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;

use crate::errno::last_errno;

/// Bit of a signal in a kernel mask.
const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Blocks all signals that can be blocked, from now on, and forgets what dispositions were inherited. Children started by
/// [`crate::workload`] have none blocked. Call once, first thing in a process.
///
/// # Errors
/// The kernel's answer.
pub fn hold_signals() -> Result<(), Errno> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    let all = u64::MAX;
    // SAFETY: the kernel reads 8 bytes of a variable that lives. By a bare system call: the C library's function leaves signals out.
    let blocked = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&all),
            ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    if blocked != 0 {
        return Err(last_errno());
    }
    for signal in 1..=64 {
        let wanted =
            if signal == libc::SIGCHLD { handler as libc::sighandler_t } else { libc::SIG_DFL };
        // SAFETY: the handler does nothing, so it is safe at any moment. SIGKILL, SIGSTOP and the C library's own refuse; so be it.
        unsafe {
            libc::signal(signal, wanted);
        }
    }
    Ok(())
}

/// Descriptors to wait for. Rebuilt for each wait; keeps its memory.
#[derive(Debug, Default)]
pub struct PollSet {
    entries: Vec<libc::pollfd>,
}

/// Where a descriptor stands in a [`PollSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(usize);

impl PollSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all descriptors.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Waits for a descriptor to have something to read, or to have come to its end.
    pub fn add_reader(&mut self, descriptor: impl AsFd) -> Slot {
        self.add(&descriptor, libc::POLLIN)
    }

    /// Waits for a descriptor to take something, or to have lost its reader.
    pub fn add_writer(&mut self, descriptor: impl AsFd) -> Slot {
        self.add(&descriptor, libc::POLLOUT)
    }

    fn add(&mut self, descriptor: &impl AsFd, events: i16) -> Slot {
        let fd = descriptor.as_fd().as_raw_fd();
        self.entries.push(libc::pollfd { fd, events, revents: 0 });
        Slot(self.entries.len() - 1)
    }

    /// Whether a descriptor had its event at the last wait, an error or a hang-up included.
    #[must_use]
    pub fn is_ready(&self, slot: Slot) -> bool {
        self.entries.get(slot.0).is_some_and(|entry| entry.revents != 0)
    }

    /// Waits for an event, the end of a child (see [`hold_signals`]) or the time-out. Does not say which.
    ///
    /// # Errors
    /// The kernel's answer, EINTR excepted.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Errno> {
        let mut timeout = timeout.map(|duration| libc::timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: duration.subsec_nanos().into(),
        });
        let timeout = timeout.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let let_in = !bit(libc::SIGCHLD);
        // SAFETY: the vector's entries, the time and the mask of 8 bytes live; the kernel writes `revents` of as many entries as
        // it is told, and the time that was left.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_ppoll,
                self.entries.as_mut_ptr(),
                self.entries.len(),
                timeout,
                ptr::from_ref(&let_in),
                size_of::<u64>(),
            )
        };
        if answer >= 0 {
            return Ok(());
        }
        for entry in &mut self.entries {
            entry.revents = 0;
        }
        match last_errno() {
            Errno::INTR => Ok(()),
            errno => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_something_to_read_is_ready_and_what_has_not_is_not() {
        let (empty, _keep) = rustix::pipe::pipe().unwrap();
        let (full, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let mut set = PollSet::new();
        let slots = [set.add_reader(&empty), set.add_reader(&full), set.add_writer(&writer)];
        set.wait(None).unwrap();
        assert_eq!(slots.map(|slot| set.is_ready(slot)), [false, true, true]);
        drop(writer);
        set.clear();
        let slot = set.add_reader(&empty);
        set.wait(Some(Duration::from_millis(1))).unwrap();
        assert!(!set.is_ready(slot));
    }
}
