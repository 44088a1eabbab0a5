//! Ending: one container or all, what is known about why, taking over from an earlier shim, and removing every trace.

use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_sys::process::{self, Exit, ProcessIdentity, ProcessState, Wait};
use atoll_wire::record::{ProcessId, ShimRecord};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::file_systems::{remove_directory, unmount_all, unseal};
use super::sentry::Receiver;
use super::{GvisorEngine, container_id, keeper_directory};
use crate::engine::{Begun, EndEvidence, EngineError};

const SIGKILL: i32 = 9;
/// How long the Sentry may take to say that a container has ended already.
const ENDED_ALREADY_WITHIN: Duration = Duration::from_millis(200);
/// How long a killed process may take to be waited for (guess: memory is freed first, of up to gigabytes).
const REAPED_WITHIN: Duration = Duration::from_secs(2);
/// What the Go runtime exits with after a panic. SOURCE: Go's runtime/panic.go.
const GO_PANIC_EXIT_CODE: i32 = 2;

impl GvisorEngine {
    /// Ends every process of a container while others of its Sentry live on.
    pub(super) fn kill_container(&self, index: usize) -> Result<(), EngineError> {
        let id = container_id(&self.plan, Some(index));
        let Err(refused) = self.sentry.signal(&id, SIGKILL, Receiver::Everyone) else {
            return Ok(());
        };
        if !self.sentry_runs() || self.has_ended(&id) {
            return Ok(());
        }
        let what = format!("kill container {id}");
        let (mut command, log) = self.runsc.command("kill");
        command.arg("kill").arg("--all").arg(&id).arg("KILL");
        self.runsc.run(&what, (command, log), None, None).map_err(|error| {
            EngineError::new(what, format!("{} (the Sentry said: {refused})", error.message))
        })
    }

    fn has_ended(&self, id: &str) -> bool {
        let Ok(connection) = self.sentry.wait_for_end(id) else { return true };
        let timeout = Timespec::try_from(ENDED_ALREADY_WITHIN).ok();
        poll(&mut [PollFd::new(&connection, PollFlags::IN)], timeout.as_ref())
            .is_ok_and(|ready| ready > 0)
    }

    /// See [`crate::engine::Engine::evidence`]: the Sentry's for all its containers. Their own pids limit is the guest's to tell.
    pub(super) fn sentry_evidence(&self) -> EndEvidence {
        let mut evidence = EndEvidence::default();
        if let Some(group) = &self.group {
            evidence.out_of_memory = group.oom_kills().is_ok_and(|kills| kills > 0);
            evidence.host_pids_backstop = group.pids_limit_hits().is_ok_and(|hits| hits > 0);
        }
        let Some(process) = &self.process else { return evidence };
        let runs = matches!(process.state(), Ok(ProcessState::Running));
        let exit = match self.children.contains(&process.pid) {
            true => process::peek_exit(process.pid, Wait::Now).ok().flatten(),
            false => None,
        };
        if self.has_keeper() {
            // A container's own first process is no process of the host, and the keeper never ends by itself.
            evidence.sentry_died = !runs;
        } else {
            evidence.init_exit = exit;
            evidence.sentry_died =
                matches!(exit, Some(Exit::Signal(_) | Exit::Code(GO_PANIC_EXIT_CODE)));
        }
        evidence
    }

    /// See [`crate::engine::Engine::adopt`].
    pub(super) fn take_over(
        &mut self,
        record: &ShimRecord,
    ) -> Result<Vec<Option<Begun>>, EngineError> {
        let what = "take over the sandbox";
        let group = self
            .cgroup_root()?
            .find(&self.plan.uid, None)
            .map_err(|error| EngineError::new(what, with_causes(&error)))?;
        if group.exists() {
            let place = atoll_sys::placed_child::Place::new(&group, None)
                .map_err(|error| EngineError::new(what, with_causes(&error)))?;
            self.place = Some(place);
        }
        self.group = Some(group);
        self.process = record.containers.first().map(|first| identity(&first.init));
        let mut taken = Vec::with_capacity(self.plan.containers.len());
        for index in 0..self.plan.containers.len() {
            taken.push(self.take_over_container(index, record)?);
        }
        Ok(taken)
    }

    fn take_over_container(
        &mut self,
        index: usize,
        record: &ShimRecord,
    ) -> Result<Option<Begun>, EngineError> {
        let name = &self.container(index)?.name;
        let Some(container) = record.containers.iter().find(|one| one.name == *name) else {
            return Ok(None);
        };
        if container.exit.is_some() || !self.sentry_runs() {
            return Ok(None);
        }
        let init = identity(&container.init);
        let id = container_id(&self.plan, Some(index));
        if self.has_keeper() && self.has_ended(&id) {
            return Ok(None);
        }
        self.begun.insert(index);
        Ok(Some(Begun { init, ended: self.ended(index)? }))
    }

    /// See [`crate::engine::Engine::remove`]. Goes on after a failure, so that one thing that stays does not keep the others.
    pub(super) fn remove_all(&mut self) -> Result<(), EngineError> {
        let mut problems: Vec<String> = Vec::new();
        match self.remove_processes() {
            Ok(()) => {}
            Err(problem) => problems.push(problem.to_string()),
        }
        self.place = None;
        self.resources = crate::engine::Resources::default();
        for container in &self.plan.containers {
            unmount_all(&self.container_directory(container));
        }
        unmount_all(&keeper_directory(&self.directory));
        unseal(&self.sealed_guest());
        // Whatever still stood there would be emptied with the directory.
        let removed = match self.volumes().unmount() {
            Ok(()) => remove_directory(&self.directory),
            Err(problem) => Err(problem),
        };
        for removed in [removed, remove_directory(self.runsc.root())] {
            match removed {
                Ok(()) => {}
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(EngineError::new("remove all of the sandbox", problems.join("; ")))
    }

    fn remove_processes(&mut self) -> Result<(), EngineError> {
        let what = "remove the sandbox's control group";
        // The Sentry's helpers come to this shim one by one, when those who started them have ended.
        self.note_children();
        let group = match self.group.take() {
            Some(group) => group,
            None => self
                .cgroup_root()?
                .find(&self.plan.uid, None)
                .map_err(|error| EngineError::new(what, with_causes(&error)))?,
        };
        let removed = group.remove().map_err(|error| EngineError::new(what, with_causes(&error)));
        if removed.is_err() {
            self.group = Some(group);
        }
        for pid in std::mem::take(&mut self.children) {
            reap_killed(pid);
        }
        removed
    }
}

/// Reaps a child that was killed. It leaves its group a moment before it can be waited for.
fn reap_killed(pid: i32) {
    // Reaped already: no error.
    let Ok(pidfd) = process::open_child(pid) else { return };
    let timeout = Timespec::try_from(REAPED_WITHIN).ok();
    // Whatever the wait said, the child is asked.
    let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref());
    let _ = process::reap(pid, Wait::Now);
}

fn identity(id: &ProcessId) -> ProcessIdentity {
    ProcessIdentity {
        pid: id.pid,
        start_time_ticks: id.start_time_ticks,
        boot_id: id.boot_id.clone(),
    }
}
