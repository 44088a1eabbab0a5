//! Prepared writable disks: a sandbox's disk limit on hosts whose file system has no quotas.
//!
//! Owns making an empty ext4 image once for each size, copying it sparsely, and mounting a copy detached. The limit covers all
//! that ext4 stores, its own tables included (about 4 %), and is met with ENOSPC. Never mounts anything at a path: the detached mount
//! belongs to its descriptor, and with it the loop device, so a killed holder leaves only the image file.
//!
//! Images are sparse: many of them may promise more than the host's disk has. Who admits sandboxes keeps a reserve; without one
//! a full host disk shows inside as I/O errors.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::loop_device::{self, LoopDevice, LoopError, LoopOptions, attach};

/// Below this mkfs.ext4 leaves hardly any room (guess: 1 MiB works, but is half tables).
const SMALLEST_BYTES: u64 = 4 << 20;
/// ext4's block size here; sizes are cut to whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// Part of a template's name; raised when mkfs's options change, so that old templates are not taken.
const TEMPLATE_FORMAT: u32 = 1;
/// Where mkfs lives on Debian and everywhere else, whatever PATH a service manager gave.
const TOOL_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// ext4 options for a sandbox's disk. A sandbox does not outlive a crash of its host, so no write barriers; no background
/// writing of inode tables, which would only unsparse the image.
pub const SANDBOX_DISK_OPTIONS: [(&str, Option<&str>); 3] =
    [("nobarrier", None), ("noinit_itable", None), ("errors", Some("remount-ro"))];

/// ext4 options for a disk that outlives sandboxes, and a crash of its host: with write barriers.
pub const LASTING_DISK_OPTIONS: [(&str, Option<&str>); 2] =
    [("noinit_itable", None), ("errors", Some("remount-ro"))];

/// What becomes of a disk when its host crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Nobody reads it again: no journal.
    Passing,
    /// It is mounted again: with a journal, so that it is whole then.
    Lasting,
}

/// A disk could not be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A size that cannot work.
    #[error("a disk of {size_bytes} bytes is too small: give at least {SMALLEST_BYTES}")]
    TooSmall {
        /// The size asked for.
        size_bytes: u64,
    },
    /// mkfs could not be started.
    #[error("cannot start mkfs.ext4: install the package e2fsprogs")]
    NoMkfs {
        /// Why.
        source: std::io::Error,
    },
    /// mkfs failed.
    #[error("mkfs.ext4 failed on {} ({status}): {message}", path.display())]
    Mkfs {
        /// The image.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, shortened.
        message: String,
    },
    /// The kernel refused a step.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The step, as a verb.
        operation: &'static str,
        /// The file or device.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The loop device.
    #[error("no loop device for {}", path.display())]
    Loop {
        /// The image.
        path: PathBuf,
        /// Why.
        source: LoopError,
    },
}

impl DiskError {
    fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

/// An empty, formatted image to copy from. Never mounted itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateImage {
    path: PathBuf,
    size_bytes: u64,
}

impl TemplateImage {
    /// Finds or makes the template of a size in `dir` (about 10 ms when it is made). Safe to call from several processes at
    /// once: a template appears whole or not at all. The size is cut to a multiple of 4096.
    pub fn prepare(dir: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let size_bytes = whole_blocks(size_bytes)?;
        let path = dir.join(format!("template-v{TEMPLATE_FORMAT}-{size_bytes}.ext4"));
        if fs::metadata(&path).is_ok_and(|found| found.len() == size_bytes) {
            return Ok(Self { path, size_bytes });
        }
        make_formatted(&path, size_bytes, Durability::Passing)?;
        Ok(Self { path, size_bytes })
    }

    /// Where the template lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the disk, in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Copies the template to a new file at `path` (mode 0600), sharing blocks where the file system can and else copying only
    /// what is not a hole. A failed copy leaves no file.
    pub fn instantiate(&self, path: &Path) -> Result<File, DiskError> {
        let template = File::open(&self.path)
            .map_err(|source| DiskError::io("open the template", &self.path, source))?;
        let copy = create_new(path)?;
        let copied = if rustix::fs::ioctl_ficlone(&copy, &template).is_ok() {
            Ok(())
        } else {
            copy_sparsely(&template, &copy, self.size_bytes)
        };
        match copied {
            Ok(()) => Ok(copy),
            Err(errno) => {
                // The copy's error is the one to report.
                let _ = fs::remove_file(path);
                Err(DiskError::io("copy the template to", path, errno))
            }
        }
    }
}

/// Makes the image of a disk that is to be read after a crash too (mode 0600, synced): whole or not at all. Not from a template: sizes are
/// users' choice, and their templates would stay. The size is cut to a multiple of 4096.
///
/// # Errors
/// [`DiskError`].
pub fn make_lasting_image(path: &Path, size_bytes: u64) -> Result<File, DiskError> {
    make_formatted(path, whole_blocks(size_bytes)?, Durability::Lasting)
}

fn whole_blocks(size_bytes: u64) -> Result<u64, DiskError> {
    match size_bytes {
        SMALLEST_BYTES.. => Ok(size_bytes - size_bytes % BLOCK_BYTES),
        _ => Err(DiskError::TooSmall { size_bytes }),
    }
}

fn make_formatted(path: &Path, size_bytes: u64, durability: Durability) -> Result<File, DiskError> {
    let half_made = TemporaryFile::new(path.parent().unwrap_or(Path::new(".")));
    let file = create_new(&half_made.0)?;
    file.set_len(size_bytes)
        .map_err(|source| DiskError::io("set the size of", &half_made.0, source))?;
    make_file_system(&half_made.0, size_bytes, durability)?;
    file.sync_all().map_err(|source| DiskError::io("sync", &half_made.0, source))?;
    fs::rename(&half_made.0, path)
        .map_err(|source| DiskError::io("rename a new image to", path, source))?;
    Ok(file)
}

/// A name in an image's directory that is taken back unless it was renamed.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(dir: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A pid may come again after a crash that left the file; the time tells them apart.
        let nanos = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec;
        Self(dir.join(format!(".half-made-{}-{number}-{nanos}.tmp", std::process::id())))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Absent after a rename.
        let _ = fs::remove_file(&self.0);
    }
}

fn create_new(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| DiskError::io("create", path, source))
}

/// Megabytes of a journal: a 64th of the disk within what ext4 takes and what is plenty for one workload (guess).
fn journal_mib(size_bytes: u64) -> u64 {
    (size_bytes >> 26).clamp(4, 64)
}

fn make_file_system(path: &Path, size_bytes: u64, durability: Durability) -> Result<(), DiskError> {
    let features = match durability {
        // A sandbox's disk is not read after a crash.
        Durability::Passing => vec!["-O".to_owned(), "^has_journal,^resize_inode".to_owned()],
        Durability::Lasting => vec![
            "-O".to_owned(),
            "has_journal,^resize_inode".to_owned(),
            "-J".to_owned(),
            format!("size={}", journal_mib(size_bytes)),
        ],
    };
    let output = Command::new("mkfs.ext4")
        .env_clear()
        .env("PATH", TOOL_PATH)
        .env("LC_ALL", "C")
        .args(["-q", "-F", "-b", "4096"])
        // No room for growing: it never grows.
        .args(features)
        // The file is new and reads as zeroes: nothing has to be written over.
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        // Nothing kept back for root, who is the guest's root; an inode for each 8 KiB suits trees of small files.
        .args(["-m", "0", "-i", "8192", "-I", "256"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DiskError::NoMkfs { source })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(512).collect();
    Err(DiskError::Mkfs { path: path.into(), status: output.status, message })
}

fn copy_sparsely(from: &File, to: &File, size_bytes: u64) -> Result<(), Errno> {
    rustix::fs::ftruncate(to, size_bytes)?;
    let mut at = 0;
    while at < size_bytes {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size_bytes);
        copy_range(from, to, start, at)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left)?;
        if copied == 0 {
            return Err(Errno::IO);
        }
    }
    Ok(())
}

/// Mounts a loop device's ext4 nowhere: the descriptor is the mount, to be placed with `move_mount` in any mount namespace.
/// When it is closed unplaced, mount and loop device are gone. nosuid and nodev always.
pub fn mount_detached(
    device: &LoopDevice,
    options: &[(&str, Option<&str>)],
) -> Result<OwnedFd, DiskError> {
    let failed = |operation| move |errno: Errno| DiskError::io(operation, device.path(), errno);
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("open the ext4 file system for"))?;
    fsconfig_set_string(&context, "source", device.path()).map_err(failed("name as a source"))?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value),
            None => fsconfig_set_flag(&context, *key),
        }
        .map_err(failed("set a mount option for"))?;
    }
    fsconfig_create(&context).map_err(failed("read the file system of"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))
}

/// Attaches and mounts an image file: [`attach`] and [`mount_detached`] with what a sandbox's disk wants. The loop device lives
/// as long as the mount.
pub fn mount_image(image: &File, path: &Path) -> Result<OwnedFd, DiskError> {
    let device = attach(image, path, LoopOptions { direct_io: true })
        .map_err(|source| DiskError::Loop { path: path.into(), source })?;
    mount_detached(&device, &SANDBOX_DISK_OPTIONS)
}

/// Mounts an image that outlives its users, as often as they are: each mount is of one and the same file system, also where an earlier
/// process mounted it. Two devices on one image would destroy it, so calls for one image must come one after the other. The image's
/// file keeps the name that `path` ends with, its last two parts, while it is mounted.
///
/// # Errors
/// [`DiskError`].
pub fn mount_lasting_image(image: &File, path: &Path) -> Result<OwnedFd, DiskError> {
    let failed = |source| DiskError::Loop { path: path.into(), source };
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
    let name = Path::new(parent).join(path.file_name().unwrap_or_default());
    let device = match loop_device::find(image, &name).map_err(failed)? {
        Some(device) => device,
        None => attach(image, path, LoopOptions { direct_io: true }).map_err(failed)?,
    };
    mount_detached(&device, &LASTING_DISK_OPTIONS)
}

/// Tries for real in `dir`, the directory that will hold the images: makes, mounts and forgets a small one (about 20 ms).
///
/// # Errors
/// What does not work: sandboxes with a disk limit cannot have images then.
pub fn detect(dir: &Path) -> Result<(), DiskError> {
    let template = TemplateImage::prepare(dir, SMALLEST_BYTES)?;
    let probe = TemporaryFile::new(dir);
    let image = template.instantiate(&probe.0)?;
    mount_image(&image, &probe.0).map(drop)
}

#[cfg(test)]
mod tests;
