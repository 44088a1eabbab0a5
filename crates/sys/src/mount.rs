//! Mounts by descriptor: made detached, dressed, then put onto a target that is itself a descriptor. Paths of images are never given to
//! the kernel's mount calls.
//!
//! Owns thin, typed calls. Decides nothing: what is mounted where, and whether the target can be trusted, is the caller's business.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount, mount_change, move_mount, open_tree, unmount,
};

pub use rustix::mount::MountAttrFlags as Attributes;

/// One option of a file system: a flag, or a key with its value.
pub type FileSystemOption<'a> = (&'a str, Option<&'a str>);

/// A detached mount of a new file system.
///
/// # Errors
/// The kernel's answer: EINVAL for an option that this kernel does not know.
pub fn new_file_system(
    kind: &str,
    options: &[FileSystemOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value),
            None => fsconfig_set_flag(&context, *key),
        }?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Puts an overlay at a path: read-only layers from the top down, the writable directory and its work directory, all relative to the working
/// directory so that many fit into the kernel's one page of options.
///
/// # Errors
/// The kernel's answer; EINVAL when the options do not fit.
pub fn mount_overlay(target: &Path, options: &str, no_set_user_id: bool) -> Result<(), Errno> {
    let mut flags = MountFlags::NODEV | MountFlags::NOATIME;
    if no_set_user_id {
        flags |= MountFlags::NOSUID;
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    mount("overlay", target, "overlay", flags, Some(options.as_c_str()))
}

/// A detached copy of what is mounted at `path` below `directory` (of `directory` itself when the path is empty), with the mounts below it
/// when `recursive`. A symbolic link at the end is not followed.
///
/// # Errors
/// The kernel's answer: EINVAL for what is not mounted in the caller's mount namespace.
pub fn copy_tree(
    directory: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(directory, path, flags)
}

/// Puts a detached mount onto a directory or file that is open.
///
/// # Errors
/// The kernel's answer: ENOTDIR when one is a directory and the other is not.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// Puts a detached mount onto a name in a directory that the caller trusts. No symbolic link at the end is followed.
///
/// # Errors
/// The kernel's answer.
pub fn attach_at(
    mount: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<(), Errno> {
    move_mount(mount, c"", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// SOURCE: `struct mount_attr` in include/uapi/linux/mount.h.
#[derive(Default)]
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set(mount: BorrowedFd<'_>, flags: i32, attributes: &MountAttr) -> Result<(), Errno> {
    // SAFETY: the kernel reads `size_of::<MountAttr>()` bytes of a structure and a string that live until the call returns, and
    // writes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags | libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<MountAttr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Adds attributes to a mount (nothing is taken away, but for another way of keeping access times where NOATIME is added).
///
/// # Errors
/// The kernel's answer.
pub fn add_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    let attr_set = u64::from(attributes.bits());
    // The ways of keeping access times are values of one field, which the kernel wants named whole.
    let changes_atime = attributes.contains(MountAttrFlags::MOUNT_ATTR_NOATIME);
    let attr_clr = if changes_atime { MountAttrFlags::MOUNT_ATTR__ATIME.bits() } else { 0 };
    let attr_clr = u64::from(attr_clr);
    set(mount, 0, &MountAttr { attr_set, attr_clr, ..MountAttr::default() })
}

/// Shows a detached mount's files through the id map of a user namespace: id 0 on disk becomes the namespace's 0.
///
/// # Errors
/// The kernel's answer: EINVAL where the file system cannot.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = MountAttr {
        attr_set: u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits()),
        userns_fd: u64::from(user_namespace.as_raw_fd().cast_unsigned()),
        ..MountAttr::default()
    };
    set(mount, 0, &attributes)
}

/// What is mounted in the caller's namespace no longer tells other namespaces about changes; with `follow` it still hears of theirs.
///
/// # Errors
/// The kernel's answer.
pub fn isolate_propagation(follow: bool) -> Result<(), Errno> {
    let kind =
        if follow { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    mount_change("/", kind | MountPropagationFlags::REC)
}

/// Makes an open directory, a mount's root, the root and working directory of the caller's mount namespace; the old root is gone from it.
///
/// # Errors
/// The kernel's answer: EINVAL when the host's root is the kernel's first root file system, which cannot be left.
pub fn pivot_into(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    // Old and new root in one place: the old lies on top and is taken off.
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Takes away what is mounted at a path, and all below it, at once; users keep what they have open.
///
/// # Errors
/// The kernel's answer.
pub fn detach(path: &Path) -> Result<(), Errno> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Opens a directory for use as a place only (O_PATH).
///
/// # Errors
/// The kernel's answer.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The magic number of the file system that an open file lies on.
///
/// # Errors
/// The kernel's answer.
pub fn file_system_magic(file: impl AsFd) -> Result<u64, Errno> {
    let magic = rustix::fs::fstatfs(file)?.f_type;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the C library's type differs between architectures"
    )]
    Ok(magic as u64)
}
