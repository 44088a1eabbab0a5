//! The first process of a container: starts the command as its child, serves exec and files, and keeps exits until they are recorded.
//!
//! A static program of one thread, mounted read-only. It speaks the protocol of [`atoll_wire::guest`] over its standard input and output
//! and obeys only that. It never listens, never blocks on the workload or on the host, and buffers little: back-pressure goes through to
//! the workload's pipes.
//!
//! INVARIANT: the workload cannot use or impersonate the channel. The guest is not dumpable, so its descriptors and memory are closed
//! to everyone without CAP_SYS_PTRACE over its user namespace, root inside included; every descriptor is closed at exec and the
//! workload gets fresh pipes; every signal that can be blocked is, and the kernel keeps the rest from a first process. Where the kernel
//! does not keep descriptors closed (gVisor), a [`shield`] is raised.
//!
//! Capabilities that the guest itself uses: SETUID, SETGID, SETPCAP (to become the user with less), KILL (signals across users), CHOWN
//! (a user's own pipes and terminal), DAC_OVERRIDE (making a working directory), SYS_ADMIN (hostname, over its own user
//! namespace only; in gVisor also to cover files, see [`shield`]). A workload gets what its [`ProcessSpec`](atoll_wire::guest::ProcessSpec) names, at exec.

mod archive;
mod channel;
mod guest;
mod input;
mod launch;
mod output;
mod processes;
mod shield;
mod stream;
mod terminal;
mod transfer;

use std::process::ExitCode;

use atoll_wire::guest::GUEST_FAILURE_EXIT_CODE;
use processes::KernelUse;

fn main() -> ExitCode {
    let begun = prepare().and_then(|()| KernelUse::from_arguments(std::env::args().skip(1)));
    let code = match begun {
        Ok(kernel_use) => guest::Guest::new(kernel_use).run(),
        Err(error) => {
            channel::diagnose(&format!("cannot begin: {error}"));
            GUEST_FAILURE_EXIT_CODE
        }
    };
    // Only the low byte of an exit code travels.
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// Closes every door before anything else runs in the container.
fn prepare() -> std::io::Result<()> {
    atoll_sys::poll_set::hold_signals()?;
    atoll_sys::process::forbid_inspection().map_err(std::io::Error::other)?;
    atoll_sys::process::close_on_exec_all_but(&[]).map_err(std::io::Error::other)?;
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        atoll_sys::process::become_child_subreaper().map_err(std::io::Error::other)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for descriptor in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::io::ioctl_fionbio(descriptor, true)?;
    }
    Ok(())
}
