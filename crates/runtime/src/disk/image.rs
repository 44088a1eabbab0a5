//! Backend `image`: an ext4 of its own for each disk, in a sparse file, on a loop device. Works on every file system.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use atoll_model::causes::with_causes;
use atoll_sys::disk_image::{
    DiskError, TemplateImage, make_lasting_image, mount_image, mount_lasting_image,
};
use atoll_wire::shim::DiskBackend;

use super::{Disk, Maker};
use crate::RuntimeError;

/// The name of an image in its container's directory.
pub(super) const FILE_NAME: &str = "disk.ext4";

/// Makes images.
#[derive(Debug)]
pub(super) struct Images {
    /// Where formatted images to copy from lie.
    pub(super) templates: PathBuf,
}

impl Maker for Images {
    fn backend(&self) -> DiskBackend {
        DiskBackend::Image
    }

    fn make(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        let path = path_of(pool, name);
        let template = TemplateImage::prepare(&self.templates, size_bytes).map_err(failed)?;
        let image = template.instantiate(&path).map_err(failed)?;
        mounted(path, |path| mount_image(&image, path))
    }

    fn make_lasting(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        let path = path_of(pool, name);
        let image = make_lasting_image(&path, size_bytes).map_err(failed)?;
        mounted(path, |path| mount_lasting_image(&image, path))
    }
}

fn path_of(pool: &Path, name: &str) -> PathBuf {
    pool.join(format!("{name}.ext4"))
}

fn failed(error: DiskError) -> RuntimeError {
    RuntimeError::Host { message: with_causes(&error) }
}

/// The disk, or neither mount nor image.
fn mounted(
    path: PathBuf,
    mount: impl FnOnce(&Path) -> Result<OwnedFd, DiskError>,
) -> Result<Disk, RuntimeError> {
    match mount(&path) {
        Ok(mount) => Ok(Disk { path, mount }),
        Err(error) => {
            // The mount's error is the one to report.
            let _ = fs::remove_file(&path);
            Err(failed(error))
        }
    }
}
