//! Engine `container`: isolation by the host's kernel. Namespaces, control groups, id-mapped layers, a system call filter.
//!
//! Owns a sandbox's control groups, its namespaces and its mounts, all of which end with its processes but for the groups, which
//! [`Engine::remove`] takes away. Fails closed: what cannot be put in force fails the launch. Never follows a path of the image on the host.
//!
//! ```text
//! prepare: groups ─► user, IPC, UTS namespaces ─► the stage (a mount namespace of the shim's own)
//! begin:   group with limits ─► clone3 (pid, mounts, into the group) ─► in the child: group namespace ─► layers, disk, overlay
//!          ─► network, IPC, UTS ─► /proc /sys /dev ─► tmpfs, volumes ─► pivot_root ─► user namespace ─► exec
//! ```

mod credentials;
mod first_process;
mod image_process;
mod life;
mod outside;
mod plan_mounts;
mod report;
mod root_file_system;
mod stage;
mod system_mounts;

use std::os::fd::{AsFd, OwnedFd};

use atoll_sys::cgroup::{Cgroup, CgroupLayout, CgroupRoot, Limits};
use atoll_sys::clone::Child;
use atoll_sys::process::ProcessIdentity;
use atoll_sys::shared_namespaces::SharedNamespaces;
use atoll_wire::guest::{Boot, ProcessSpec};
use atoll_wire::record::ShimRecord;
use atoll_wire::shim::{ContainerPlan, Init, Launch};
use base64::Engine as _;
use rustix::thread::UnshareFlags;

use self::first_process::FirstProcess;
use crate::engine::{Begun, EndEvidence, Engine, EngineError, Resources, StandardStreams};

/// Exit code of a first process that could not be built: its report says why.
const BUILD_FAILED_EXIT_CODE: i32 = 125;

/// Says what failed, in the words of an [`EngineError`].
pub(crate) trait Failed<T> {
    fn failed<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, EngineError>;
}

impl<T, E: std::error::Error> Failed<T> for Result<T, E> {
    fn failed<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, EngineError> {
        self.map_err(|error| {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message.push_str(": ");
                message.push_str(&cause.to_string());
                source = cause.source();
            }
            EngineError::new(operation(), message)
        })
    }
}

/// Makes the engine.
///
/// # Errors
/// [`EngineError`] when the launch names no container, or a host that cannot limit.
pub fn engine(launch: &Launch, resources: Resources) -> Result<Box<dyn Engine>, EngineError> {
    let containers = launch.plan.containers.iter().map(|_| Slot::default()).collect();
    Ok(Box::new(ContainerEngine {
        launch: launch.clone(),
        resources,
        with_sysfs: false,
        groups: None,
        namespaces: None,
        boosting: launch.plan.boost_millis > 0,
        containers,
        visitors: Vec::new(),
    }))
}

/// What the engine knows of one container.
#[derive(Debug, Default)]
struct Slot {
    cgroup: Option<Cgroup>,
    init: Option<ProcessIdentity>,
    pidfd: Option<OwnedFd>,
}

struct ContainerEngine {
    launch: Launch,
    resources: Resources,
    with_sysfs: bool,
    groups: Option<CgroupRoot>,
    namespaces: Option<SharedNamespaces>,
    boosting: bool,
    containers: Vec<Slot>,
    /// Processes started from outside that may not be reaped yet.
    visitors: Vec<(ProcessIdentity, OwnedFd)>,
}

impl ContainerEngine {
    fn plan(&self, container: usize) -> Result<&ContainerPlan, EngineError> {
        self.launch.plan.containers.get(container).ok_or_else(|| no_container(container))
    }

    fn slot(&self, container: usize) -> Result<&Slot, EngineError> {
        self.containers.get(container).ok_or_else(|| no_container(container))
    }

    fn groups(&mut self) -> Result<CgroupRoot, EngineError> {
        if let Some(groups) = &self.groups {
            return Ok(groups.clone());
        }
        let layout = CgroupLayout::detect().failed(|| "look for control groups")?;
        let groups = CgroupRoot::open(&layout, &self.launch.placement.cgroup_instance)
            .failed(|| "open the instance's control group")?;
        Ok(self.groups.insert(groups).clone())
    }

    /// Makes the container's group, with its limits in force before anything runs in it.
    fn make_group(&mut self, container: usize) -> Result<Cgroup, EngineError> {
        let cgroup = self
            .groups()?
            .create(&self.launch.plan.uid, Some(&group_name(container)))
            .failed(|| "make the container's control group")?;
        let limits = limits(self.plan(container)?, self.boosting);
        cgroup.set(&limits).failed(|| "set the container's limits")?;
        Ok(cgroup)
    }

    fn build(
        &mut self,
        container: usize,
        cgroup: &Cgroup,
        streams: &StandardStreams,
    ) -> Result<Child, EngineError> {
        let step = || format!("start container {container}");
        let plan = self.plan(container)?;
        let (Some(namespaces), Some(network)) =
            (&self.namespaces, &self.resources.network_namespace)
        else {
            return Err(EngineError::new(
                step(),
                "the sandbox has no namespaces: prepare it first",
            ));
        };
        let disk = self.resources.disks.iter().find(|(name, _)| *name == plan.name);
        let Some((_, disk)) = disk else {
            return Err(EngineError::new(step(), "no disk came with the launch"));
        };
        let seccomp_filter = seccomp_filter()?;
        let v2_group = cgroup.v2_fd().failed(step)?;
        let first = FirstProcess {
            launch: &self.launch,
            plan,
            namespaces,
            network_namespace: network.as_fd(),
            with_sysfs: self.with_sysfs,
            cgroup,
            in_v2_group: v2_group.is_some(),
            disk,
            seccomp_filter,
        };
        let namespaces = UnshareFlags::NEWPID | UnshareFlags::NEWNS;
        let child = fork(namespaces, v2_group.as_ref(), |_| first.run(streams))?;
        // The mount belongs to the container now; a copy here would keep the disk busy after its end.
        let name = plan.name.clone();
        self.resources.disks.retain(|(other, _)| *other != name);
        Ok(child)
    }
}

/// Forks, and waits until the child has become another program.
///
/// # Errors
/// What the child could not do; it is reaped then.
fn fork(
    namespaces: UnshareFlags,
    v2_group: Option<&OwnedFd>,
    run: impl FnOnce(()) -> Result<std::convert::Infallible, EngineError>,
) -> Result<Child, EngineError> {
    let (reader, writer) = report::channel()?;
    let child = atoll_sys::clone::start(namespaces, v2_group.map(AsFd::as_fd), || {
        // Until the exec this is the shim's program, with the shim's descriptors: nobody inside may look at it.
        let hidden = atoll_sys::process::forbid_inspection().failed(|| "hide from the container");
        match hidden.and_then(run) {
            Ok(never) => match never {},
            Err(error) => report::send(writer, &error),
        }
        BUILD_FAILED_EXIT_CODE
    })
    .failed(|| "fork")?;
    let built = report::receive(reader);
    if built.is_err() {
        // It ends by itself after its report; one that hangs has to be told.
        let _ = atoll_sys::process::send_signal(child.pidfd.as_fd(), 9);
        let _ = atoll_sys::process::reap(child.pid, atoll_sys::process::Wait::Block);
    }
    built.map(|()| child)
}

impl Engine for ContainerEngine {
    fn prepare(&mut self) -> Result<(), EngineError> {
        self.groups()?
            .create(&self.launch.plan.uid, None)
            .failed(|| "make the sandbox's control group")?;
        let first_host_id = self.launch.placement.first_host_id;
        let namespaces = SharedNamespaces::create(&self.launch.plan.hostname, first_host_id)
            .failed(|| "make the sandbox's namespaces")?;
        self.namespaces = Some(namespaces);
        let sysfs = self.resources.sysfs.take();
        self.with_sysfs = sysfs.is_some();
        let directory = &self.launch.placement.directory;
        let volumes = std::mem::take(&mut self.resources.volumes);
        let user = self.namespaces.as_ref().and_then(|it| it.user.as_ref()).map(AsFd::as_fd);
        let owner = stage::Owner { first_host_id: first_host_id.unwrap_or(0), user };
        stage::set_up(directory, &self.launch.plan, sysfs, volumes, owner)
    }

    fn begin(&mut self, container: usize, streams: StandardStreams) -> Result<Begun, EngineError> {
        let cgroup = self.make_group(container)?;
        let slot = self.containers.get_mut(container).ok_or_else(|| no_container(container))?;
        slot.cgroup = Some(cgroup.clone());
        let child = self.build(container, &cgroup, &streams)?;
        self.keep(container, child)
    }

    fn boot(&mut self, _container: usize) -> Result<Boot, EngineError> {
        Ok(Boot {
            hostname: None,
            seccomp_filter_base64: base64::engine::general_purpose::STANDARD
                .encode(seccomp_filter()?),
            pids_limit: None,
            user_limits: None,
        })
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
        self.visit(container, process, &streams)
    }

    fn kill(&mut self, container: usize) -> Result<(), EngineError> {
        match &self.slot(container)?.cgroup {
            Some(cgroup) => cgroup.kill_all().failed(|| format!("kill container {container}")),
            None => Ok(()),
        }
    }

    fn signal(&mut self, container: usize, signal: i32) -> Result<(), EngineError> {
        match &self.slot(container)?.pidfd {
            Some(pidfd) => atoll_sys::process::send_signal(pidfd.as_fd(), signal)
                .map(drop)
                .failed(|| format!("signal container {container}")),
            None => Ok(()),
        }
    }

    fn end_boost(&mut self) -> Result<(), EngineError> {
        self.boosting = false;
        for (number, plan) in self.launch.plan.containers.iter().enumerate() {
            let Some(cgroup) = self.containers.get(number).and_then(|slot| slot.cgroup.as_ref())
            else {
                continue;
            };
            let quota = Limits::default().with_cpu_millis(plan.limits.cpu_millis);
            cgroup.set(&quota).failed(|| format!("limit the CPU of container {number}"))?;
        }
        Ok(())
    }

    fn evidence(&mut self, container: usize) -> EndEvidence {
        self.evidence_of(container)
    }

    fn remove(&mut self) -> Result<(), EngineError> {
        self.remove_all()
    }
}

fn no_container(container: usize) -> EngineError {
    EngineError::new(
        format!("use container {container}"),
        "the plan has no container of that number",
    )
}

/// A container's group below the sandbox's: by number, because names are the user's.
fn group_name(container: usize) -> String {
    format!("c{container}")
}

/// The plan's limits as a control group takes them; without the CPU quota while the start is boosted.
fn limits(plan: &ContainerPlan, boosting: bool) -> Limits {
    // The guest is one process of the container's group that the user did not ask for.
    let own_processes = u64::from(plan.init == Init::Guest);
    let limits = Limits {
        cpu_weight: Some(cpu_weight(plan.limits.cpu_millis)),
        memory_bytes: Some(plan.limits.memory_bytes),
        pids: Some(plan.limits.pids.saturating_add(own_processes)),
        ..Limits::default()
    };
    if boosting { limits } else { limits.with_cpu_millis(plan.limits.cpu_millis) }
}

/// One CPU weighs what the kernel gives an ordinary group (100).
fn cpu_weight(cpu_millis: u64) -> u32 {
    u32::try_from(cpu_millis / 10).unwrap_or(u32::MAX).clamp(1, 10_000)
}

fn seccomp_filter() -> Result<&'static [u8], EngineError> {
    atoll_sys::seccomp::container_filter().failed(|| "compile the system call filter")
}

#[cfg(test)]
mod tests {
    use super::cpu_weight;

    #[test]
    fn one_cpu_has_the_kernels_ordinary_weight_and_extremes_are_cut() {
        assert_eq!((cpu_weight(1000), cpu_weight(0), cpu_weight(64)), (100, 1, 6));
        assert_eq!(cpu_weight(u64::MAX), 10_000);
    }
}
