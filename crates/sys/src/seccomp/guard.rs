//! A filter that protects one process from the others under it: its limits, and where the kernel does not, from the two signals which
//! nobody can block.
//!
//! Linux keeps these from the first process of a pid namespace by itself. Kernels that do not (gVisor) let root inside kill or stop it:
//! under this filter such a signal is said to have been sent, as Linux says, and is not.

use super::Filter;
use super::compile::{
    JUMP_EQUAL, LOAD_WORD, OFFSET_ARGS, OFFSET_NUMBER, RETURN, RETURN_ALLOW, RETURN_ERRNO,
};

/// SOURCE: include/uapi/asm-generic/fcntl.h.
const F_SETSIG: u32 = 10;

const KILL: u32 = libc::SIGKILL.cast_unsigned();
const STOP: u32 = libc::SIGSTOP.cast_unsigned();

/// Where the low half of an argument stands in `struct seccomp_data` (little-endian). The upper half is nothing to these calls.
const fn argument(number: u32) -> u32 {
    OFFSET_ARGS + 8 * number
}

const fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: offset }
}

/// Skips so many instructions when equal, or when not.
const fn if_equal(value: u32, equal: u8, other: u8) -> libc::sock_filter {
    libc::sock_filter { code: JUMP_EQUAL, jt: equal, jf: other, k: value }
}

const fn answer(value: u32) -> libc::sock_filter {
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: value }
}

/// Continues when the loaded number is that of the system call; else skips the block behind it.
fn if_call(number: libc::c_long, block: u8) -> libc::sock_filter {
    if_equal(u32::try_from(number).unwrap_or(u32::MAX), 0, block)
}

impl Filter {
    /// Keeps everybody from changing the resource limits of the process of that number, which is asked of no privilege when both are root;
    /// with `signals` SIGKILL and SIGSTOP too, by whatever call names it (or its first thread). All other calls go on to `then`, or pass.
    #[must_use]
    pub fn guarding(pid: i32, signals: bool, then: Option<&Self>) -> Self {
        let pid = pid.cast_unsigned();
        let mut program = vec![
            load(OFFSET_NUMBER),
            if_call(libc::SYS_prlimit64, 3),
            load(argument(0)),
            if_equal(pid, 0, 1),
            answer(RETURN_ERRNO | libc::EPERM.cast_unsigned()),
        ];
        if signals {
            program.extend(signal_guard(pid));
        }
        match then {
            Some(then) => program.extend_from_slice(&then.0),
            None => program.push(answer(RETURN_ALLOW)),
        }
        Self(program.into())
    }
}

fn signal_guard(pid: u32) -> Vec<libc::sock_filter> {
    // Target and signal by the place of their arguments.
    let calls = [
        (libc::SYS_kill, 0, 1),
        (libc::SYS_tkill, 0, 1),
        (libc::SYS_rt_sigqueueinfo, 0, 1),
        (libc::SYS_tgkill, 1, 2),
        (libc::SYS_rt_tgsigqueueinfo, 1, 2),
    ];
    let mut program = Vec::new();
    for (call, target, signal) in calls {
        program.extend(refuse_signals(call, (target, pid), signal, 0));
    }
    // A descriptor that signals its owner when something comes: the owner may be anyone.
    let error = libc::EINVAL.cast_unsigned();
    program.extend(refuse_signals(libc::SYS_fcntl, (1, F_SETSIG), 2, error));
    program
}

/// Answers with that error number where an argument has that value and another is one of the two signals; else goes on behind the block.
fn refuse_signals(
    call: libc::c_long,
    (target, value): (u32, u32),
    signal: u32,
    error: u32,
) -> [libc::sock_filter; 8] {
    [
        load(OFFSET_NUMBER),
        if_call(call, 6),
        load(argument(target)),
        if_equal(value, 0, 4),
        load(argument(signal)),
        if_equal(KILL, 1, 0),
        if_equal(STOP, 0, 1),
        answer(RETURN_ERRNO | error),
    ]
}
