//! The stage: a small memory file system in a mount namespace of the shim's own, where the pieces of all containers are laid out before
//! they are put together.
//!
//! Owns `<directory>/stage`. A container's first process begins with a copy of this mount namespace, takes what it needs and leaves
//! the rest behind when it changes its root. Nothing here is seen by the host, and all of it is gone with the shim.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::{SandboxPlan, VolumeSource};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::Failed;
use crate::engine::EngineError;

/// Where the overlay is put together.
pub(super) const ROOT: &str = "root";
/// Where the container's disk stands while it is.
pub(super) const DISK: &str = "disk";
/// Its layers, by number.
pub(super) const LAYERS: &str = "layers";
/// sysfs of the sandbox's network namespace, dressed.
pub(super) const SYSFS: &str = "sysfs";
/// /dev/shm.
pub(super) const SHARED_MEMORY: &str = "shm";
/// Volumes, by number.
pub(super) const VOLUMES: &str = "volumes";
/// A directory with nothing in it, to cover directories with.
pub(super) const EMPTY_DIRECTORY: &str = "empty";
/// A file with nothing in it, to cover files with.
pub(super) const EMPTY_FILE: &str = "nothing";

/// The guest program.
pub(super) const GUEST: &str = "guest";

/// Room for names only (bytes).
const STAGE_BYTES: &str = "262144";
/// Directories of /sys that tell about the host's hardware or its secrets.
const MASKED_IN_SYSFS: [&str; 2] = ["firmware", "devices/virtual/powercap"];
/// What every mount but /dev has.
pub(super) const INERT: Attributes = Attributes::MOUNT_ATTR_NOSUID
    .union(Attributes::MOUNT_ATTR_NODEV)
    .union(Attributes::MOUNT_ATTR_NOEXEC);

/// Where the stage of a sandbox is.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("stage")
}

/// Moves the calling process into a mount namespace of its own and lays out what the plan's containers share.
pub(super) fn set_up(
    directory: &Path,
    plan: &SandboxPlan,
    sysfs: Option<OwnedFd>,
    volumes: Vec<(String, OwnedFd)>,
    owner: Owner<'_>,
) -> Result<(), EngineError> {
    let first_host_id = owner.first_host_id;
    atoll_sys::clone::unshare(UnshareFlags::NEWNS).failed(|| "make a mount namespace")?;
    // Unmounts of the host are followed: a shim must not keep the host's disks busy.
    mount::isolate_propagation(true).failed(|| "keep mounts to the sandbox")?;
    let path = path(directory);
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).failed(|| format!("make {}", path.display())),
    }
    let options = [("size", Some(STAGE_BYTES)), ("mode", Some("700"))];
    let stage = mount::new_file_system("tmpfs", &options, INERT)
        .failed(|| "make the stage's file system")?;
    let place = mount::open_directory(&path).failed(|| format!("open {}", path.display()))?;
    mount::attach(stage.as_fd(), place.as_fd()).failed(|| "mount the stage")?;
    make_places(stage.as_fd(), plan).failed(|| "lay out the stage")?;
    if let Some(sysfs) = sysfs {
        place_sysfs(stage.as_fd(), &sysfs)?;
    }
    place_memory(stage.as_fd(), SHARED_MEMORY, plan.shm_bytes, first_host_id)?;
    for (number, volume) in plan.volumes.iter().enumerate() {
        let place = format!("{VOLUMES}/{number}");
        match volume.source {
            VolumeSource::Memory => {
                place_memory(stage.as_fd(), &place, volume.size_bytes, first_host_id)?;
            }
            VolumeSource::Named(_) => {
                let mounted = volumes.iter().find(|(name, _)| *name == volume.name);
                place_named(stage.as_fd(), &place, mounted, &volume.name, owner.user)?;
            }
        }
    }
    Ok(())
}

/// Whose the sandbox's files are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    /// Its root on the host.
    pub(super) first_host_id: u32,
    /// Its user namespace, where it has one.
    pub(super) user: Option<BorrowedFd<'a>>,
}

/// Shows the files of a named volume under the sandbox's ids: they lie on disk under ids that no sandbox has.
fn place_named(
    stage: BorrowedFd<'_>,
    place: &str,
    mounted: Option<&(String, OwnedFd)>,
    name: &str,
    user: Option<BorrowedFd<'_>>,
) -> Result<(), EngineError> {
    let what = || format!("mount the volume {name:?}");
    let Some((_, mounted)) = mounted else {
        return Err(EngineError::new(what(), "it did not come with the launch"));
    };
    if let Some(user) = user {
        mount::map_ids(mounted.as_fd(), user).failed(what)?;
    }
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    mount::add_attributes(mounted.as_fd(), attributes).failed(what)?;
    mount::attach_at(mounted.as_fd(), stage, place).failed(what)
}

fn make_places(stage: BorrowedFd<'_>, plan: &SandboxPlan) -> Result<(), Errno> {
    let make = |name: &str| rustix::fs::mkdirat(stage, name, Mode::from_raw_mode(0o755));
    for name in [ROOT, DISK, LAYERS, SYSFS, SHARED_MEMORY, VOLUMES, EMPTY_DIRECTORY] {
        make(name)?;
    }
    let layers = plan.containers.iter().map(|container| container.layers.len()).max();
    for number in 0..layers.unwrap_or(0) {
        make(&format!("{LAYERS}/{number}"))?;
    }
    for number in 0..plan.volumes.len() {
        make(&format!("{VOLUMES}/{number}"))?;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    for name in [EMPTY_FILE, GUEST] {
        rustix::fs::openat(stage, name, flags, Mode::from_raw_mode(0o444)).map(drop)?;
    }
    Ok(())
}

fn place_sysfs(stage: BorrowedFd<'_>, sysfs: &OwnedFd) -> Result<(), EngineError> {
    let attributes = INERT | Attributes::MOUNT_ATTR_RDONLY;
    mount::add_attributes(sysfs.as_fd(), attributes).failed(|| "make sysfs read-only")?;
    mount::attach_at(sysfs.as_fd(), stage, SYSFS).failed(|| "mount sysfs")?;
    for name in MASKED_IN_SYSFS {
        cover(stage, sysfs.as_fd(), name)?;
    }
    Ok(())
}

fn place_memory(
    stage: BorrowedFd<'_>,
    name: &str,
    size_bytes: u64,
    first_host_id: u32,
) -> Result<(), EngineError> {
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    let memory = memory_file_system(size_bytes, 0o1777, first_host_id, attributes)?;
    mount::attach_at(memory.as_fd(), stage, name).failed(|| format!("mount {name}"))
}

/// A detached memory file system that belongs to the sandbox's root.
pub(super) fn memory_file_system(
    size_bytes: u64,
    mode: u32,
    first_host_id: u32,
    attributes: Attributes,
) -> Result<OwnedFd, EngineError> {
    let (size, mode, id) =
        (size_bytes.max(4096).to_string(), format!("{mode:o}"), first_host_id.to_string());
    let options = [
        ("size", Some(size.as_str())),
        ("mode", Some(mode.as_str())),
        ("uid", Some(id.as_str())),
        ("gid", Some(id.as_str())),
    ];
    mount::new_file_system("tmpfs", &options, attributes)
        .failed(|| format!("make a memory file system of {size_bytes} bytes"))
}

/// Covers a file or directory of a kernel file system with emptiness that the stage owns, never with anything of an image. What this
/// kernel does not have needs no cover.
pub(super) fn cover(
    stage: BorrowedFd<'_>,
    file_system: BorrowedFd<'_>,
    name: &str,
) -> Result<(), EngineError> {
    let Some(target) = inside(file_system, name).failed(|| format!("look for {name}"))? else {
        return Ok(());
    };
    let kind = rustix::fs::fstat(&target).failed(|| format!("look at {name}"))?.st_mode;
    let is_directory = rustix::fs::FileType::from_raw_mode(kind).is_dir();
    let cover = if is_directory { EMPTY_DIRECTORY } else { EMPTY_FILE };
    mount::copy_tree(stage, Path::new(cover), false)
        .and_then(|copy| {
            mount::add_attributes(copy.as_fd(), INERT | Attributes::MOUNT_ATTR_RDONLY)?;
            mount::attach(copy.as_fd(), target.as_fd())
        })
        .failed(|| format!("mask {name}"))
}

/// Opens a name within one mounted file system of the kernel; `None` where it does not exist.
pub(super) fn inside(file_system: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(file_system, name, flags, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Takes the stage away, in the shim's own mount namespace, and its directory.
pub(super) fn take_down(directory: &Path) -> Result<(), EngineError> {
    let path = path(directory);
    match mount::detach(&path) {
        // EINVAL: not mounted in this namespace, because it was never set up or belonged to an earlier shim.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno).failed(|| format!("unmount {}", path.display())),
    }
    match rustix::fs::rmdir(&path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).failed(|| format!("remove {}", path.display())),
    }
}
