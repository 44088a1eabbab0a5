//! A container's root: the image's layers, shown with the sandbox's ids, under a writable layer on the container's own disk.
//!
//! Owns the overlay and the directories on the disk. Runs in the container's first process, before any of the image's code.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::ContainerPlan;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use rustix::io::Errno;

use super::{Failed, stage};
use crate::engine::EngineError;
use crate::image_root::ImageRoot;

/// Directory of the disk that holds what the container wrote.
const UPPER: &str = "upper";
/// Directory of the disk that overlayfs works in.
const WORK: &str = "work";
/// Directory of the disk that is /tmp of a container with a read-only root.
const TEMPORARY: &str = "tmp";

/// Puts the overlay together on the stage. The caller's working directory must be the stage; it is afterwards.
pub(super) fn assemble(
    plan: &ContainerPlan,
    disk: BorrowedFd<'_>,
    user_namespace: Option<BorrowedFd<'_>>,
    first_host_id: u32,
) -> Result<ImageRoot, EngineError> {
    let layers = mount::open_directory(Path::new(stage::LAYERS)).failed(|| "open the stage")?;
    let mut look = Look { mode: 0o755, user: first_host_id, group: first_host_id };
    // The topmost comes first, and gives the root its owner and mode.
    for (number, layer) in plan.layers.iter().enumerate().rev() {
        look = place_layer(layer, number, layers.as_fd(), user_namespace)?;
    }
    mount::attach_at(disk, CWD, stage::DISK).failed(|| "mount the container's disk")?;
    make_directory(disk, UPPER, look)?;
    make_directory(disk, WORK, Look { mode: 0o700, user: 0, group: 0 })?;
    rustix::process::fchdir(&layers).failed(|| "enter the stage")?;
    let numbers: Vec<String> = (0..plan.layers.len()).map(|number| number.to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir=../{disk}/{UPPER},workdir=../{disk}/{WORK},\
         redirect_dir=nofollow,metacopy=off,index=off",
        numbers.join(":"),
        disk = stage::DISK,
    );
    let target = Path::new("..").join(stage::ROOT);
    mount::mount_overlay(&target, &options, plan.process.no_new_privileges)
        .failed(|| format!("put {} layers together", plan.layers.len()))?;
    rustix::process::chdir(c"..").failed(|| "leave the layers")?;
    let root = mount::open_directory(Path::new(stage::ROOT)).failed(|| "open the new root")?;
    Ok(ImageRoot::new(root, first_host_id))
}

/// Owner and mode of a directory, as the host sees them.
#[derive(Clone, Copy)]
struct Look {
    mode: u32,
    user: u32,
    group: u32,
}

/// Gives the owner and mode of the layer's root, with the sandbox's ids.
fn place_layer(
    layer: &Path,
    number: usize,
    layers: BorrowedFd<'_>,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<Look, EngineError> {
    let copy = mount::copy_tree(CWD, layer, false)
        .failed(|| format!("open the layer {}", layer.display()))?;
    if let Some(user_namespace) = user_namespace {
        mount::map_ids(copy.as_fd(), user_namespace).failed(|| {
            format!("map the ids of {} (its file system cannot, or is mapped)", layer.display())
        })?;
    }
    let stat =
        rustix::fs::fstat(&copy).failed(|| format!("look at the layer {}", layer.display()))?;
    mount::attach_at(copy.as_fd(), layers, &number.to_string())
        .failed(|| format!("place the layer {}", layer.display()))?;
    Ok(Look { mode: stat.st_mode & 0o7777, user: stat.st_uid, group: stat.st_gid })
}

fn make_directory(disk: BorrowedFd<'_>, name: &str, look: Look) -> Result<(), EngineError> {
    let mode = Mode::from_raw_mode(look.mode);
    let made = match rustix::fs::mkdirat(disk, name, mode) {
        Ok(()) => {
            let (user, group) = (Uid::from_raw(look.user), Gid::from_raw(look.group));
            rustix::fs::chownat(disk, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                // A new owner takes set-id bits off, and mkdir never sets them.
                .and_then(|()| rustix::fs::chmodat(disk, name, mode, AtFlags::empty()))
        }
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    };
    made.failed(|| format!("make {name} on the container's disk"))
}

/// A detached mount of the disk's directory for temporary files: /tmp of a read-only root.
pub(super) fn temporary(disk: BorrowedFd<'_>, first_host_id: u32) -> Result<OwnedFd, EngineError> {
    let look = Look { mode: 0o1777, user: first_host_id, group: first_host_id };
    make_directory(disk, TEMPORARY, look)?;
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    mount::copy_tree(disk, Path::new(TEMPORARY), false)
        .and_then(|copy| {
            mount::add_attributes(copy.as_fd(), attributes)?;
            Ok(copy)
        })
        .failed(|| "prepare the disk for temporary files")
}
