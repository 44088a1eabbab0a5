//! Where volumes of the host stand for runsc: below one small memory file system in the private mount namespace, `gvisor/volumes`.
//!
//! Owns their mounts there: a volume once for writing and once, where it is asked for, with a mount that is read-only itself, since what
//! runsc is told binds the Sentry alone. Nothing is ever removed below that directory while something is mounted there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::{SandboxPlan, VolumePlan, VolumeSource};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

use super::GvisorEngine;
use super::file_systems::make_directory;
use crate::engine::EngineError;

/// Room for directories only (bytes).
const PLACE_BYTES: &str = "262144";

/// The directory with the mounts.
#[derive(Debug, Clone)]
pub(super) struct VolumePlaces(PathBuf);

impl GvisorEngine {
    pub(super) fn volumes(&self) -> VolumePlaces {
        VolumePlaces(self.directory.join("volumes"))
    }
}

/// It lies on the host, not in the Sentry's memory.
pub(super) fn is_on_host(volume: &VolumePlan) -> bool {
    volume.source != VolumeSource::Memory
}

/// Containers of other Sentries may change it at the same time.
pub(super) fn are_shared(plan: &SandboxPlan) -> bool {
    plan.volumes.iter().any(is_on_host)
}

impl VolumePlaces {
    /// Where the plan's volume of that number is.
    pub(super) fn of(&self, number: usize, read_only: bool) -> PathBuf {
        self.0.join(if read_only { format!("{number}.read-only") } else { number.to_string() })
    }

    /// Puts the plan's named volumes in their places.
    ///
    /// # Errors
    /// [`EngineError`] with the volume.
    pub(super) fn mount(
        &self,
        plan: &SandboxPlan,
        named: &[(String, OwnedFd)],
    ) -> Result<(), EngineError> {
        if !plan.volumes.iter().any(is_on_host) {
            return Ok(());
        }
        make_directory(&self.0, 0o700)?;
        let options = [("size", Some(PLACE_BYTES)), ("mode", Some("700"))];
        let inert = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
        let place = mount::new_file_system("tmpfs", &options, inert).and_then(|place| {
            let target = mount::open_directory(&self.0)?;
            mount::attach(place.as_fd(), target.as_fd())
        });
        place.map_err(|errno| failed("make a place for volumes at", &self.0, errno))?;
        let on_host = plan.volumes.iter().enumerate().filter(|(_, volume)| is_on_host(volume));
        for (number, volume) in on_host {
            let what = || format!("mount the volume {:?}", volume.name);
            let mounted = named.iter().find(|(name, _)| *name == volume.name);
            let (_, mounted) = mounted
                .ok_or_else(|| EngineError::new(what(), "it did not come with the launch"))?;
            let is_used = |read_only| {
                let mut mounts = plan.containers.iter().flat_map(|it| &it.volume_mounts);
                mounts.any(|it| it.volume == volume.name && it.read_only == read_only)
            };
            mount::add_attributes(mounted.as_fd(), inert)
                .and_then(|()| self.attach(mounted, number, false))
                .map_err(|errno| EngineError::new(what(), errno))?;
            if is_used(true) {
                self.attach_read_only(number).map_err(|errno| EngineError::new(what(), errno))?;
            }
        }
        Ok(())
    }

    fn attach(&self, mounted: &OwnedFd, number: usize, read_only: bool) -> Result<(), Errno> {
        let place = self.of(number, read_only);
        rustix::fs::mkdir(&place, Mode::RWXU)?;
        let target = mount::open_directory(&place)?;
        mount::attach(mounted.as_fd(), target.as_fd())
    }

    fn attach_read_only(&self, number: usize) -> Result<(), Errno> {
        let copy = mount::copy_tree(CWD, &self.of(number, false), false)?;
        mount::add_attributes(copy.as_fd(), Attributes::MOUNT_ATTR_RDONLY)?;
        self.attach(&copy, number, true)
    }

    /// Takes all of them away, and the directory, which is empty then.
    ///
    /// # Errors
    /// [`EngineError`]: something may still be mounted there.
    pub(super) fn unmount(&self) -> Result<(), EngineError> {
        match mount::detach(&self.0) {
            // Never mounted, or in the mount namespace of a shim that is gone.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed("unmount", &self.0, errno)),
        }
        match rustix::fs::rmdir(&self.0) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove", &self.0, errno)),
        }
    }
}

fn failed(operation: &str, path: &Path, errno: Errno) -> EngineError {
    EngineError::new(format!("{operation} {}", path.display()), errno)
}
