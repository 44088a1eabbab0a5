//! Starting a program of the host in a sandbox's control group and network namespace.
//!
//! Owns the few steps between fork and exec of such a program. For small single-threaded processes: a process that holds much memory or
//! many threads asks a spawner instead.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

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
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only write(2) and setns(2) are called, on descriptors that the closure owns; nothing
        // is allocated, locked or freed.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::{CgroupLayout, CgroupRoot};

    #[test]
    fn a_program_starts_in_its_group_and_network() {
        let layout = CgroupLayout::detect().expect("the host's cgroups can be read");
        let instance = format!("placed-child-test-{}", std::process::id());
        let root = CgroupRoot::open(&layout, &instance).expect("root may make groups");
        let group = root.create("0123456789abcdef", None).expect("a new group");
        let network = std::thread::spawn(|| {
            crate::clone::unshare(rustix::thread::UnshareFlags::NEWNET).expect("root may");
            fs::File::open("/proc/thread-self/ns/net").expect("its own namespace").into()
        })
        .join()
        .expect("the thread ends well");
        let place = Place::new(&group, Some(network)).expect("the group exists");
        let mut command = Command::new("cat");
        command.args(["/proc/self/cgroup", "/proc/net/dev"]);
        place.apply(&mut command).expect("descriptors are left");
        let output = command.output();
        drop(place);
        group.remove().expect("nobody is left in it");
        root.remove().expect("it is empty");
        let text = String::from_utf8(output.expect("cat starts").stdout).expect("text");
        let in_group = |line: &&str| line.ends_with(&format!("/{instance}/0123456789abcdef"));
        assert!(text.lines().any(|line| in_group(&line)), "{text}");
        let links = text.lines().filter(|line| line.contains(": ") && line.contains(" 0 ")).count();
        assert_eq!(links, 1, "a new network namespace has its loopback only: {text}");
    }
}
