//! What every container has besides its image: /proc, /sys, /dev, its view of its control group, and the names files.
//!
//! Owns which of the kernel's files are hidden or read-only. A target that the image made a symbolic link is refused. Covers come
//! from the stage, never from the image.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use atoll_sys::cgroup::{Cgroup, Version};
use atoll_sys::mount::{self, Attributes};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;

use super::Failed;
use super::stage::{self, INERT, cover, inside, memory_file_system};
use crate::engine::EngineError;
use crate::image_root::{ImageRoot, Links};

/// Files and directories of /proc that tell about the host or its kernel's memory, or slow it down when read.
const MASKED_IN_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// What of /proc changes the host.
const READ_ONLY_IN_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Names and device numbers of /dev. SOURCE: Documentation/admin-guide/devices.txt.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links that programs expect in /dev.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Room for names and a few sockets (bytes); it counts as the container's memory.
const DEV_BYTES: u64 = 64 * 1024;
/// The group of terminals. SOURCE: Debian's base-passwd, and every other distribution.
const TERMINAL_GROUP: u32 = 5;

/// Mounts /proc of the calling process's pid namespace.
pub(super) fn mount_proc(root: &ImageRoot, stage: BorrowedFd<'_>) -> Result<(), EngineError> {
    let target = root.directory("/proc", Links::Refuse)?;
    let proc = mount::new_file_system("proc", &[], INERT).failed(|| "make /proc")?;
    mount::attach(proc.as_fd(), target.as_fd()).failed(|| "mount /proc")?;
    for name in MASKED_IN_PROC {
        cover(stage, proc.as_fd(), name)?;
    }
    for name in READ_ONLY_IN_PROC {
        make_read_only(proc.as_fd(), name)?;
    }
    Ok(())
}

fn make_read_only(proc: BorrowedFd<'_>, name: &str) -> Result<(), EngineError> {
    let step = || format!("make /proc/{name} read-only");
    let Some(target) = inside(proc, name).failed(step)? else { return Ok(()) };
    mount::copy_tree(target.as_fd(), Path::new(""), false)
        .and_then(|copy| {
            mount::add_attributes(copy.as_fd(), INERT | Attributes::MOUNT_ATTR_RDONLY)?;
            mount::attach(copy.as_fd(), target.as_fd())
        })
        .failed(step)
}

/// Mounts sysfs of the sandbox's network namespace and, in it, the container's own view of its control group.
pub(super) fn mount_sys(
    root: &ImageRoot,
    stage: BorrowedFd<'_>,
    cgroup: &Cgroup,
) -> Result<(), EngineError> {
    let target = root.directory("/sys", Links::Refuse)?;
    let sysfs = mount::copy_tree(stage, Path::new(stage::SYSFS), true)
        .failed(|| "take /sys from the stage")?;
    mount::attach(sysfs.as_fd(), target.as_fd()).failed(|| "mount /sys")?;
    match inside(sysfs.as_fd(), "fs/cgroup").failed(|| "look for /sys/fs/cgroup")? {
        Some(target) => mount_cgroups(target.as_fd(), cgroup),
        None => Ok(()),
    }
}

/// Shows the container's own group, read-only, where programs look for it: as one directory under v2, by controller under v1.
fn mount_cgroups(target: BorrowedFd<'_>, cgroup: &Cgroup) -> Result<(), EngineError> {
    let show = |directory: &Path| {
        let copy = mount::copy_tree(rustix::fs::CWD, directory, false)?;
        mount::add_attributes(copy.as_fd(), INERT | Attributes::MOUNT_ATTR_RDONLY)?;
        Ok::<_, Errno>(copy)
    };
    let in_v1: Vec<_> =
        cgroup.controllers().into_iter().filter(|(_, kind, _)| *kind == Version::V1).collect();
    if in_v1.is_empty() {
        let [(_, _, directory), ..] = cgroup.controllers();
        return show(directory)
            .and_then(|group| mount::attach(group.as_fd(), target))
            .failed(|| "mount /sys/fs/cgroup");
    }
    let places = memory_file_system(4096, 0o755, 0, INERT)?;
    mount::attach(places.as_fd(), target).failed(|| "mount /sys/fs/cgroup")?;
    for (name, _, directory) in in_v1 {
        rustix::fs::mkdirat(&places, name, Mode::from_raw_mode(0o755))
            .and_then(|()| show(directory))
            .and_then(|group| mount::attach_at(group.as_fd(), places.as_fd(), name))
            .failed(|| format!("mount /sys/fs/cgroup/{name}"))?;
    }
    mount::add_attributes(places.as_fd(), INERT | Attributes::MOUNT_ATTR_RDONLY)
        .failed(|| "make /sys/fs/cgroup read-only")
}

/// Mounts /dev with its few devices, terminals of its own, the sandbox's shared memory and its IPC namespace's queues. The
/// calling process must be in that IPC namespace.
pub(super) fn mount_dev(
    root: &ImageRoot,
    stage: BorrowedFd<'_>,
    first_host_id: u32,
) -> Result<(), EngineError> {
    let target = root.directory("/dev", Links::Refuse)?;
    // The one mount on which devices work; making others takes CAP_MKNOD in the host's user namespace.
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    let dev = memory_file_system(DEV_BYTES, 0o755, first_host_id, attributes)?;
    fill_dev(&dev, first_host_id).failed(|| "fill /dev")?;
    mount::attach(dev.as_fd(), target.as_fd()).failed(|| "mount /dev")?;
    let group = (first_host_id + TERMINAL_GROUP).to_string();
    let options = [
        ("newinstance", None),
        ("ptmxmode", Some("666")),
        ("mode", Some("620")),
        ("gid", Some(&*group)),
    ];
    let no_devices = Attributes::MOUNT_ATTR_NODEV;
    mount::new_file_system("devpts", &options, attributes)
        .and_then(|terminals| mount::attach_at(terminals.as_fd(), dev.as_fd(), "pts"))
        .failed(|| "mount /dev/pts")?;
    mount::copy_tree(stage, Path::new(stage::SHARED_MEMORY), false)
        .and_then(|memory| {
            mount::add_attributes(memory.as_fd(), attributes | no_devices)?;
            mount::attach_at(memory.as_fd(), dev.as_fd(), "shm")
        })
        .failed(|| "mount /dev/shm")?;
    mount::new_file_system("mqueue", &[], attributes | no_devices)
        .and_then(|queues| mount::attach_at(queues.as_fd(), dev.as_fd(), "mqueue"))
        .failed(|| "mount /dev/mqueue")
}

fn fill_dev(dev: &OwnedFd, first_host_id: u32) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(first_host_id), Gid::from_raw(first_host_id));
    let own = |name: &str| {
        rustix::fs::chownat(dev, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
    };
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, makedev(major, minor))?;
        own(name)?;
    }
    for (name, to) in DEVICE_LINKS {
        rustix::fs::symlinkat(to, dev, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}
