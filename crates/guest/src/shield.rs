//! What protects the guest from its workload beside what the kernel does by itself, raised before anything is started.
//!
//! Everywhere: nobody under the guest may change its resource limits (root may those of root), which could starve or end it.
//!
//! gVisor lets root inside open through /proc/PID/fd what another process has open, kill or stop process 1, and make a descriptor
//! signal it. So there
//! * an empty directory is mounted over the guest's descriptors, two of which are the channel;
//! * while a child is forked, which has copies of them until it has replaced them, the channel is under way in a socket
//!   ([`atoll_sys::workload::hiding`]): nobody can open a socket again. Both take four system calls at a start, and nothing while bytes go to
//!   and fro: a process between channel and guest would hold the descriptors as well, for two changes of context with each message;
//! * every process gets a filter that keeps the two signals back.
//!
//! The channel stays two FIFOs, of which the Sentry holds all ends, so that it survives the shim: a socket from the host would not.
//!
//! Undoing any of it takes CAP_SYS_ADMIN, which a workload does not have.
//!
//! Fails closed: what cannot be covered or hidden fails the boot or the start.

use std::path::Path;

use atoll_sys::seccomp::Filter;
use atoll_sys::workload::Memory;
use atoll_sys::workload::hiding::HidingPlace;
use atoll_wire::guest::{GUEST_FAILURE_EXIT_CODE, UserLimits};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::channel::diagnose;

/// What gVisor says it is, always. No Linux so old could have made the container: it takes clone3 and the mount API.
/// SOURCE: pkg/sentry/syscalls/linux/linux64.go (LinuxRelease).
const GVISOR_RELEASE: &[u8] = b"4.4.0";

/// Whether the kernel is gVisor's.
pub(crate) fn in_gvisor() -> bool {
    rustix::system::uname().release().to_bytes() == GVISOR_RELEASE
}

/// What was raised.
#[derive(Debug)]
pub(crate) struct Shield {
    /// To be in force in every process.
    pub(crate) filter: Filter,
    /// What the kernel is to enforce for every process.
    user_limits: Option<UserLimits>,
    /// Where the channel is while a child is forked.
    hiding_place: Option<HidingPlace>,
}

impl Shield {
    /// Forks: `fork` makes a child and leaves no descriptor open here.
    ///
    /// # Errors
    /// The kernel's answer; nothing was done.
    pub(crate) fn fork<T>(&self, fork: impl FnOnce() -> T) -> Result<T, Errno> {
        let Some(place) = &self.hiding_place else { return Ok(fork()) };
        place.without_standard_streams(fork)?.map_err(|lost| {
            diagnose(&format!("cannot go on: {lost}: {}", lost.source));
            std::process::exit(GUEST_FAILURE_EXIT_CODE)
        })
    }

    /// Most processes of that user that the kernel lets be, where it is asked.
    pub(crate) fn processes_of(&self, uid: u32) -> Option<u64> {
        self.user_limits.map(|limits| if uid == 0 { limits.root } else { limits.other })
    }

    /// What memory a child has: gVisor always forbids to inspect a process that has become another user, and a second address space costs
    /// milliseconds there.
    pub(crate) fn memory(&self) -> Memory {
        if self.hiding_place.is_some() { Memory::Shared } else { Memory::Copied }
    }
}

/// Raises what this kernel needs. `filter` and `user_limits` are the host's.
///
/// # Errors
/// What could not be covered, for people.
pub(crate) fn raise(
    user_limits: Option<UserLimits>,
    filter: Option<&Filter>,
) -> Result<Shield, String> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let gvisor = in_gvisor();
    let filter = Filter::guarding(pid, gvisor, filter);
    if !gvisor {
        return Ok(Shield { filter, user_limits, hiding_place: None });
    }
    for path in [format!("/proc/{pid}/fd"), format!("/proc/{pid}/task/{pid}/fd")] {
        cover(&path)?;
        if Path::new(&path).join("0").symlink_metadata().is_ok() {
            return Err(format!("{path} is still to be seen after it was covered"));
        }
    }
    let place =
        HidingPlace::new().map_err(|errno| format!("cannot make a socket pair: {errno}"))?;
    Ok(Shield { filter, user_limits, hiding_place: Some(place) })
}

/// Mounts an empty directory over a path.
fn cover(path: &str) -> Result<(), String> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", path, "tmpfs", flags, c"size=4k,mode=0555")
        .map_err(|errno| format!("cannot cover {path}: {errno}"))
}
