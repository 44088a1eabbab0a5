//! What the plan mounts into a container: memory file systems, volumes, and /tmp of a read-only root.
//!
//! Owns the order (outer before inner) and the attributes. Links of the image are followed within the image only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::{ContainerPlan, SandboxPlan, TmpfsPlan, VolumeMountPlan};

use super::stage::{self, memory_file_system};
use super::{Failed, root_file_system};
use crate::engine::EngineError;
use crate::image_root::{ImageRoot, Links};

const PLAIN: Attributes = Attributes::MOUNT_ATTR_NOSUID.union(Attributes::MOUNT_ATTR_NODEV);

enum Wanted<'a> {
    Tmpfs(&'a TmpfsPlan),
    Volume(&'a VolumeMountPlan),
}

impl Wanted<'_> {
    fn path(&self) -> &str {
        match self {
            Self::Tmpfs(plan) => &plan.path,
            Self::Volume(plan) => &plan.path,
        }
    }
}

/// Mounts everything that the plan asks for.
pub(super) fn mount_all(
    root: &ImageRoot,
    stage: BorrowedFd<'_>,
    sandbox: &SandboxPlan,
    plan: &ContainerPlan,
    disk: BorrowedFd<'_>,
    first_host_id: u32,
) -> Result<(), EngineError> {
    if plan.read_only_root {
        let target = root.directory("/tmp", Links::FollowInside)?;
        let temporary = root_file_system::temporary(disk, first_host_id)?;
        mount::attach(temporary.as_fd(), target.as_fd()).failed(|| "mount /tmp")?;
    } else {
        root.ensure_directory("tmp", 0o1777)?;
    }
    let mut wanted: Vec<Wanted<'_>> = plan.tmpfs.iter().map(Wanted::Tmpfs).collect();
    wanted.extend(plan.volume_mounts.iter().map(Wanted::Volume));
    wanted.sort_by_key(|one| one.path().matches('/').count());
    for one in wanted {
        let mounted = match &one {
            Wanted::Tmpfs(plan) => tmpfs(plan, first_host_id)?,
            Wanted::Volume(plan) => volume(plan, stage, sandbox)?,
        };
        let target = root.directory(one.path(), Links::FollowInside)?;
        mount::attach(mounted.as_fd(), target.as_fd())
            .failed(|| format!("mount at {}", one.path()))?;
    }
    Ok(())
}

fn tmpfs(plan: &TmpfsPlan, first_host_id: u32) -> Result<OwnedFd, EngineError> {
    let mut attributes = PLAIN;
    attributes.set(Attributes::MOUNT_ATTR_RDONLY, plan.read_only);
    attributes.set(Attributes::MOUNT_ATTR_NOEXEC, plan.no_exec);
    memory_file_system(plan.size_bytes, plan.mode, first_host_id, attributes)
}

fn volume(
    plan: &VolumeMountPlan,
    stage: BorrowedFd<'_>,
    sandbox: &SandboxPlan,
) -> Result<OwnedFd, EngineError> {
    let known = sandbox.volumes.iter().position(|volume| volume.name == plan.volume);
    let Some(number) = known else {
        let operation = format!("mount the volume {:?}", plan.volume);
        return Err(EngineError::new(operation, "the sandbox has no volume of that name"));
    };
    let mut attributes = PLAIN;
    attributes.set(Attributes::MOUNT_ATTR_RDONLY, plan.read_only);
    let place = Path::new(stage::VOLUMES).join(number.to_string());
    mount::copy_tree(stage, &place, false)
        .and_then(|copy| {
            mount::add_attributes(copy.as_fd(), attributes)?;
            Ok(copy)
        })
        .failed(|| format!("take the volume {:?} from the stage", plan.volume))
}
