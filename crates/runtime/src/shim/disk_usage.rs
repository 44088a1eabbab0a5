//! What the disk of a running container holds. Images are asked where they are mounted, since their file tells only what was ever written;
//! the other backends keep count themselves.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use atoll_sys::mount;
use atoll_sys::process::ProcessState;
use atoll_wire::record::ProcessId;
use atoll_wire::shim::{DiskBackend, Engine, gvisor_disk};
use rustix::fs::{Mode, OFlags};

use crate::{DiskUsage, disk};

use super::adopt::identity;
use super::directory::{Found, SandboxDirectory};

/// SOURCE: OVERLAYFS_SUPER_MAGIC in include/uapi/linux/magic.h.
const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// Blocks. `None`: it cannot be seen at the moment.
pub(super) fn of(directory: &SandboxDirectory, container: &str) -> Option<DiskUsage> {
    let Found::Whole(launch) = directory.launch() else { return None };
    let plan = launch.plan.containers.iter().find(|it| it.name == container)?;
    let usage = match launch.placement.disk_backend {
        DiskBackend::Image => {
            disk::usage_of_image(&mounted(directory, container, launch.placement.engine)?)
        }
        backend @ (DiskBackend::Btrfs | DiskBackend::ProjectQuota) => {
            let path = directory.disk(container, backend);
            disk::usage_of_directory(backend, &path, plan.disk_bytes)
        }
    };
    usage
        .inspect_err(|error| tracing::debug!(%error, container, "a disk cannot be seen"))
        .ok()
        .flatten()
}

/// The disk, or the root that it is the writable layer of, in the mount namespace of a process that has it.
fn mounted(directory: &SandboxDirectory, container: &str, engine: Engine) -> Option<OwnedFd> {
    let Found::Whole(record) = directory.shim_record() else { return None };
    match engine {
        // Recorded once it has entered its root.
        Engine::Container => {
            let init = &record.containers.iter().find(|it| it.name == container)?.init;
            let root = open_of(init, Path::new("/"))?;
            // An image's own first process may have entered another root since, which is not to be taken for its disk.
            (mount::file_system_magic(&root) == Ok(OVERLAY_MAGIC)).then_some(root)
        }
        Engine::Gvisor => {
            let place = directory.path.join(gvisor_disk(container));
            let disk = open_of(&record.shim, &place)?;
            // A shim that took over has no such mounts: what is there then is the data directory's own file system.
            let above = open_of(&record.shim, place.parent()?)?;
            let device = |file: &OwnedFd| Some(rustix::fs::fstat(file).ok()?.st_dev);
            (device(&disk)? != device(&above)?).then_some(disk)
        }
    }
}

/// A directory as a process sees it. No word of the sandbox is part of the path.
fn open_of(process: &ProcessId, path: &Path) -> Option<OwnedFd> {
    let mut seen = PathBuf::from(format!("/proc/{}/root", process.pid));
    seen.extend(path.strip_prefix("/"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&seen, flags, Mode::empty()).ok()?;
    // Looked at afterwards: the number may have been another process's by the time it was opened.
    let lives = identity(process).state().is_ok_and(|state| state == ProcessState::Running);
    lives.then_some(opened)
}
