//! What protects the guest from its workload beside what the kernel does by itself, raised before anything is started.
//!
//! Everywhere: nobody under the guest may change its resource limits (root may those of root), which could starve or end it.
//!
//! In gVisor root inside may open /proc/1/fd/*, which are the channel, and may kill or stop process 1. So an empty directory is
//! mounted over those descriptors, and every process gets a filter that keeps the two signals back. In return gVisor has a control group
//! file system of its own: the pids limit is set there, so that the workload sees EAGAIN, and the place is covered as well. Undoing any of
//! it takes CAP_SYS_ADMIN, which a workload does not have.
//!
//! Behind a [`relay`] the channel, limit and place are covered already, and both processes are guarded here. Without one a process just
//! forked shows copies of the channel's descriptors until it execs.
//!
//! Fails closed: what cannot be covered fails the boot.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use atoll_sys::seccomp::Filter;
use rustix::mount::MountFlags;

use crate::relay;

/// What gVisor says it is, always. No Linux so old could have made the container: it takes clone3 and the mount API.
/// SOURCE: pkg/sentry/syscalls/linux/linux64.go (LinuxRelease).
const GVISOR_RELEASE: &[u8] = b"4.4.0";
/// gVisor's control groups, where the container's configuration has them.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// Of them, the limit of processes and threads of this container.
const PIDS_MAX: &str = "/sys/fs/cgroup/pids/pids.max";

/// What was raised.
#[derive(Debug)]
pub(crate) struct Shield {
    /// To be in force in every process.
    pub(crate) filter: Filter,
    /// The kernel limits the number of processes, nobody has to count.
    pub(crate) limits_processes: bool,
}

/// Raises what this kernel needs. `filter` is the host's.
///
/// # Errors
/// What could not be covered, for people.
pub(crate) fn raise(pids_limit: Option<u64>, filter: Option<&Filter>) -> Result<Shield, String> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    if rustix::system::uname().release().to_bytes() != GVISOR_RELEASE {
        let filter = Filter::guarding(pid, false, filter);
        return Ok(Shield { filter, limits_processes: false });
    }
    for path in [format!("/proc/{pid}/fd"), format!("/proc/{pid}/task/{pid}/fd")] {
        cover(&path)?;
        if Path::new(&path).join("0").symlink_metadata().is_ok() {
            return Err(format!("{path} is still to be seen after it was covered"));
        }
    }
    let limits_processes = pids_limit.is_some_and(limit_processes);
    if Path::new(PIDS_MAX).exists() {
        cover(CONTROL_GROUPS)?;
    }
    let guarded = Filter::guarding(pid, true, filter);
    let first = rustix::process::Pid::INIT.as_raw_nonzero().get();
    let filter =
        if relay::is_between() { Filter::guarding(first, true, Some(&guarded)) } else { guarded };
    Ok(Shield { filter, limits_processes })
}

/// The guest itself is one of the counted. Says whether the limit holds.
fn limit_processes(limit: u64) -> bool {
    let text = limit.saturating_add(1).to_string();
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
