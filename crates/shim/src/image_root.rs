//! Names inside an image's root, which is hostile: every symbolic link in it may lead anywhere.
//!
//! Owns turning a path of the plan into an open directory of this root, and nothing else than this root: the kernel resolves with
//! RESOLVE_IN_ROOT and without magic links, and what is mounted goes onto the descriptor that came out, never onto a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use atoll_sys::mount;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::container::Failed;
use crate::engine::EngineError;

/// File systems of the kernel on which nothing of a plan may be mounted. SOURCE: include/uapi/linux/magic.h.
const KERNEL_FILE_SYSTEMS: [u64; 5] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
];

/// How often a resolution that lost a race is begun again (guess: the host must rename in each of these microseconds).
const MOST_RACES: usize = 64;

/// Whether symbolic links of the image may be followed, within the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// The target is the kernel's own place (/proc, /sys, /dev): a link there is an attack or a broken image.
    Refuse,
    /// The target is the user's or the image's: links lead to other places of the same root.
    FollowInside,
}

/// The root of a container while it is put together.
#[derive(Debug)]
pub(crate) struct ImageRoot {
    fd: OwnedFd,
    first_host_id: u32,
}

impl AsFd for ImageRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ImageRoot {
    pub(crate) const fn new(fd: OwnedFd, first_host_id: u32) -> Self {
        Self { fd, first_host_id }
    }

    /// Opens a directory by its absolute path inside; makes what is missing of it, as the sandbox's root.
    pub(crate) fn directory(&self, path: &str, links: Links) -> Result<OwnedFd, EngineError> {
        let directory = match self.open(path, links) {
            Err(Errno::NOENT) => self.make(path, links),
            other => other,
        }
        .map_err(|errno| refused(path, errno))?;
        if links == Links::FollowInside {
            let named = ["/proc", "/sys"].into_iter().any(|place| is_below(path, place));
            let magic = mount::file_system_magic(&directory)
                .failed(|| format!("look at {path} in the image"))?;
            if named || KERNEL_FILE_SYSTEMS.contains(&magic) {
                return Err(EngineError::new(
                    format!("mount at {path}"),
                    "the path leads into a file system of the kernel: choose another path",
                ));
            }
        }
        Ok(directory)
    }

    fn open(&self, path: &str, links: Links) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve(links));
        let mut opened = open();
        for _ in 0..MOST_RACES {
            // `..` was met while something anywhere on the host was renamed or mounted.
            if !matches!(opened, Err(Errno::AGAIN)) {
                break;
            }
            opened = open();
        }
        opened
    }

    /// Like `mkdir -p`: longest existing part first, then one directory after the other, each opened again from the root.
    fn make(&self, path: &str, links: Links) -> Result<OwnedFd, Errno> {
        let mut parent = self.open("/", links)?;
        let mut so_far = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if matches!(name, "." | "..") {
                return Err(Errno::INVAL);
            }
            so_far.push('/');
            so_far.push_str(name);
            parent = match self.open(&so_far, links) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                    self.own(&parent, name)?;
                    self.open(&so_far, links)?
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    fn own(&self, parent: impl AsFd, name: &str) -> Result<(), Errno> {
        let (user, group) = (Uid::from_raw(self.first_host_id), Gid::from_raw(self.first_host_id));
        rustix::fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Makes a directory that programs rely on where the image lacks it; what is there stays as it is.
    pub(crate) fn ensure_directory(&self, name: &str, mode: u32) -> Result<(), EngineError> {
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode), AtFlags::empty())
                    .and_then(|()| self.own(&self.fd, name))
            }
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        };
        made.failed(|| format!("make /{name} in the image"))
    }

    /// Puts a file of ours at `directory`/`name`, in place of whatever the image has there: a link is replaced, not followed.
    pub(crate) fn write_file(
        &self,
        directory: &str,
        name: &str,
        content: &str,
    ) -> Result<(), EngineError> {
        let parent = self.directory(directory, Links::FollowInside)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let create = || rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, mode);
        let write = || {
            let file = match create() {
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                    create()
                }
                other => other,
            }?;
            write_all(&file, content.as_bytes())?;
            let (user, group) =
                (Uid::from_raw(self.first_host_id), Gid::from_raw(self.first_host_id));
            rustix::fs::fchown(&file, Some(user), Some(group))
        };
        write().failed(|| format!("write {directory}/{name} in the image"))
    }
}

fn is_below(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::write(file, bytes)?;
        bytes = bytes.get(written..).ok_or(Errno::IO)?;
    }
    Ok(())
}

fn resolve(links: Links) -> ResolveFlags {
    let always = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match links {
        Links::Refuse => always | ResolveFlags::NO_SYMLINKS,
        Links::FollowInside => always,
    }
}

fn refused(path: &str, errno: Errno) -> EngineError {
    let message = match errno {
        Errno::LOOP => "the image has a symbolic link there: it must be a directory".to_owned(),
        Errno::NOTDIR | Errno::EXIST => {
            "the image has something else than a directory there".to_owned()
        }
        other => std::io::Error::from(other).to_string(),
    };
    EngineError::new(format!("use {path} of the image"), message)
}
