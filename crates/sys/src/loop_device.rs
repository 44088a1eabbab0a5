//! Loop devices over regular files, so made that the kernel takes them back by itself.
//!
//! Owns attaching and the inventory. Every device is attached with "autoclear": when the last descriptor and the last mount of it
//! are gone, however that came about, the kernel detaches it. So there is no detach here, and nothing to clean after a crash.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use linux_raw_sys::loop_device as uapi;
use rustix::io::Errno;

/// How often the race for a free device may be lost to others (guess: each loss means that somebody else won).
const MOST_LOST_RACES: usize = 256;
const CONTROL: &str = "/dev/loop-control";

/// A loop device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel refused a step.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The step, as a verb.
        operation: &'static str,
        /// The device or file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Others took every free device first.
    #[error(
        "no free loop device after {MOST_LOST_RACES} attempts: too many are attached at the same time"
    )]
    LostRaces,
}

impl LoopError {
    fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

/// How to attach. Autoclear is not a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopOptions {
    /// Pass reads and writes to the file without the page cache in between: file data is then cached once, and charged to the
    /// sandbox that uses it. The kernel falls back to buffered access where the file's file system cannot.
    pub direct_io: bool,
}

/// An attached device, alive as long as this descriptor or a mount of it.
#[derive(Debug)]
pub struct LoopDevice {
    fd: OwnedFd,
    path: PathBuf,
}

impl LoopDevice {
    /// The device node, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Attaches a device to a file that is open for reading and writing. `name` is what the kernel shows as the file's name to
/// administrators (`losetup`), cut at 63 bytes.
pub fn attach(file: &File, name: &Path, options: LoopOptions) -> Result<LoopDevice, LoopError> {
    let control = open_read_write(Path::new(CONTROL))?;
    let config = configuration(file, name, options);
    for _ in 0..MOST_LOST_RACES {
        let number = free_number(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match open_read_write(&path) {
            Ok(device) => device,
            Err(LoopError::Io { source, .. }) if is_lost_race(&source) => continue,
            Err(error) => return Err(error),
        };
        match configure(&device, &config) {
            Ok(()) => return Ok(LoopDevice { fd: device.into(), path }),
            Err(error) if is_lost_race(&error) => {}
            Err(source) => {
                return Err(LoopError::io("attach a file to", path, source));
            }
        }
    }
    Err(LoopError::LostRaces)
}

/// The attached devices and their files, as the kernel names them: the host's inventory. A deleted file's name ends in
/// " (deleted)".
pub fn attached() -> Result<Vec<(PathBuf, PathBuf)>, LoopError> {
    let root = Path::new("/sys/block");
    let entries = fs::read_dir(root).map_err(|source| LoopError::io("list", root, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| LoopError::io("list", root, source))?;
        // Absent for other disks and for devices without a file; gone when it is detached meanwhile.
        let Ok(file) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        found.push((Path::new("/dev").join(entry.file_name()), OsStr::from_bytes(file).into()));
    }
    found.sort();
    Ok(found)
}

/// The device that is attached to this very file already, kept attached by what this gives. `name` is the end of the file's path, by which
/// the kernel's list is searched: a file that others may have attached under another name is not found.
///
/// # Errors
/// [`LoopError`] when the devices cannot be listed or the file not looked at.
pub fn find(file: &File, name: &Path) -> Result<Option<LoopDevice>, LoopError> {
    let wanted = rustix::fs::fstat(file).map_err(|errno| LoopError::io("look at", name, errno))?;
    for (path, backing) in attached()? {
        if !backing.ends_with(name) {
            continue;
        }
        // One that is being detached cannot be opened, or has no file any more: it is nobody's.
        let Ok(device) = open_read_write(&path) else { continue };
        let Ok(status) = status(&device) else { continue };
        // SOURCE: drivers/block/loop.c tells the file's device as fstat(2) does (huge_encode_dev).
        if (status.lo_device, status.lo_inode) == (wanted.st_dev, wanted.st_ino) {
            return Ok(Some(LoopDevice { fd: device.into(), path }));
        }
    }
    Ok(None)
}

fn status(device: &File) -> std::io::Result<uapi::loop_info64> {
    let mut status = std::mem::MaybeUninit::<uapi::loop_info64>::zeroed();
    // SAFETY: LOOP_GET_STATUS64 writes one `loop_info64`, for which there is room until the call returns.
    let answer = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            libc::Ioctl::from(uapi::LOOP_GET_STATUS64),
            status.as_mut_ptr(),
        )
    };
    if answer < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is plain numbers, all of them written by the kernel or zero.
    Ok(unsafe { status.assume_init() })
}

fn open_read_write(path: &Path) -> Result<File, LoopError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| LoopError::io("open", path, source))
}

/// EBUSY: another process configured it first. ENXIO and ENOENT: it was removed in between.
fn is_lost_race(error: &std::io::Error) -> bool {
    [Errno::BUSY, Errno::NXIO, Errno::NOENT]
        .iter()
        .any(|lost| error.raw_os_error() == Some(lost.raw_os_error()))
}

fn free_number(control: &File) -> Result<i32, LoopError> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
    let number =
        unsafe { libc::ioctl(control.as_raw_fd(), libc::Ioctl::from(uapi::LOOP_CTL_GET_FREE)) };
    if number < 0 {
        let source = std::io::Error::last_os_error();
        return Err(LoopError::io("find a free device through", CONTROL, source));
    }
    Ok(number)
}

fn configuration(file: &File, name: &Path, options: LoopOptions) -> uapi::loop_config {
    let mut shown_name = [0_u8; 64];
    let bytes = name.as_os_str().as_bytes();
    let length = bytes.len().min(shown_name.len() - 1);
    shown_name[..length].copy_from_slice(&bytes[..length]);
    let direct_io = if options.direct_io { uapi::LO_FLAGS_DIRECT_IO as u32 } else { 0 };
    uapi::loop_config {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: uapi::loop_info64 {
            lo_device: 0,
            lo_inode: 0,
            lo_rdevice: 0,
            lo_offset: 0,
            lo_sizelimit: 0,
            lo_number: 0,
            lo_encrypt_type: 0,
            lo_encrypt_key_size: 0,
            lo_flags: uapi::LO_FLAGS_AUTOCLEAR as u32 | direct_io,
            lo_file_name: shown_name,
            lo_crypt_name: [0; 64],
            lo_encrypt_key: [0; 32],
            lo_init: [0; 2],
        },
        __reserved: [0; 8],
    }
}

fn configure(device: &File, config: &uapi::loop_config) -> std::io::Result<()> {
    // SAFETY: LOOP_CONFIGURE reads one `loop_config`, which lives until the call returns, and writes nothing.
    let answer = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            libc::Ioctl::from(uapi::LOOP_CONFIGURE),
            std::ptr::from_ref(config),
        )
    };
    if answer < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
