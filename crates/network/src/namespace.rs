//! The ring's namespace, kept by a mount in the data directory, and work that must be done inside a namespace.
//!
//! Owns the mount. Work inside runs on a thread that is made for it and ends with it: no thread of anybody else ever changes its namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use atoll_sys::clone;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::UnshareFlags;

use crate::error::NetworkError;

/// SOURCE: NSFS_MAGIC in linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Settings of the ring: it forwards, believes no stranger about routes, and gives its interfaces no addresses by itself.
const RING_SETTINGS: [(&str, &str); 10] = [
    ("ipv4/conf/all/forwarding", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/dad_transmits", "0"),
];
/// Settings of a slot, before it has an interface.
pub(crate) const SLOT_SETTINGS: [(&str, &str); 5] = [
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/dad_transmits", "0"),
];

/// A network namespace that other work enters.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// That of the calling thread.
    pub(crate) fn current() -> Result<Self, NetworkError> {
        open_namespace(Path::new("/proc/thread-self/ns/net")).map(Self)
    }

    /// The one that is mounted at `path`; `None`: none is.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>, NetworkError> {
        let fd = match rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW,
            rustix::fs::Mode::empty(),
        ) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(NetworkError::io("open", path)(errno)),
        };
        let kind =
            atoll_sys::mount::file_system_magic(&fd).map_err(NetworkError::io("look at", path))?;
        Ok((kind == NSFS_MAGIC).then_some(Self(fd)))
    }

    /// Makes one with the ring's settings and mounts it at `path`.
    pub(crate) fn make_ring(path: &Path) -> Result<Self, NetworkError> {
        File::create(path).map_err(NetworkError::io("create", path))?;
        let target = path.to_owned();
        on_a_thread(move || {
            clone::unshare(UnshareFlags::NEWNET).map_err(|error| NetworkError::Unavailable {
                message: format!("a network namespace cannot be made: {error}"),
            })?;
            set(&RING_SETTINGS)?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount_bind(own, &target)
                .map_err(NetworkError::io("mount the namespace at", &target))?;
            // Nothing of it goes to other mount namespaces, where nobody would unmount it.
            mount_change(&target, MountPropagationFlags::PRIVATE)
                .map_err(NetworkError::io("keep to this mount namespace", &target))?;
            open_namespace(own).map(Self)
        })
    }

    /// Unmounts and removes what [`Namespace::make_ring`] made. The namespace ends with the last who uses it.
    pub(crate) fn remove_ring(path: &Path) -> Result<(), NetworkError> {
        loop {
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // Not a mount (any more), or not there.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(errno) => return Err(NetworkError::io("unmount", path)(errno)),
            }
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Does work inside and waits for it.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        on_a_thread(|| {
            clone::enter(self.0.as_fd())
                .map_err(|errno| NetworkError::kernel("enter a network namespace")(errno))?;
            work()
        })
    }

    /// Begins a thread inside, which nobody waits for.
    pub(crate) fn thread(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), NetworkError> {
        let own = self.0.try_clone().map_err(NetworkError::kernel("keep a network namespace"))?;
        let (told, heard) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let inside = move || {
            let entered = clone::enter(own.as_fd()).map_err(std::io::Error::from);
            let is_inside = entered.is_ok();
            if told.send(entered).is_ok() && is_inside {
                work();
            }
        };
        thread.spawn(inside).map_err(NetworkError::kernel("start a thread"))?;
        let gone = |_| std::io::Error::other("its thread panicked");
        heard
            .recv()
            .map_err(gone)
            .flatten()
            .map_err(NetworkError::kernel("enter a network namespace"))
    }
}

/// Writes settings below /proc/sys/net, which are those of the calling thread's namespace.
pub(crate) fn set(settings: &[(&str, &str)]) -> Result<(), NetworkError> {
    for (name, value) in settings {
        let path = PathBuf::from("/proc/sys/net").join(name);
        match fs::write(&path, value) {
            // A kernel without IPv6 has nothing to set; that it has no addresses of it either is what refuses the network there.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetworkError::io("write", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn open_namespace(path: &Path) -> Result<OwnedFd, NetworkError> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(NetworkError::io("open", path))
}

/// A thread that ends with the work.
pub(crate) fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let begun = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work);
        match begun.map_err(NetworkError::kernel("start a thread"))?.join() {
            Ok(done) => done,
            Err(_) => Err(NetworkError::kernel("work in a network namespace")(
                std::io::Error::other("its thread panicked"),
            )),
        }
    })
}
