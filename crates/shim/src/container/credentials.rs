//! Who a process is inside: user, groups, capabilities, filter. Each step only takes away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::clone;
use atoll_wire::guest::UserIds;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet as Bits, CapabilitySets};

use super::Failed;
use crate::engine::{EngineError, StandardStreams};

/// What confines a process that the engine itself starts.
pub(super) struct Confinement<'a> {
    /// The compiled filter.
    pub(super) seccomp_filter: &'a [u8],
}

/// Makes the streams descriptors 0, 1 and 2.
pub(super) fn take_streams(streams: &StandardStreams) -> Result<(), EngineError> {
    // Copies above 2 first: one of the three may be 0, 1 or 2 itself.
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let take = || {
        let (input, output, diagnostics) =
            (copy(&streams.input)?, copy(&streams.output)?, copy(&streams.diagnostics)?);
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(diagnostics)
    };
    take().failed(|| "take the standard streams")
}

/// Becomes root of the sandbox: of its user namespace where it has one.
pub(super) fn become_root_of(user_namespace: Option<BorrowedFd<'_>>) -> Result<(), EngineError> {
    atoll_sys::process::forbid_core_dumps().failed(|| "forbid core dumps")?;
    // Real-time scheduling would take CPU time from the whole host; a server's own limits may allow it and are inherited.
    for resource in [Resource::Rtprio, Resource::Nice] {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(resource, none).failed(|| "forbid higher priorities")?;
    }
    if let Some(user_namespace) = user_namespace {
        clone::enter(user_namespace).failed(|| "enter the sandbox's user namespace")?;
    }
    become_user(&UserIds::default())
}

/// Changes user and groups for good. Keeps capabilities only where the kernel does (root).
pub(super) fn become_user(user: &UserIds) -> Result<(), EngineError> {
    let groups: Vec<Gid> = user.supplementary_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .failed(|| format!("become user {}:{}", user.uid, user.gid))
}

/// Takes everything but `kept` out of the bounding set: no exec can bring it back.
pub(super) fn bound_capabilities(kept: CapabilitySet) -> Result<(), EngineError> {
    for number in 0..64 {
        if kept.contains(number) {
            continue;
        }
        let bit = Bits::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(bit) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno).failed(|| "bound capabilities"),
        }
    }
    Ok(())
}

/// Has exactly these capabilities, to use and to keep at exec as root.
pub(super) fn set_capabilities(kept: CapabilitySet) -> Result<(), EngineError> {
    let kept = Bits::from_bits_retain(kept.mask());
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: Bits::empty() };
    rustix::thread::clear_ambient_capability_set()
        .and_then(|()| rustix::thread::set_capabilities(None, sets))
        .failed(|| "set capabilities")
}

/// Opens a directory by a path inside the own root, never through a magic link of /proc, and goes there.
pub(super) fn enter_directory(path: &str) -> Result<(), EngineError> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)
        .and_then(|directory| rustix::process::fchdir(directory.as_fd()))
        .failed(|| format!("enter the working directory {path}"))
}
