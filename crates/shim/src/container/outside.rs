//! A process that enters a container from outside, for images that have pid 1 to themselves.
//!
//! The process stands in the container's group and pid namespace and ends with it. It must be reaped when it has ended: until then the
//! container's own first process cannot end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use atoll_sys::cgroup::Cgroup;
use atoll_sys::clone::unshare;
use atoll_sys::process::ProcessState;
use atoll_wire::guest::ProcessSpec;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::credentials::{self, Confinement};
use super::life::identity_of_child;
use super::{ContainerEngine, Failed, fork, image_process, seccomp_filter};
use crate::engine::{Begun, EngineError, StandardStreams};

impl ContainerEngine {
    /// Starts a process in a running container.
    pub(super) fn visit(
        &mut self,
        container: usize,
        process: &ProcessSpec,
        streams: &StandardStreams,
    ) -> Result<Begun, EngineError> {
        let slot = self.slot(container)?;
        let (Some(pidfd), Some(cgroup)) = (&slot.pidfd, &slot.cgroup) else {
            let operation = format!("enter container {container}");
            return Err(EngineError::new(operation, "it does not run"));
        };
        let v2_group = cgroup.v2_fd().failed(|| "open the container's control group")?;
        let confinement = Confinement { seccomp_filter: seccomp_filter()? };
        let with_users = self.launch.placement.first_host_id.is_some();
        let pidfd = pidfd.as_fd();
        let child = with_children_in(pidfd, || {
            fork(UnshareFlags::empty(), v2_group.as_ref(), |()| {
                enter(pidfd, cgroup, v2_group.is_some())?;
                credentials::take_streams(streams)?;
                image_process::set_kill_order(process);
                enter_users(pidfd, with_users)?;
                image_process::execute(process, &confinement)
            })
        })?;
        let init = identity_of_child(child.pid)?;
        let ended = child.pidfd.try_clone().failed(|| "copy a process's descriptor")?;
        // Those that ended were reaped by the core.
        self.visitors.retain(|(visitor, _)| !matches!(visitor.state(), Ok(ProcessState::Gone)));
        self.visitors.push((init.clone(), child.pidfd));
        Ok(Begun { init, ended })
    }
}

/// Has the children that `start` forks begin in the pid namespace of a process.
fn with_children_in<T>(
    pidfd: BorrowedFd<'_>,
    start: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let own: OwnedFd =
        rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .failed(|| "open the own pid namespace")?;
    move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
        .failed(|| "enter the container's pid namespace")?;
    let started = start();
    atoll_sys::clone::enter(&own).failed(|| "leave the container's pid namespace")?;
    started
}

fn enter(pidfd: BorrowedFd<'_>, cgroup: &Cgroup, in_v2_group: bool) -> Result<(), EngineError> {
    let joined = if in_v2_group { cgroup.attach_self_v1_only() } else { cgroup.attach_self() };
    joined.failed(|| "enter the container's control group")?;
    // A namespace of control groups like the container's: with its group as the root.
    unshare(UnshareFlags::NEWCGROUP).failed(|| "make a control group namespace")?;
    let kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(pidfd, kinds).failed(|| "enter the container's namespaces")
}

/// The last of the namespaces: with it the host's rights are gone.
fn enter_users(pidfd: BorrowedFd<'_>, with_users: bool) -> Result<(), EngineError> {
    if with_users {
        move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::USER)
            .failed(|| "enter the container's user namespace")?;
    }
    credentials::become_root_of(None)
}
