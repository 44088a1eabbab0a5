//! Engine `gvisor`: the containers of a sandbox share one user-space kernel, the Sentry, which runsc starts.
//!
//! Owns, of a sandbox: its control group with runsc, Sentry and gofers in it, a mount namespace that only they (and this shim) see, the
//! directory `gvisor` below the sandbox's, and runsc's `--root` of its own. Never runs `runsc run` attached, never asks `runsc state`, and
//! never believes runsc's files about what runs: pidfds and the control group tell.
//!
//! ```text
//! one container:    Sentry [ container 0 ]                 its end is the Sentry's end
//! several:          Sentry [ keeper, 0, 1, ... ]           the keeper is a guest that is told nothing: containers may end in any order
//! ```
//!
//! Network: runsc starts inside the sandbox's network namespace and takes addresses and routes off its interfaces. With the loopback alone
//! nothing is lost; who lends a namespace with an addressed interface puts the addresses back before it is lent again.
//!
//! Limits: memory, CPU and host threads are limited for the Sentry as a whole ([`limits`]). The workload's pids are counted in three rings:
//! gVisor's limit of each user's processes, exact (EAGAIN, [`limits`]); the guest, which ends a workload above its limit, as many users or
//! beside others ([`atoll_wire::guest::Boot::pids_limit`]); the host's backstop, which ends the Sentry. With `init: image` there is no guest:
//! the first and the last are left. Memory file systems are the Sentry's own: their pages count as the sandbox's memory.
//!
//! The guest's channel: gVisor lets root inside open through /proc what another process has open; the guest's own shield keeps it closed.

mod bundle;
mod end;
mod file_systems;
mod limits;
mod runsc;
mod sentry;
mod start;
mod volumes;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use atoll_model::causes::with_causes;
use atoll_sys::cgroup::{Cgroup, CgroupLayout, CgroupRoot};
use atoll_sys::placed_child::Place;
use atoll_sys::process::{self, ProcessIdentity, ProcessState};
use atoll_wire::guest::{Boot, ProcessSpec};
use atoll_wire::record::ShimRecord;
use atoll_wire::shim::{
    ContainerPlan, GvisorPlacement, Launch, NetworkPlacement, SandboxPlan, container_directory,
};

use crate::engine::{Begun, EndEvidence, Engine, EngineError, Resources, StandardStreams};
use file_systems::ContainerDirectory;
use runsc::Runsc;
use sentry::{Receiver, Sentry};

/// The id, for runsc, of the container that keeps the Sentry of several.
const KEEPER: &str = "keeper";

/// Makes the engine.
///
/// # Errors
/// [`EngineError`] when the launch is not for this engine, or the host cannot hold its control groups.
pub fn engine(launch: &Launch, resources: Resources) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(GvisorEngine::new(launch, resources)?))
}

/// One sandbox in one Sentry.
struct GvisorEngine {
    plan: SandboxPlan,
    network: Option<NetworkPlacement>,
    host: GvisorPlacement,
    guest_binary: PathBuf,
    cgroup_instance: String,
    /// `<sandbox>/gvisor`.
    directory: PathBuf,
    runsc: Runsc,
    sentry: Sentry,
    resources: Resources,
    group: Option<Cgroup>,
    place: Option<Place>,
    /// The Sentry, once it runs.
    process: Option<ProcessIdentity>,
    /// The containers that were begun.
    begun: BTreeSet<usize>,
    /// Children of this shim that came from runsc: the Sentry and gofers, to be reaped.
    children: BTreeSet<i32>,
    /// Processes entered from outside so far: makes their file names.
    entered: u64,
}

impl GvisorEngine {
    fn new(launch: &Launch, resources: Resources) -> Result<Self, EngineError> {
        let what = "use engine gvisor";
        let placement = &launch.placement;
        let host = placement
            .gvisor
            .clone()
            .ok_or_else(|| EngineError::new(what, "the launch says nothing about runsc"))?;
        let directory = placement.directory.join("gvisor");
        let runsc =
            Runsc::new(&host, &launch.plan.uid, &directory, volumes::are_shared(&launch.plan));
        let first = container_id(&launch.plan, None);
        let sentry =
            Sentry::new(runsc.root(), &first).map_err(|why| EngineError::new(what, why))?;
        Ok(Self {
            plan: launch.plan.clone(),
            network: placement.network,
            host,
            guest_binary: placement.guest_binary.clone(),
            cgroup_instance: placement.cgroup_instance.clone(),
            directory,
            runsc,
            sentry,
            resources,
            group: None,
            place: None,
            process: None,
            begun: BTreeSet::new(),
            children: BTreeSet::new(),
            entered: 0,
        })
    }

    fn cgroup_root(&self) -> Result<CgroupRoot, EngineError> {
        let what = "open the control groups";
        let layout =
            CgroupLayout::detect().map_err(|error| EngineError::new(what, with_causes(&error)))?;
        CgroupRoot::open(&layout, &self.cgroup_instance)
            .map_err(|error| EngineError::new(what, with_causes(&error)))
    }

    fn container(&self, index: usize) -> Result<&ContainerPlan, EngineError> {
        self.plan.containers.get(index).ok_or_else(|| {
            EngineError::new("find the container", format!("there is none of index {index}"))
        })
    }

    fn container_directory(&self, container: &ContainerPlan) -> ContainerDirectory {
        ContainerDirectory::new(&self.directory, &container_directory(&container.name))
    }

    /// Where runsc finds the guest's program.
    fn sealed_guest(&self) -> PathBuf {
        self.directory.join("guest")
    }

    /// Containers share a Sentry that a keeper keeps.
    fn has_keeper(&self) -> bool {
        self.plan.containers.len() > 1
    }

    fn sentry_runs(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| matches!(process.state(), Ok(ProcessState::Running)))
    }

    /// What becomes readable when the container has ended.
    fn ended(&self, index: usize) -> Result<OwnedFd, EngineError> {
        let what = "watch the container";
        if self.has_keeper() {
            let connection = self
                .sentry
                .wait_for_end(&container_id(&self.plan, Some(index)))
                .map_err(|error| EngineError::new(what, error))?;
            return Ok(connection.into());
        }
        let process = self.process.as_ref().map(ProcessIdentity::open).transpose();
        match process.map_err(|error| EngineError::new(what, with_causes(&error)))?.flatten() {
            Some(pidfd) => Ok(pidfd),
            None => Err(EngineError::new(what, "the Sentry is gone")),
        }
    }

    fn kill_sentry(&self) -> Result<(), EngineError> {
        let Some(process) = &self.process else { return Ok(()) };
        let failed = |error| EngineError::new("kill the Sentry", with_causes(&error));
        if let Some(pidfd) = process.open().map_err(failed)? {
            process::send_signal(pidfd.as_fd(), rustix::process::Signal::KILL.as_raw())
                .map_err(failed)?;
        }
        Ok(())
    }
}

impl Engine for GvisorEngine {
    fn prepare(&mut self) -> Result<(), EngineError> {
        self.prepare_host()?;
        if self.has_keeper() { self.start_keeper() } else { Ok(()) }
    }

    fn begin(&mut self, container: usize, streams: StandardStreams) -> Result<Begun, EngineError> {
        self.start_container(container, streams)?;
        let ended = self.ended(container)?;
        self.begun.insert(container);
        let init = self.process.clone();
        let init =
            init.ok_or_else(|| EngineError::new("begin the container", "there is no Sentry"))?;
        Ok(Begun { init, ended })
    }

    fn boot(&mut self, container: usize) -> Result<Boot, EngineError> {
        self.boot_of(container)
    }

    fn adopt(&mut self, record: &ShimRecord) -> Result<Vec<Option<Begun>>, EngineError> {
        self.take_over(record)
    }

    fn exec_from_outside(
        &mut self,
        container: usize,
        process: &ProcessSpec,
        streams: StandardStreams,
    ) -> Result<Begun, EngineError> {
        self.enter(container, process, streams)
    }

    fn kill(&mut self, container: usize) -> Result<(), EngineError> {
        let alone = self.begun.iter().all(|begun| *begun == container);
        if !self.has_keeper() || alone {
            return self.kill_sentry();
        }
        if self.begun.contains(&container) {
            self.kill_container(container)?;
        }
        Ok(())
    }

    fn signal(&mut self, container: usize, signal: i32) -> Result<(), EngineError> {
        self.container(container)?;
        let id = container_id(&self.plan, Some(container));
        match self.sentry.signal(&id, signal, Receiver::Init) {
            Err(error) if self.sentry_runs() => {
                Err(EngineError::new(format!("send signal {signal} to the container"), error))
            }
            _ => Ok(()),
        }
    }

    fn end_boost(&mut self) -> Result<(), EngineError> {
        let Some(group) = &self.group else { return Ok(()) };
        let limits =
            atoll_sys::cgroup::Limits::default().with_cpu_millis(limits::cpu_millis(&self.plan));
        group
            .set(&limits)
            .map_err(|error| EngineError::new("set the CPU quota", with_causes(&error)))
    }

    fn evidence(&mut self, _container: usize) -> EndEvidence {
        self.sentry_evidence()
    }

    fn remove(&mut self) -> Result<(), EngineError> {
        self.remove_all()
    }
}

/// How runsc names a container; `None`: the one that starts the Sentry.
fn container_id(plan: &SandboxPlan, index: Option<usize>) -> String {
    match index {
        None if plan.containers.len() > 1 => KEEPER.to_owned(),
        index => format!("c{}", index.unwrap_or(0)),
    }
}

/// The directory of a container that is none of the plan's: its name cannot be a container's.
fn keeper_directory(directory: &Path) -> ContainerDirectory {
    ContainerDirectory::new(directory, ".keeper")
}
