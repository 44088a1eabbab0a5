//! A container's life after its start: known again after a shim's death, its end explained, all of it removed.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use atoll_sys::cgroup::Cgroup;
use atoll_sys::clone::Child;
use atoll_sys::process::{self, ProcessIdentity, ProcessState, Wait};
use atoll_wire::record::{ProcessId, ShimRecord};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{ContainerEngine, Failed, group_name, no_container, stage};
use crate::engine::{Begun, EndEvidence, EngineError};

/// How long a killed first process may take to be gone (guess: tearing down a large container's memory and mounts).
const GONE_WITHIN: Duration = Duration::from_secs(10);

impl ContainerEngine {
    /// Remembers a first process that was started.
    pub(super) fn keep(&mut self, container: usize, child: Child) -> Result<Begun, EngineError> {
        let init = identity_of_child(child.pid)?;
        let ended = child.pidfd.try_clone().failed(|| "copy a process's descriptor")?;
        let slot = self.containers.get_mut(container).ok_or_else(|| no_container(container))?;
        slot.init = Some(init.clone());
        slot.pidfd = Some(child.pidfd);
        Ok(Begun { init, ended })
    }

    /// Finds again what the record names: groups by name, processes by identity, never by a bare pid.
    pub(super) fn take_over(
        &mut self,
        record: &ShimRecord,
    ) -> Result<Vec<Option<Begun>>, EngineError> {
        let groups = self.groups()?;
        let mut adopted = Vec::with_capacity(self.launch.plan.containers.len());
        for (number, plan) in self.launch.plan.containers.iter().enumerate() {
            let cgroup = groups
                .find(&self.launch.plan.uid, Some(&group_name(number)))
                .failed(|| "find the container's control group")?;
            let known = record.containers.iter().find(|container| container.name == plan.name);
            let init = known.map(|container| identity(&container.init));
            let pidfd = match &init {
                Some(init) => open_running(init)?,
                None => None,
            };
            let Some(slot) = self.containers.get_mut(number) else { continue };
            slot.cgroup = Some(cgroup);
            let (Some(init), Some(pidfd)) = (init, pidfd) else {
                adopted.push(None);
                continue;
            };
            let ended = pidfd.try_clone().failed(|| "copy a process's descriptor")?;
            slot.init = Some(init.clone());
            slot.pidfd = Some(pidfd);
            adopted.push(Some(Begun { init, ended }));
        }
        Ok(adopted)
    }

    /// Counters that cannot be read say nothing: only what was seen is told.
    pub(super) fn evidence_of(&self, container: usize) -> EndEvidence {
        let Some(slot) = self.containers.get(container) else { return EndEvidence::default() };
        let exit = slot.init.as_ref().and_then(|init| {
            // Not a child any more when an earlier shim started it.
            process::peek_exit(init.pid, Wait::Now).ok().flatten()
        });
        let counted = |count: Option<u64>| count.is_some_and(|count| count > 0);
        let cgroup = slot.cgroup.as_ref();
        EndEvidence {
            init_exit: exit,
            out_of_memory: counted(cgroup.and_then(|cgroup| cgroup.oom_kills().ok())),
            pids_limit: counted(cgroup.and_then(|cgroup| cgroup.pids_limit_hits().ok())),
            ..EndEvidence::default()
        }
    }

    /// Kills, reaps and removes; goes on after a failure, and tells the first.
    pub(super) fn remove_all(&mut self) -> Result<(), EngineError> {
        let killed = self.sandbox_group().and_then(|cgroup| {
            cgroup.kill_all().failed(|| "kill the sandbox's processes").map(|()| cgroup)
        });
        // Also where the group is not to be had: a first process takes its whole pid namespace with it.
        for slot in &self.containers {
            if let Some(pidfd) = &slot.pidfd {
                let _ = process::send_signal(pidfd.as_fd(), 9);
            }
        }
        let reaped = self.reap_all();
        self.namespaces = None;
        self.resources.disks.clear();
        self.resources.network_namespace = None;
        self.resources.sysfs = None;
        let removed = killed
            .and_then(|cgroup| cgroup.remove().failed(|| "remove the sandbox's control group"));
        let cleared = stage::take_down(&self.launch.placement.directory);
        reaped.and(removed).and(cleared)
    }

    fn sandbox_group(&mut self) -> Result<Cgroup, EngineError> {
        let groups = self.groups()?;
        groups.find(&self.launch.plan.uid, None).failed(|| "find the sandbox's control group")
    }

    /// Visitors first: a container's first process ends only after all zombies of its pid namespace are reaped, and those whose parent
    /// is outside are reaped by nobody else.
    fn reap_all(&mut self) -> Result<(), EngineError> {
        let deadline = Instant::now() + GONE_WITHIN;
        for (visitor, pidfd) in self.visitors.drain(..) {
            await_end(&visitor, &pidfd, deadline)?;
        }
        for slot in &mut self.containers {
            let (Some(init), Some(pidfd)) = (&slot.init, &slot.pidfd) else { continue };
            await_end(init, pidfd, deadline)?;
            slot.pidfd = None;
            slot.init = None;
        }
        Ok(())
    }
}

/// Waits until a killed process has ended, and reaps it.
fn await_end(
    process: &ProcessIdentity,
    pidfd: &OwnedFd,
    deadline: Instant,
) -> Result<(), EngineError> {
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
    if !matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()), Ok(1..)) {
        let message = format!("it still runs {} s after it was killed", GONE_WITHIN.as_secs());
        return Err(EngineError::new(format!("end process {}", process.pid), message));
    }
    reap_if_ours(process);
    Ok(())
}

/// A process that still runs; one that has ended but is not reaped tells nothing to who is not its parent.
fn open_running(process: &ProcessIdentity) -> Result<Option<OwnedFd>, EngineError> {
    let step = || format!("find process {}", process.pid);
    let pidfd = process.open().failed(step)?;
    let running = process.state().failed(step)? == ProcessState::Running;
    Ok(pidfd.filter(|_| running))
}

/// Reaps exactly this process when it is a zombie child; a number that is another's by now is left alone.
fn reap_if_ours(identity: &ProcessIdentity) {
    if matches!(identity.state(), Ok(ProcessState::Zombie)) {
        // Another parent's zombie (adopted sandboxes) is not ours to reap.
        let _ = process::reap(identity.pid, Wait::Now);
    }
}

/// A child that is not reaped has an identity, dead or alive.
pub(super) fn identity_of_child(pid: i32) -> Result<ProcessIdentity, EngineError> {
    ProcessIdentity::of(pid)
        .failed(|| format!("identify process {pid}"))?
        .ok_or_else(|| EngineError::new(format!("identify process {pid}"), "it is gone already"))
}

fn identity(recorded: &ProcessId) -> ProcessIdentity {
    ProcessIdentity {
        pid: recorded.pid,
        start_time_ticks: recorded.start_time_ticks,
        boot_id: recorded.boot_id.clone(),
    }
}
