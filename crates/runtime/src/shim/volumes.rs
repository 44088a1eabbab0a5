//! Disks of named volumes: `volumes/<uid>` below the data directory, mode 0700, with the disk in it.
//!
//! Owns their making (in the pool, then moved here whole), their end (a mark, then the trash, then gone) and their mounts, one for each
//! sandbox that asks. Nothing here is mounted in the server's own mount namespace, and nothing in a disk is ever opened by a name.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use atoll_wire::shim::{DiskBackend, SandboxPlan, VolumeSource};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::{DiskUsage, FoundVolume, RuntimeError, VolumeDisks, disk};

use super::directory::{io_error, is_uid};
use super::{ShimHost, blocking};

/// In a volume's directory: its removal was decided.
const CONDEMNED: &str = "condemned";

/// What keeps mounts of one disk apart in time: of an image there must never be two devices.
#[derive(Debug, Default)]
pub(super) struct Mounting(Mutex<()>);

impl ShimHost {
    fn volume_directory(&self, uid: &str) -> Result<PathBuf, RuntimeError> {
        if is_uid(uid) {
            return Ok(self.layout.volumes().join(uid));
        }
        Err(RuntimeError::Host { message: format!("{uid:?} is no uid of a volume") })
    }

    fn volume_disk(&self, uid: &str) -> Result<PathBuf, RuntimeError> {
        let directory = self.volume_directory(uid)?;
        disk::find_lasting(&directory).ok_or_else(|| RuntimeError::Host {
            message: format!(
                "the files of volume {uid} are not in {}: put them back, or delete the volume",
                directory.display()
            ),
        })
    }

    /// A mount for each named volume of a plan, in order. Blocks.
    pub(super) fn mount_volumes(&self, plan: &SandboxPlan) -> Result<Vec<OwnedFd>, RuntimeError> {
        let mut mounts = Vec::new();
        for volume in &plan.volumes {
            if let VolumeSource::Named(uid) = &volume.source {
                let path = self.volume_disk(uid)?;
                let _one_at_a_time = self.mounting.0.lock().unwrap_or_else(PoisonError::into_inner);
                mounts.push(disk::mount_lasting(&path)?);
            }
        }
        Ok(mounts)
    }

    fn make_volume(&self, uid: &str, size_bytes: u64) -> Result<(), RuntimeError> {
        let directory = self.volume_directory(uid)?;
        if disk::find_lasting(&directory).is_some() {
            return Ok(());
        }
        let mut made = self.pools.lasting_disk(uid, size_bytes)?;
        dress(&made.mount).map_err(|errno| io_error("prepare", &directory)(errno.into()))?;
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io_error("create", &directory)(error));
            }
            _ => {}
        }
        made.place(&directory.join(disk::file_name(self.pools.disk_backend())))?;
        sync(&directory)?;
        sync(&self.layout.volumes())
    }

    fn remove_volume(&self, uid: &str) -> Result<(), RuntimeError> {
        let from = self.volume_directory(uid)?;
        let to = self.layout.trash().join(format!("{}{uid}", disk::REMOVED_VOLUME));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("remove", &from)(error)),
        }
        if let Some(path) = disk::find_lasting(&to) {
            disk::remove(&path)?;
        }
        fs::remove_dir_all(&to).map_err(io_error("remove", &to))
    }

    fn condemn_volume(&self, uid: &str) -> Result<(), RuntimeError> {
        let directory = self.volume_directory(uid)?;
        match File::create(directory.join(CONDEMNED)) {
            Ok(_) => sync(&directory),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("mark", &directory)(error)),
        }
    }

    fn all_volumes(&self) -> Result<Vec<FoundVolume>, RuntimeError> {
        let path = self.layout.volumes();
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(io_error("list", &path))? {
            let entry = entry.map_err(io_error("list", &path))?;
            if let Some(uid) = entry.file_name().to_str().filter(|name| is_uid(name)) {
                let condemned = entry.path().join(CONDEMNED).exists();
                found.push(FoundVolume { uid: uid.to_owned(), condemned });
            }
        }
        Ok(found)
    }
}

/// Gives the root of a new disk to root, for everybody to write to as in /tmp, with nothing in it.
fn dress(mount: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, ".", flags, Mode::empty())?;
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fchown(&root, Some(Uid::ROOT), Some(Gid::ROOT))?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o1777))?;
    rustix::fs::syncfs(root.as_fd())
}

fn sync(directory: &Path) -> Result<(), RuntimeError> {
    File::open(directory).and_then(|it| it.sync_all()).map_err(io_error("sync", directory))
}

#[async_trait]
impl VolumeDisks for Arc<ShimHost> {
    fn backend(&self) -> DiskBackend {
        self.pools.disk_backend()
    }

    fn least_bytes(&self) -> u64 {
        disk::LASTING_MIN_BYTES
    }

    async fn make(&self, uid: &str, size_bytes: u64) -> Result<(), RuntimeError> {
        let (host, uid) = (Arc::clone(self), uid.to_owned());
        blocking(move || host.make_volume(&uid, size_bytes)).await
    }

    async fn usage(&self, uid: &str, size_bytes: u64) -> Result<Option<DiskUsage>, RuntimeError> {
        let (host, uid) = (Arc::clone(self), uid.to_owned());
        blocking(move || {
            let path = host.volume_disk(&uid)?;
            let _one_at_a_time = host.mounting.0.lock().unwrap_or_else(PoisonError::into_inner);
            disk::usage_of_lasting(&path, size_bytes)
        })
        .await
    }

    async fn condemn(&self, uid: &str) -> Result<(), RuntimeError> {
        let (host, uid) = (Arc::clone(self), uid.to_owned());
        blocking(move || host.condemn_volume(&uid)).await
    }

    async fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        let (host, uid) = (Arc::clone(self), uid.to_owned());
        blocking(move || host.remove_volume(&uid)).await
    }

    async fn all(&self) -> Result<Vec<FoundVolume>, RuntimeError> {
        let host = Arc::clone(self);
        blocking(move || host.all_volumes()).await
    }
}
