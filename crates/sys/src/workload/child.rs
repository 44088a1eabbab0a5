//! What a process just forked does to itself until it executes its program.
//!
//! Everything is prepared before the fork: from there on only bare system calls are made, nothing is allocated, no lock is taken, nothing
//! is written but on the child's own stack, since memory may be shared with the parent. Never returns into the parent's code except where
//! [`super::start_helper`] says so.

use std::ptr;

use rustix::io::Errno;

use super::{Identity, Program, Raw, Step};
use crate::bare::call;
use crate::clone::pointers;
use crate::forking::exit_copy;
use crate::process::HIGHEST_DESCRIPTOR;
use crate::seccomp::Filter;

/// A step's number and an error number: less than PIPE_BUF, so written as a whole.
pub(super) const STATUS_BYTES: usize = 5;
/// SOURCE: _LINUX_CAPABILITY_VERSION_3 in include/uapi/linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Exit code of a process that did not come to execute its program; its parent knows why by the status pipe.
const NOT_EXECUTED: i32 = 127;

type Outcome = Result<(), (Step, Errno)>;

/// SOURCE: struct __user_cap_header_struct.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// SOURCE: struct __user_cap_data_struct; two of them make 64 bits.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// An identity with all that it takes to become it.
#[derive(Debug)]
pub(super) struct IdentityPlan {
    identity: Identity,
    /// Capabilities to drop from the bounding set.
    dropped: Vec<u32>,
    /// What is permitted and effective afterwards.
    capabilities: u64,
}

impl IdentityPlan {
    pub(super) fn new(identity: Identity) -> Self {
        let own = bounding_set();
        let dropped =
            (0..64).filter(|number| own & !identity.capabilities & (1 << number) != 0).collect();
        let root = identity.uid == 0;
        let capabilities = if root { own_permitted() & identity.capabilities } else { 0 };
        Self { identity, dropped, capabilities }
    }

    /// Becomes the user, with its capabilities. A filter that may only be installed by the privileged is installed before.
    pub(super) fn take_on(&self) -> Outcome {
        let failed = Step::Identity;
        if !self.identity.no_new_privileges {
            self.install_filter()?;
        }
        for number in &self.dropped {
            // SAFETY: takes numbers only.
            check(failed, unsafe {
                let drop = libc::PR_CAPBSET_DROP as usize;
                call(libc::SYS_prctl, [drop, *number as usize, 0, 0, 0])
            })?;
        }
        self.become_user()?;
        // SAFETY: takes numbers only. Kernels without ambient capabilities (EINVAL) have none to clear.
        let _ = unsafe {
            let (ambient, clear) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL);
            call(libc::SYS_prctl, [ambient as usize, clear as usize, 0, 0, 0])
        };
        self.set_capabilities()
    }

    fn install_filter(&self) -> Outcome {
        let install = |filter: &Filter| filter.install().map_err(|errno| (Step::Filter, errno));
        self.identity.filter.as_ref().map_or(Ok(()), install)
    }

    fn become_user(&self) -> Outcome {
        let Identity { uid, gid, supplementary_gids: groups, .. } = &self.identity;
        let failed = Step::Identity;
        // SAFETY: the kernel reads `len` numbers of a vector that lives.
        check(failed, unsafe {
            call(libc::SYS_setgroups, [groups.len(), groups.as_ptr().addr()])
        })?;
        // SAFETY: takes numbers only.
        check(failed, unsafe { call(libc::SYS_setresgid, [*gid as usize; 3]) })?;
        // SAFETY: takes numbers only.
        check(failed, unsafe { call(libc::SYS_setresuid, [*uid as usize; 3]) })
    }

    fn set_capabilities(&self) -> Outcome {
        let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        let half = |shift: u32| {
            let bits =
                u32::try_from((self.capabilities >> shift) & u64::from(u32::MAX)).unwrap_or(0);
            CapabilityData { effective: bits, permitted: bits, inheritable: 0 }
        };
        let data = [half(0), half(32)];
        // SAFETY: both structures have the layout of version 3 and live until the call returns.
        check(Step::Identity, unsafe {
            call(libc::SYS_capset, [ptr::from_ref(&header).addr(), data.as_ptr().addr()])
        })
    }

    /// no_new_privs, and under it the filter.
    pub(super) fn confine(&self) -> Outcome {
        if !self.identity.no_new_privileges {
            return Ok(());
        }
        // SAFETY: takes numbers only.
        check(Step::Filter, unsafe {
            call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0])
        })?;
        self.install_filter()
    }
}

/// A program with everything that the kernel wants as pointers. They point into strings on the heap: the plan may be moved.
#[derive(Debug)]
pub(super) struct Plan {
    program: Program,
    identity: IdentityPlan,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    oom_score_adj: Vec<u8>,
    standard: [Raw; 3],
    status: Raw,
}

impl Plan {
    pub(super) fn new(program: Program, standard: [Raw; 3], status: Raw) -> Self {
        Self {
            identity: IdentityPlan::new(program.identity.clone()),
            args: pointers(&program.args),
            env: pointers(&program.env),
            oom_score_adj: program.oom_score_adj.to_string().into_bytes(),
            standard,
            status,
            program,
        }
    }

    /// Becomes the program, or tells why not and ends.
    pub(super) fn execute(&self) -> ! {
        if let Err((step, errno)) = self.prepare_and_execute() {
            let mut message = [0; STATUS_BYTES];
            message[0] = step as u8;
            message[1..].copy_from_slice(&errno.raw_os_error().to_le_bytes());
            // SAFETY: writes a buffer that lives to a descriptor number; if that fails, nobody is left to be told.
            let _ = unsafe {
                let status = self.status.cast_unsigned() as usize;
                call(libc::SYS_write, [status, message.as_ptr().addr(), message.len()])
            };
        }
        exit_copy(NOT_EXECUTED)
    }

    fn prepare_and_execute(&self) -> Outcome {
        // SAFETY: takes nothing.
        check(Step::Session, unsafe { call(libc::SYS_setsid, []) })?;
        take_standard_streams(&self.standard)?;
        if self.program.controlling_terminal {
            // SAFETY: TIOCSCTTY takes a number.
            check(Step::Session, unsafe {
                call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0])
            })?;
        }
        inherit_nothing();
        self.set_limits()?;
        self.identity.take_on()?;
        // SAFETY: the path is a C string that lives.
        check(Step::WorkingDirectory, unsafe {
            call(libc::SYS_chdir, [self.program.working_directory.as_ptr().addr()])
        })?;
        self.identity.confine()?;
        unblock_all_signals();
        self.try_candidates()
    }

    fn set_limits(&self) -> Outcome {
        if self.program.oom_score_adj != 0 {
            write_oom_score_adj(&self.oom_score_adj);
        }
        // SAFETY: takes a number.
        let _ = unsafe { call(libc::SYS_umask, [(self.program.umask & 0o777) as usize]) };
        let (soft, hard) = self.program.open_files;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        set_limit(libc::RLIMIT_NOFILE, &limit)?;
        let Some(processes) = self.program.processes else { return Ok(()) };
        let limit = libc::rlimit { rlim_cur: processes, rlim_max: processes };
        set_limit(libc::RLIMIT_NPROC, &limit)
    }

    /// As execvp: a path that is missing does not end the search, one that is forbidden is remembered.
    fn try_candidates(&self) -> Outcome {
        let mut forbidden = false;
        for candidate in &self.program.candidates {
            // SAFETY: path and both arrays are C strings that live; the arrays end with a null pointer.
            let answer = unsafe {
                let arrays = [self.args.as_ptr().addr(), self.env.as_ptr().addr()];
                call(libc::SYS_execve, [candidate.as_ptr().addr(), arrays[0], arrays[1]])
            };
            match answer {
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::ACCESS) => forbidden = true,
                Err(errno) => return Err((Step::Execute, errno)),
            }
        }
        Err((Step::Execute, if forbidden { Errno::ACCESS } else { Errno::NOENT }))
    }
}

fn check(step: Step, answer: Result<usize, Errno>) -> Outcome {
    answer.map(drop).map_err(|errno| (step, errno))
}

fn set_limit(resource: libc::__rlimit_resource_t, limit: &libc::rlimit) -> Outcome {
    // SAFETY: the kernel reads a structure that lives, and writes nothing where it is given no address. On 64-bit machines `rlimit` is what
    // the call wants.
    check(Step::Limits, unsafe {
        call(libc::SYS_prlimit64, [0, resource as usize, ptr::from_ref(limit).addr(), 0])
    })
}

/// The caller's descriptors are all above 2, since it has its own standard streams open.
pub(super) fn take_standard_streams(standard: &[Raw; 3]) -> Outcome {
    for (target, source) in (0..).zip(standard) {
        let source = source.cast_unsigned() as usize;
        // SAFETY: takes numbers; what was open as 0 to 2 belongs to the process before the fork and is not used any more.
        check(Step::Descriptors, unsafe { call(libc::SYS_dup3, [source, target, 0]) })?;
    }
    Ok(())
}

/// A second lock on the door: all of the caller's descriptors are made to be closed at exec, kernels without the call rely on that.
fn inherit_nothing() {
    // SAFETY: sets a flag on descriptors.
    let _ = unsafe {
        let flag = libc::CLOSE_RANGE_CLOEXEC as usize;
        call(libc::SYS_close_range, [3, HIGHEST_DESCRIPTOR as usize, flag])
    };
}

/// For a process that will not execute anything: other processes' pipes must not stay open in it.
pub(super) fn close_all_others() -> Outcome {
    // SAFETY: the owners of these descriptors are in the parent's code, to which this process never returns.
    check(Step::Descriptors, unsafe {
        call(libc::SYS_close_range, [3, HIGHEST_DESCRIPTOR as usize, 0])
    })
}

pub(super) fn bound_address_space(bytes: u64) -> Outcome {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    set_limit(libc::RLIMIT_AS, &limit)
}

/// Best effort: lowering needs CAP_SYS_RESOURCE.
fn write_oom_score_adj(text: &[u8]) {
    let here = libc::AT_FDCWD.cast_unsigned() as usize;
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC).cast_unsigned() as usize;
    // SAFETY: a C string and a buffer that live; the descriptor is closed right here.
    unsafe {
        let path = c"/proc/self/oom_score_adj".as_ptr().addr();
        if let Ok(file) = call(libc::SYS_openat, [here, path, flags, 0]) {
            let _ = call(libc::SYS_write, [file, text.as_ptr().addr(), text.len()]);
            let _ = call(libc::SYS_close, [file]);
        }
    }
}

/// Those too that the C library uses itself.
fn unblock_all_signals() {
    let none = 0_u64;
    let set = libc::SIG_SETMASK.cast_unsigned() as usize;
    // SAFETY: the kernel reads 8 bytes of a variable that lives.
    let _ = unsafe {
        let mask = ptr::from_ref(&none).addr();
        call(libc::SYS_rt_sigprocmask, [set, mask, 0, size_of::<u64>()])
    };
}

/// The calling process's bounding set, by asking for each number.
fn bounding_set() -> u64 {
    (0..64_u32)
        // SAFETY: takes numbers only; numbers without a capability answer EINVAL.
        .take_while(|number| unsafe {
            libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(*number), 0, 0, 0) >= 0
        })
        // SAFETY: as above.
        .filter(|number| unsafe {
            libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(*number), 0, 0, 0) == 1
        })
        .fold(0, |set, number| set | 1 << number)
}

fn own_permitted() -> u64 {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: both structures have the layout of version 3; the kernel writes two of the second.
    let answer =
        unsafe { libc::syscall(libc::SYS_capget, ptr::from_ref(&header), data.as_mut_ptr()) };
    if answer == 0 { u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32 } else { 0 }
}
