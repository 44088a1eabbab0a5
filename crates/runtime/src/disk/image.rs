//! Backend `image`: an ext4 of its own for each disk, in a sparse file, on a loop device. Works on every file system.

use std::fs;
use std::path::{Path, PathBuf};

use atoll_model::causes::with_causes;
use atoll_sys::disk_image::{
    DiskError, Durability, TemplateImage, mount_image, mount_lasting_image,
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
        self.instantiate(pool, name, size_bytes, Durability::Passing)
    }

    fn make_lasting(&self, pool: &Path, name: &str, size_bytes: u64) -> Result<Disk, RuntimeError> {
        self.instantiate(pool, name, size_bytes, Durability::Lasting)
    }
}

impl Images {
    fn instantiate(
        &self,
        pool: &Path,
        name: &str,
        size_bytes: u64,
        durability: Durability,
    ) -> Result<Disk, RuntimeError> {
        let failed = |error: DiskError| RuntimeError::Host { message: with_causes(&error) };
        let template = TemplateImage::prepare_for(&self.templates, size_bytes, durability);
        let template = template.map_err(failed)?;
        let path = pool.join(format!("{name}.ext4"));
        let image = template.instantiate(&path).map_err(failed)?;
        let mounted = match durability {
            Durability::Passing => mount_image(&image, &path),
            Durability::Lasting => {
                image.sync_all().map_err(super::failed("sync", &path))?;
                mount_lasting_image(&image, &path)
            }
        };
        match mounted {
            Ok(mount) => Ok(Disk { path, mount }),
            Err(error) => {
                // The mount's error is the one to report.
                let _ = fs::remove_file(&path);
                Err(failed(error))
            }
        }
    }
}
