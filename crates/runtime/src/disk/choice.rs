//! Which backend bounds the disks of a data directory: what the file system can, found by trying, and what was asked for.
//!
//! `auto` takes the fastest backend whose full disks answer ENOSPC, which is what programs expect of a full disk: project quotas where
//! they answer so (xfs), else images, which work everywhere. Backends that answer EDQUOT (ext4, btrfs) are taken when they are asked for by name, and when
//! there is nothing else.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use atoll_model::causes::with_causes;
use atoll_sys::disk_image;
use atoll_wire::shim::DiskBackend;
use rustix::io::Errno;

use super::trial::{self, FullDisk};
use super::{Maker, btrfs, image, open, project_quota};
use crate::RuntimeError;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskChoice {
    /// The best that answers ENOSPC.
    #[default]
    Auto,
    /// This one, or none.
    Only(DiskBackend),
}

impl FromStr for DiskChoice {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match ALL.into_iter().find(|backend| backend.name() == text) {
            Some(backend) => Ok(Self::Only(backend)),
            None if text == AUTO => Ok(Self::Auto),
            None => Err(UnknownBackend),
        }
    }
}

impl fmt::Display for DiskChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => AUTO,
            Self::Only(backend) => backend.name(),
        })
    }
}

const AUTO: &str = "auto";
const ALL: [DiskBackend; 3] = [DiskBackend::Image, DiskBackend::Btrfs, DiskBackend::ProjectQuota];

/// A word that names no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use auto, image, btrfs or project-quota")]
pub struct UnknownBackend;

/// The backend of a data directory, with what else there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenDisks {
    /// It.
    pub backend: DiskBackend,
    /// What a full disk answers there.
    pub full: FullDisk,
    /// For people: what bounds disks, and how.
    pub detail: String,
}

/// Tries what is asked for in `data_dir`, which must exist. Leaves nothing behind but templates of images. Takes about 30 ms and blocks.
///
/// # Errors
/// What is missing and what to do.
pub fn choose(data_dir: &Path, choice: DiskChoice) -> Result<ChosenDisks, String> {
    match choice {
        DiskChoice::Only(backend) => attempt(data_dir, backend),
        DiskChoice::Auto => automatic(data_dir),
    }
}

/// Tries every backend in `data_dir`, as [`choose`] tries one; the error says what is missing and what to do.
#[must_use]
pub fn try_all(data_dir: &Path) -> Vec<(DiskBackend, Result<ChosenDisks, String>)> {
    ALL.map(|backend| (backend, attempt(data_dir, backend))).into()
}

fn automatic(data_dir: &Path) -> Result<ChosenDisks, String> {
    let projects = attempt(data_dir, DiskBackend::ProjectQuota);
    if let Ok(found) = &projects
        && found.full == FullDisk::NoSpace
    {
        return projects;
    }
    attempt(data_dir, DiskBackend::Image)
        .or_else(|why| projects.or_else(|_| attempt(data_dir, DiskBackend::Btrfs)).map_err(|_| why))
}

fn attempt(data_dir: &Path, backend: DiskBackend) -> Result<ChosenDisks, String> {
    match backend {
        DiskBackend::Image => images(data_dir),
        DiskBackend::ProjectQuota => project_quotas(data_dir),
        DiskBackend::Btrfs => subvolumes(data_dir),
    }
}

fn images(data_dir: &Path) -> Result<ChosenDisks, String> {
    match disk_image::detect(data_dir) {
        Ok(()) => Ok(ChosenDisks {
            backend: DiskBackend::Image,
            full: FullDisk::NoSpace,
            detail: "ext4 disks on loop devices".into(),
        }),
        Err(error) => {
            Err(format!("{} (needed: e2fsprogs, loop devices, ext4)", with_causes(&error)))
        }
    }
}

fn project_quotas(data_dir: &Path) -> Result<ChosenDisks, String> {
    let missing = |why: String| {
        format!(
            "{} has no project quotas that hold: {why} (needed: Linux 5.14, and ext4 made with the features quota and project and \
             mounted with prjquota, or xfs mounted with pquota)",
            data_dir.display()
        )
    };
    let place = TrialPlace::new(data_dir);
    let tried = || {
        rustix::fs::mkdir(&place.0, rustix::fs::Mode::RWXU).map_err(words)?;
        let limited = |inodes| {
            project_quota::trial_directory(&place.0, trial::LIMIT_BYTES, inodes).map_err(words)
        };
        let by_bytes = trial::write_beyond(&limited(0)?)?;
        super::remove(&place.0).map_err(|error| with_causes(&error))?;
        rustix::fs::mkdir(&place.0, rustix::fs::Mode::RWXU).map_err(words)?;
        trial::create_beyond(&limited(trial::LIMIT_INODES)?).map(|_| by_bytes)
    };
    let full = tried().map_err(missing)?;
    let detail = format!("project quotas of {}", data_dir.display());
    Ok(chosen(DiskBackend::ProjectQuota, full, detail))
}

fn subvolumes(data_dir: &Path) -> Result<ChosenDisks, String> {
    let is_btrfs = open(data_dir)
        .map_err(|error| with_causes(&error))
        .and_then(|directory| atoll_sys::btrfs::is_btrfs(directory.as_fd()).map_err(words))?;
    if !is_btrfs {
        return Err(format!("{} does not lie on btrfs", data_dir.display()));
    }
    let missing = |why: String| {
        format!(
            "the btrfs of {} has no quotas that hold: {why} (atoll never switches them on, since that concerns the whole file system: \
             btrfs quota enable [--simple] MOUNT-POINT)",
            data_dir.display()
        )
    };
    // So that a quota group that the kernel keeps for a moment is not forgotten.
    btrfs::prepare(data_dir).map_err(|error| with_causes(&error))?;
    let place = TrialPlace::new(data_dir);
    let tried = || {
        let name = place.0.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let disk = btrfs::Subvolumes
            .make(data_dir, name, trial::LIMIT_BYTES)
            .map_err(|error| with_causes(&error))?;
        drop(disk.mount);
        let directory = open(&disk.path).map_err(|error| with_causes(&error))?;
        trial::write_beyond(&directory)
    };
    let full = tried().map_err(missing)?;
    let detail = format!("btrfs quota groups of {}", data_dir.display());
    Ok(chosen(DiskBackend::Btrfs, full, detail))
}

fn chosen(backend: DiskBackend, full: FullDisk, mut detail: String) -> ChosenDisks {
    if full == FullDisk::QuotaExceeded {
        detail += " (a full disk gives EDQUOT, not ENOSPC)";
    }
    ChosenDisks { backend, full, detail }
}

fn words(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

/// A name that a trial's disk has, and that is free again afterwards.
struct TrialPlace(PathBuf);

/// How the names of trials begin.
const TRIAL: &str = ".disk-trial-";

impl TrialPlace {
    fn new(data_dir: &Path) -> Self {
        Self(data_dir.join(format!("{TRIAL}{}", std::process::id())))
    }
}

/// Removes what a trial left whose process was killed.
pub(super) fn sweep(data_dir: &Path) {
    for entry in super::entries(data_dir).unwrap_or_default() {
        let name = entry.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.starts_with(TRIAL)) {
            drop(TrialPlace(entry));
        }
    }
}

impl Drop for TrialPlace {
    fn drop(&mut self) {
        if let Err(error) = super::remove(&self.0) {
            tracing::warn!(%error, "a trial of disks left something behind");
        }
    }
}

/// What makes disks of the chosen backend. `seed` spreads instances of one host.
pub(crate) fn maker(
    chosen: &ChosenDisks,
    data_dir: &Path,
    templates: PathBuf,
    seed: u32,
) -> Result<Box<dyn Maker>, RuntimeError> {
    Ok(match chosen.backend {
        DiskBackend::Image => Box::new(image::Images { templates }),
        DiskBackend::ProjectQuota => Box::new(project_quota::Projects::open(data_dir, seed)?),
        DiskBackend::Btrfs => Box::new(btrfs::Subvolumes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["auto", "image", "btrfs", "project-quota"] {
            assert_eq!(text.parse::<DiskChoice>().unwrap().to_string(), text);
        }
        assert_eq!("zfs".parse::<DiskChoice>(), Err(UnknownBackend));
    }
}
