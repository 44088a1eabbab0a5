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
//! In return gVisor has a control group file system of its own: the pids limit is set there, so that the workload sees EAGAIN, and the
//! place is covered as well. Undoing any of it takes CAP_SYS_ADMIN, which a workload does not have.
//!
//! Fails closed: what cannot be covered or hidden fails the boot or the start.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use atoll_sys::seccomp::Filter;
use atoll_sys::workload::Memory;
use atoll_sys::workload::hiding::HidingPlace;
use atoll_wire::guest::GUEST_FAILURE_EXIT_CODE;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::channel::diagnose;
use crate::processes::KernelUse;

/// What gVisor says it is, always. No Linux so old could have made the container: it takes clone3 and the mount API.
/// SOURCE: pkg/sentry/syscalls/linux/linux64.go (LinuxRelease).
const GVISOR_RELEASE: &[u8] = b"4.4.0";
/// gVisor's control groups, where the container's configuration has them.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// Of them, the limit of processes and threads of this container.
const PIDS_MAX: &str = "/sys/fs/cgroup/pids/pids.max";

/// The guest is one of the counted.
const GUEST: u64 = 1;
/// Processes above the workload's limit that gVisor lets be where the guest counts too: it sees a count above the limit then, and ends
/// the workload for that reason. gVisor 20240729 counts loosely: under a fork bomb its own limit only slows.
const ABOVE_LIMIT: u64 = 1;

/// What was raised.
#[derive(Debug)]
pub(crate) struct Shield {
    /// To be in force in every process.
    pub(crate) filter: Filter,
    /// The kernel alone limits the number of processes, nobody has to count.
    pub(crate) limits_processes: bool,
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

    /// What memory a child has: gVisor always forbids to inspect a process that has become another user, and a second address space costs
    /// milliseconds there.
    pub(crate) fn memory(&self) -> Memory {
        if self.hiding_place.is_some() { Memory::Shared } else { Memory::Copied }
    }
}

/// Raises what this kernel needs. `filter` is the host's.
///
/// # Errors
/// What could not be covered, for people.
pub(crate) fn raise(
    kernel_use: KernelUse,
    pids_limit: Option<u64>,
    filter: Option<&Filter>,
) -> Result<Shield, String> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    if rustix::system::uname().release().to_bytes() != GVISOR_RELEASE {
        let filter = Filter::guarding(pid, false, filter);
        return Ok(Shield { filter, limits_processes: false, hiding_place: None });
    }
    for path in [format!("/proc/{pid}/fd"), format!("/proc/{pid}/task/{pid}/fd")] {
        cover(&path)?;
        if Path::new(&path).join("0").symlink_metadata().is_ok() {
            return Err(format!("{path} is still to be seen after it was covered"));
        }
    }
    let guest_counts = kernel_use != KernelUse::Unknown;
    let room = if guest_counts { GUEST + ABOVE_LIMIT } else { GUEST };
    let limited = pids_limit.is_some_and(|limit| limit_processes(limit.saturating_add(room)));
    if Path::new(PIDS_MAX).exists() {
        cover(CONTROL_GROUPS)?;
    }
    if guest_counts && pids_limit.is_some() && !limited {
        return Err(format!("cannot set {PIDS_MAX}"));
    }
    let place =
        HidingPlace::new().map_err(|errno| format!("cannot make a socket pair: {errno}"))?;
    Ok(Shield {
        filter: Filter::guarding(pid, true, filter),
        limits_processes: limited && !guest_counts,
        hiding_place: Some(place),
    })
}

/// Says whether the limit holds.
fn limit_processes(limit: u64) -> bool {
    let text = limit.to_string();
    File::options()
        .write(true)
        .open(PIDS_MAX)
        .is_ok_and(|mut file| file.write_all(text.as_bytes()).is_ok())
}

/// Mounts an empty directory over a path.
fn cover(path: &str) -> Result<(), String> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", path, "tmpfs", flags, c"size=4k,mode=0555")
        .map_err(|errno| format!("cannot cover {path}: {errno}"))
}
