//! Starting a program of the host in a sandbox's control group and network namespace, and the private mount namespace it sees.
//!
//! Owns the few steps between fork and exec of such a program. For small single-threaded processes: a process that holds much memory or
//! many threads asks a spawner instead.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::cgroup::{Cgroup, CgroupError};

/// Where a program is to run. Everything holds from its first instruction.
#[derive(Debug)]
pub struct Place {
    /// `cgroup.procs` of each hierarchy, open for writing.
    groups: Vec<OwnedFd>,
    network_namespace: Option<OwnedFd>,
}

impl Place {
    /// A place in that group and, where given, that network namespace. May be used for any number of programs.
    ///
    /// # Errors
    /// [`CgroupError`] when the group does not exist.
    pub fn new(group: &Cgroup, network_namespace: Option<OwnedFd>) -> Result<Self, CgroupError> {
        Ok(Self { groups: group.open_procs()?, network_namespace })
    }

    /// The network namespace of the place.
    #[must_use]
    pub const fn network_namespace(&self) -> Option<&OwnedFd> {
        self.network_namespace.as_ref()
    }

    /// Makes the command start in this place. The command must be spawned, once, while this place and its descriptors are open.
    ///
    /// # Errors
    /// When a descriptor cannot be duplicated.
    pub fn apply(&self, command: &mut Command) -> std::io::Result<()> {
        let mut groups = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            groups.push(group.try_clone()?);
        }
        let network = self.network_namespace.as_ref().map(OwnedFd::try_clone).transpose()?;
        let enter = move || -> std::io::Result<()> {
            for group in &groups {
                // 0 is the writer itself.
                rustix::io::retry_on_intr(|| rustix::io::write(group, b"0"))?;
            }
            if let Some(network) = &network {
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(network),
                    Some(LinkNameSpaceType::Network),
                )?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only write(2) and setns(2) are called, on descriptors that the closure owns; nothing
        // is allocated, locked or freed.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

/// Moves the calling thread, and what it starts from now on, into a mount namespace of its own: the host does not see what is mounted
/// there, while what the host unmounts disappears there too.
///
/// # Errors
/// The kernel's answer.
pub fn enter_private_mount_namespace() -> Result<(), Errno> {
    // SAFETY: a new mount namespace comes with a file system context of the thread's own (current directory, umask), which changes
    // nothing about memory or descriptors; no code here relies on threads sharing a current directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_a_private_namespace_mounts_the_host_does_not_see() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let mountinfo = |of: &str| fs::read_to_string(Path::new("/proc").join(of)).expect("mountinfo");
        let inside = std::thread::spawn(move || {
            enter_private_mount_namespace().expect("root may have its own mounts");
            rustix::mount::mount("none", &path, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .expect("a tmpfs");
            mountinfo("thread-self/mountinfo")
        })
        .join()
        .expect("the thread ends well");
        let name = directory.path().to_str().expect("plain");
        assert!(inside.contains(name));
        assert!(!mountinfo("thread-self/mountinfo").contains(name));
    }
}
