//! Signals by process number, for a parent that knows that its child is not reaped yet, and for the first process of a pid namespace.
//!
//! Everybody else uses descriptors ([`crate::process::send_signal`]): a number alone names nobody for long.

use rustix::io::Errno;

use crate::errno::last_errno;

/// Sends a signal (1 to 64) to one process. Right only for a child that the caller has not reaped, or inside a pid namespace whose
/// first process is the caller.
///
/// # Errors
/// EINVAL for numbers which are no signal or not one process; the kernel's answer.
pub fn signal_process(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 1 || !(1..=64).contains(&signal) {
        return Err(Errno::INVAL);
    }
    kill(pid, signal)
}

/// Sends a signal (1 to 64) to every process of the pid namespace but the caller, which must be its first process.
///
/// # Errors
/// EPERM when the caller is not the first process: "everyone" would be the whole machine. ESRCH when there is nobody else.
pub fn signal_everyone(signal: i32) -> Result<(), Errno> {
    if !(1..=64).contains(&signal) {
        return Err(Errno::INVAL);
    }
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err(Errno::PERM);
    }
    kill(-1, signal)
}

fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_signalled_by_mistake() {
        assert_eq!(signal_everyone(15), Err(Errno::PERM), "a test is not the first process");
        for (pid, signal) in [(-1, 15), (0, 15), (1, 15), (i32::MIN, 15), (2, 0), (2, 65)] {
            assert_eq!(signal_process(pid, signal), Err(Errno::INVAL));
        }
    }
}
