//! The file systems of a sandbox as the processes of runsc see them: a mount namespace of their own with each container's disk and,
//! over its layers, its root.
//!
//! Owns the mounts, which no other process of the host sees, and the directory `gvisor` of the sandbox's directory where they stand. Never
//! follows a link of an image: what an image can name is opened only within its own root.

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use atoll_model::causes::with_causes;
use atoll_sys::mount::{self, Attributes};
use atoll_wire::shim::NetworkPlacement;
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::thread::UnshareFlags;

use crate::engine::EngineError;
use crate::image_root::ImageRoot;
use crate::names;

/// What gVisor releases before 2025 take for a sign of the host's network namespace.
const PROC_SYS_NET: &str = "/proc/sys/net";

/// Where a container's files stand, in the private mount namespace.
#[derive(Debug, Clone)]
pub(super) struct ContainerDirectory {
    path: PathBuf,
}

impl ContainerDirectory {
    /// Below the sandbox's directory; made by [`Self::make`].
    pub(super) fn new(sandbox: &Path, container: &str) -> Self {
        Self { path: sandbox.join(container) }
    }

    /// The directory itself: runsc's bundle.
    pub(super) fn bundle(&self) -> &Path {
        &self.path
    }

    /// Its root file system.
    pub(super) fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    fn disk(&self) -> PathBuf {
        self.path.join("disk")
    }

    /// The directory on the disk that may stand at /tmp.
    pub(super) fn tmp(&self) -> PathBuf {
        self.disk().join("tmp")
    }

    /// Makes the directories (mode 0700).
    ///
    /// # Errors
    /// [`EngineError`] with the path.
    pub(super) fn make(&self) -> Result<(), EngineError> {
        for path in [self.root(), self.disk()] {
            make_directory(&path, 0o700)?;
        }
        Ok(())
    }

    /// Mounts the disk and, over the layers, the root.
    ///
    /// # Errors
    /// [`EngineError`] with the path.
    pub(super) fn mount(&self, disk: &OwnedFd, layers: &[PathBuf]) -> Result<(), EngineError> {
        let disk_path = self.disk();
        mount::open_directory(&disk_path)
            .and_then(|target| mount::attach(disk.as_fd(), target.as_fd()))
            .map_err(|errno| failed("mount the disk at", &disk_path, errno))?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700), ("tmp", 0o1777)] {
            make_directory(&disk_path.join(name), mode)?;
        }
        self.mount_root(layers)
    }

    fn mount_root(&self, layers: &[PathBuf]) -> Result<(), EngineError> {
        let (root, upper) = (self.root(), self.disk().join("upper"));
        if layers.is_empty() {
            return rustix::mount::mount_bind(&upper, &root)
                .map_err(|errno| failed("mount the root at", &root, errno));
        }
        // Named by descriptor: short, so that all layers fit the one page of mount(2), and without characters that overlayfs
        // would take for its own.
        let mut open = Vec::with_capacity(layers.len() + 2);
        for path in layers.iter().map(PathBuf::as_path).chain([&*upper, &*self.disk().join("work")])
        {
            let layer = mount::open_directory(path)
                .map_err(|errno| failed("open the layer", path, errno))?;
            open.push(layer);
        }
        if let Some(topmost) = open.first() {
            look_like(&upper, topmost)?;
        }
        let by_descriptor = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let names: Vec<String> = open.iter().map(by_descriptor).collect();
        let (lower, own) = names.split_at(layers.len());
        let (upper, work) = (own.first(), own.last());
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile,redirect_dir=nofollow,metacopy=off,index=off",
            lower.join(":"),
            upper.map_or("", String::as_str),
            work.map_or("", String::as_str)
        );
        mount::mount_overlay(&root, &options, true)
            .map_err(|errno| failed("mount an overlay of the image's layers at", &root, errno))
    }

    /// Writes who the sandbox is and whom it asks for names.
    ///
    /// # Errors
    /// [`EngineError`] with the path.
    pub(super) fn write_names(
        &self,
        hostname: &str,
        place: Option<&NetworkPlacement>,
    ) -> Result<(), EngineError> {
        let root = self.root();
        let open = mount::open_directory(&root);
        let open = open.map_err(|errno| failed("open", &root, errno))?;
        // Root inside is root outside: the Sentry is between.
        names::write(&ImageRoot::new(open, 0), hostname, place)
    }

    /// Whether the image has files of its own in a real directory /tmp. Where it has none, gVisor would put a file system of memory
    /// there, which no disk limit covers.
    pub(super) fn image_fills_tmp(&self) -> bool {
        let Ok(root) = mount::open_directory(&self.root()) else { return false };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let Ok(tmp) = rustix::fs::openat2(root, "tmp", flags, Mode::empty(), resolve) else {
            return false;
        };
        let Ok(entries) = rustix::fs::Dir::new(tmp) else { return false };
        entries.flatten().any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
    }
}

/// Gives the root's writable directory owner and mode of the topmost layer's root, which is what the image says of `/`.
fn look_like(upper: &Path, topmost: &OwnedFd) -> Result<(), EngineError> {
    let stat = rustix::fs::fstat(topmost).map_err(|errno| failed("look at", upper, errno))?;
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chown(upper, Some(user), Some(group))
        .and_then(|()| rustix::fs::chmod(upper, Mode::from_raw_mode(stat.st_mode & 0o7777)))
        .map_err(|errno| failed("give the image's owner and mode to", upper, errno))
}

/// Enters the private mount namespace, and hides /proc/sys/net there where this runsc must not see it.
///
/// # Errors
/// [`EngineError`].
pub(super) fn enter(hide_proc_sys_net: bool) -> Result<(), EngineError> {
    let what = "make a mount namespace for runsc";
    atoll_sys::clone::unshare(UnshareFlags::NEWNS)
        .map_err(|error| EngineError::new(what, with_causes(&error)))?;
    mount::isolate_propagation(true).map_err(|errno| EngineError::new(what, errno))?;
    if !hide_proc_sys_net {
        return Ok(());
    }
    let attributes = Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NOEXEC;
    mount::new_file_system("tmpfs", &[("size", Some("4096"))], attributes)
        .and_then(|empty| mount::attach_at(empty.as_fd(), CWD, PROC_SYS_NET))
        .map_err(|errno| failed("hide", Path::new(PROC_SYS_NET), errno))
}

/// Shows a file of the host read-only at `target`, which is made: a bind mount of it is read-only too, whatever becomes of the process that
/// makes it. What runsc is told of read-only mounts binds the Sentry alone.
///
/// # Errors
/// [`EngineError`] with the path.
pub(super) fn seal(file: &Path, target: &Path) -> Result<(), EngineError> {
    let attributes = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let sealed = mount::copy_tree(CWD, file, false).and_then(|copy| {
        mount::add_attributes(copy.as_fd(), attributes)?;
        let place = rustix::fs::open(target, flags, Mode::RUSR)?;
        mount::attach(copy.as_fd(), place.as_fd())
    });
    sealed.map_err(|errno| failed("show read-only", file, errno))
}

/// Takes a sealed file's mount away, where it is.
pub(super) fn unseal(target: &Path) {
    // Not mounted (another mount namespace's) is fine, as with containers' mounts.
    let _ = mount::detach(target);
}

/// Takes the mounts of a container away, whatever is there. The disk's loop device goes with its last mount.
pub(super) fn unmount_all(directory: &ContainerDirectory) {
    for path in [directory.root(), directory.disk()] {
        // Not mounted (half made, or another mount namespace's) is fine: what matters is looked at when the directory is removed.
        let _ = mount::detach(&path);
    }
}

/// Makes a directory and those above it. The mode is exact for a new one, whatever the umask.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), EngineError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        })
        .map_err(|error| failed("make the directory", path, error))
}

/// Removes a directory tree that has no mounts any more; absent is fine.
///
/// # Errors
/// [`EngineError`] with the path.
pub(super) fn remove_directory(path: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn failed(operation: &str, path: &Path, error: impl std::fmt::Display) -> EngineError {
    EngineError::new(format!("{operation} {}", path.display()), error)
}
