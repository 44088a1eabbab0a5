//! A container's first process, from the fork to the exec: everything that isolates it is put in force here, in this order.
//!
//! Runs in the forked child as the host's root, in new pid and mount namespaces, and runs nothing of the image. Any step that fails
//! ends it with a report; there is no way to the exec around a step.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use atoll_sys::capabilities::{self, CapabilitySet};
use atoll_sys::cgroup::Cgroup;
use atoll_sys::mount::{self, Attributes};
use atoll_sys::shared_namespaces::SharedNamespaces;
use atoll_wire::shim::{ContainerPlan, Init, Launch};
use rustix::fs::{CWD, Mode};
use rustix::thread::UnshareFlags;

use super::credentials::{self, Confinement};
use super::{Failed, image_process, plan_mounts, root_file_system, stage, system_mounts};
use crate::engine::{EngineError, StandardStreams};
use crate::names;

/// What the guest has beyond what its workload may have: the hostname, and limits of the processes it starts. In the sandbox's user
/// namespace where there is one, so none of it reaches beyond the sandbox.
const GUEST_CAPABILITIES: [&str; 2] = ["SYS_ADMIN", "SYS_RESOURCE"];

/// All that the first process needs, laid out before the fork.
pub(super) struct FirstProcess<'a> {
    pub(super) launch: &'a Launch,
    pub(super) plan: &'a ContainerPlan,
    pub(super) namespaces: &'a SharedNamespaces,
    pub(super) network_namespace: BorrowedFd<'a>,
    pub(super) with_sysfs: bool,
    pub(super) cgroup: &'a Cgroup,
    /// The process was forked into the v2 group already.
    pub(super) in_v2_group: bool,
    pub(super) disk: &'a OwnedFd,
    pub(super) seccomp_filter: &'a [u8],
}

impl FirstProcess<'_> {
    /// Does it all. Returns only when a step fails.
    pub(super) fn run(&self, streams: &StandardStreams) -> Result<Infallible, EngineError> {
        let first_host_id = self.launch.placement.first_host_id.unwrap_or(0);
        rustix::process::umask(Mode::empty());
        self.join_group()?;
        mount::isolate_propagation(false).failed(|| "keep mounts to the container")?;
        let stage_path = stage::path(&self.launch.placement.directory);
        let stage = mount::open_directory(&stage_path).failed(|| "open the stage")?;
        rustix::process::fchdir(&stage).failed(|| "enter the stage")?;
        let guest = self.open_guest(stage.as_fd())?;
        let user = self.namespaces.user.as_ref().map(AsFd::as_fd);
        let root = root_file_system::assemble(self.plan, self.disk.as_fd(), user, first_host_id)?;
        for namespace in
            [self.network_namespace, self.namespaces.ipc.as_fd(), self.namespaces.uts.as_fd()]
        {
            atoll_sys::clone::enter(namespace).failed(|| "enter the sandbox's namespaces")?;
        }
        let place = self.launch.placement.network.as_ref();
        names::write(&root, &self.launch.plan.hostname, place)?;
        system_mounts::mount_proc(&root, stage.as_fd())?;
        if self.with_sysfs {
            system_mounts::mount_sys(&root, stage.as_fd(), self.cgroup)?;
        }
        system_mounts::mount_dev(&root, stage.as_fd(), first_host_id)?;
        let sandbox = &self.launch.plan;
        let disk = self.disk.as_fd();
        plan_mounts::mount_all(&root, stage.as_fd(), sandbox, self.plan, disk, first_host_id)?;
        if self.plan.read_only_root {
            mount::add_attributes(root.as_fd(), Attributes::MOUNT_ATTR_RDONLY)
                .failed(|| "make the root read-only")?;
        }
        mount::pivot_into(root.as_fd()).failed(|| "change the root")?;
        credentials::take_streams(streams)?;
        if guest.is_none() {
            image_process::set_kill_order(&self.plan.process);
        }
        credentials::become_root_of(user)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        match guest {
            Some(guest) => self.execute_guest(&guest),
            None => {
                let confinement = Confinement { seccomp_filter: self.seccomp_filter };
                image_process::execute(&self.plan.process, &confinement)
            }
        }
    }

    fn join_group(&self) -> Result<(), EngineError> {
        let joined = match self.in_v2_group {
            true => self.cgroup.attach_self_v1_only(),
            false => self.cgroup.attach_self(),
        };
        joined.failed(|| "enter the container's control group")?;
        // Only now: the namespace's root is the group that the process is in.
        atoll_sys::clone::unshare(UnshareFlags::NEWCGROUP)
            .failed(|| "make a control group namespace")
    }

    /// The guest from a mount that nothing can write through, so that not even a kernel bug in /proc/<pid>/exe gives more than
    /// reading.
    fn open_guest(&self, stage: BorrowedFd<'_>) -> Result<Option<OwnedFd>, EngineError> {
        if self.plan.init == Init::Image {
            return Ok(None);
        }
        let path = &self.launch.placement.guest_binary;
        let guest = mount::copy_tree(CWD, path, false)
            .failed(|| format!("open the guest program {}", path.display()))?;
        let attributes = Attributes::MOUNT_ATTR_RDONLY
            | Attributes::MOUNT_ATTR_NOSUID
            | Attributes::MOUNT_ATTR_NODEV;
        mount::add_attributes(guest.as_fd(), attributes)
            .failed(|| "make the guest program read-only")?;
        // Placed, it leaves with the stage; a mount that is dropped unplaced costs the exec a wait for the whole host.
        mount::attach_at(guest.as_fd(), stage, stage::GUEST)
            .failed(|| "place the guest program")?;
        Ok(Some(guest))
    }

    fn execute_guest(&self, guest: &OwnedFd) -> Result<Infallible, EngineError> {
        let workload = CapabilitySet::from_mask(self.plan.process.capabilities);
        let bounding = GUEST_CAPABILITIES
            .iter()
            .filter_map(|name| capabilities::number(name))
            .fold(workload.with_all_of(CapabilitySet::container_default()), CapabilitySet::with);
        credentials::bound_capabilities(bounding)?;
        atoll_sys::process::close_on_exec_all_but(&[]).failed(|| "close descriptors at exec")?;
        let name = self.launch.placement.guest_binary.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes())
            .map_err(|error| EngineError::new("name the guest program", error))?;
        let refused = atoll_sys::clone::execute(guest.as_fd(), &[name], &[]);
        Err(EngineError::new("execute the guest program", refused))
    }
}
