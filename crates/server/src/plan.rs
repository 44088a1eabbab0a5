//! From a specification and its images to what a shim is to run. Pure: the same input gives the same plan.

use std::collections::BTreeMap;

use atoll_model::egress::Grant;
use atoll_model::ids::{ObjectName, SandboxName, SandboxUid};
use atoll_model::spec::{
    Command, Container, Init, Network, SandboxSpec, Signal, Tmpfs, Volume, VolumeSource,
};
use atoll_model::units::Bytes;
use atoll_sys::capabilities::CapabilitySet;
use atoll_wire::guest::{ProcessSpec, TerminalSize};
use atoll_wire::shim::{
    self, ContainerLimits, ContainerPlan, GrantPlan, NetworkPlan, SandboxPlan, TmpfsPlan,
    VolumeMountPlan, VolumePlan,
};

use crate::images::{ImageConfig, ResolvedImage, ResolvedUser};
use crate::ports;

/// Where programs are looked for when neither image nor user say so. SOURCE: what docker and containerd use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest process that a message has room for, beside the names of what it is sent to (guess: 4 KiB).
pub(crate) const MAX_PROCESS_BYTES: usize = atoll_wire::frame::MAX_PAYLOAD_BYTES - 4096;
/// Most of a disk limit that goes to logs.
const MAX_LOG_SHARE: Bytes = Bytes::from_mib(16);
/// /dev/shm and tmpfs of no stated size. SOURCE: docker's /dev/shm.
const DEFAULT_MEMORY_FILES: Bytes = Bytes::from_mib(64);
/// Without a probe a boost ends after 2 s: later throttling is no start-up any more.
const MAX_BOOST_MILLIS_WITHOUT_PROBE: u64 = 2000;
/// Higher than the guest's own: the kernel kills the workload before what watches over it.
const WORKLOAD_OOM_SCORE: i32 = 500;
/// SOURCE: the kernel's default terminal size is 0x0; 24 by 80 is what programs assume then.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The uids of named volumes that a sandbox has.
pub(crate) type NamedVolumes = BTreeMap<ObjectName, String>;

/// An image and who its container runs as.
pub(crate) struct PlannedImage {
    pub(crate) image: ResolvedImage,
    pub(crate) user: ResolvedUser,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Nothing to run.
    #[error(
        "container {container}: neither the image nor the specification names a command; give args"
    )]
    NoCommand {
        /// Which.
        container: String,
    },
    /// More words than can be given to a process.
    #[error(
        "container {container}: command, arguments and environment of image and specification together are too large: {bytes} bytes, at most {MAX_PROCESS_BYTES} fit; put large values into files"
    )]
    TooLarge {
        /// Which.
        container: String,
        /// As they are sent to the guest.
        bytes: usize,
    },
    /// Images and containers do not match: a mistake of the caller.
    #[error("there are {images} images for {containers} containers")]
    Mismatch {
        /// Images given.
        images: usize,
        /// Containers wanted.
        containers: usize,
    },
}

/// How a disk limit is shared: (for root and /tmp, for logs).
pub(crate) fn disk_shares(disk: Bytes) -> (u64, u64) {
    let logs = (disk.0 / 8).min(MAX_LOG_SHARE.0);
    (disk.0 - logs, logs)
}

/// A hostname from a name: what RFC 1123 and HOST_NAME_MAX allow.
pub(crate) fn hostname_of(name: &SandboxName) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let host: String = name.as_str().chars().map(letter).take(63).collect();
    host.trim_matches('-').to_owned()
}

/// What a process takes of a message to its guest.
pub(crate) fn process_bytes(process: &ProcessSpec) -> usize {
    // Cannot fail: it is strings and numbers. If it did, it would not fit.
    serde_json::to_vec(process).map_or(usize::MAX, |bytes| bytes.len())
}

/// Plans a sandbox; `images` in the order of the specification's containers. Its ports are not known here: who has assigned them adds them.
pub(crate) fn plan(
    uid: SandboxUid,
    name: &SandboxName,
    spec: &SandboxSpec,
    images: &[PlannedImage],
    named_volumes: &NamedVolumes,
) -> Result<SandboxPlan, PlanError> {
    if images.len() != spec.containers.len() {
        return Err(PlanError::Mismatch {
            images: images.len(),
            containers: spec.containers.len(),
        });
    }
    let hostname = spec.hostname.clone().unwrap_or_else(|| hostname_of(name));
    let containers = spec.containers.iter().zip(images);
    let containers =
        containers.map(|(container, image)| plan_container(container, image, &hostname));
    let memory: u64 =
        spec.containers.iter().map(|it| it.resources.memory.0).fold(0, u64::saturating_add);
    let volume = |it: &Volume| plan_volume(it, named_volumes);
    Ok(SandboxPlan {
        uid: uid.to_string(),
        containers: containers.collect::<Result<_, _>>()?,
        hostname,
        volumes: spec.volumes.iter().map(volume).collect(),
        shm_bytes: spec.shm_size.map_or_else(|| DEFAULT_MEMORY_FILES.0.min(memory), |size| size.0),
        boost_millis: match u64::from(spec.boost_seconds) * 1000 {
            // Ended as soon as it is ready.
            millis if !spec.probes.is_empty() => millis,
            millis => millis.min(MAX_BOOST_MILLIS_WITHOUT_PROBE),
        },
        network: match spec.network {
            Network::Loopback => NetworkPlan::Loopback,
            Network::Isolated => NetworkPlan::Isolated,
            Network::World => NetworkPlan::World,
        },
        grants: spec.grants.iter().map(plan_grant).collect(),
        ports: Vec::new(),
    })
}

fn plan_grant(grant: &Grant) -> GrantPlan {
    GrantPlan {
        addresses: grant.addresses.first()..=grant.addresses.last(),
        protocol: ports::protocol_of(grant.protocol),
        ports: grant.first_port..=grant.last_port,
    }
}

/// The same for a sandbox that runs already, where a missing command does not matter any more.
pub(crate) fn plan_without_commands(
    uid: SandboxUid,
    name: &SandboxName,
    spec: &SandboxSpec,
    images: &[PlannedImage],
) -> SandboxPlan {
    let mut named = spec.clone();
    for container in &mut named.containers {
        container.command = Command::Replace(vec!["-".to_owned()]);
    }
    // Cannot fail: every container has a command now, and an image each. An empty plan would refuse every further process.
    plan(uid, name, &named, images, &NamedVolumes::new()).unwrap_or_else(|_| SandboxPlan {
        uid: uid.to_string(),
        hostname: String::new(),
        containers: Vec::new(),
        volumes: Vec::new(),
        shm_bytes: 0,
        boost_millis: 0,
        network: NetworkPlan::Loopback,
        grants: Vec::new(),
        ports: Vec::new(),
    })
}

fn plan_volume(volume: &Volume, named_volumes: &NamedVolumes) -> VolumePlan {
    let name = volume.name.to_string();
    let (size_bytes, source) = match &volume.source {
        VolumeSource::Memory { size } => (size.0, shim::VolumeSource::Memory),
        VolumeSource::Named(id) => {
            let uid = named_volumes.get(id).cloned().unwrap_or_default();
            (0, shim::VolumeSource::Named(uid))
        }
    };
    VolumePlan { name, size_bytes, source }
}

fn plan_container(
    container: &Container,
    planned: &PlannedImage,
    hostname: &str,
) -> Result<ContainerPlan, PlanError> {
    let PlannedImage { image, user } = planned;
    let (disk_bytes, log_bytes) = disk_shares(container.resources.disk);
    let image_signal = Signal::parse(&image.config.stop_signal);
    let mount = |it: &atoll_model::spec::VolumeMount| VolumeMountPlan {
        volume: it.name.to_string(),
        path: it.path.clone(),
        read_only: it.read_only,
    };
    let process = process(container, &image.config, user, hostname)?;
    let bytes = process_bytes(&process);
    if bytes > MAX_PROCESS_BYTES {
        return Err(PlanError::TooLarge { container: container.name.to_string(), bytes });
    }
    Ok(ContainerPlan {
        name: container.name.to_string(),
        layers: image.layers.clone(),
        read_only_root: container.read_only,
        disk_bytes,
        log_bytes,
        process,
        init: match container.init {
            Init::Guest => shim::Init::Guest,
            Init::Image => shim::Init::Image,
        },
        limits: ContainerLimits {
            cpu_millis: container.resources.cpu.0,
            memory_bytes: container.resources.memory.0,
            pids: container.resources.pids,
        },
        tmpfs: container
            .tmpfs
            .iter()
            .map(|it| plan_tmpfs(it, container.resources.memory))
            .collect(),
        volume_mounts: container.volume_mounts.iter().map(mount).collect(),
        stop_signal: container.stop_signal.or(image_signal).unwrap_or(Signal::TERM).number(),
        await_attach: container.await_attach,
        held: !container.depends_on.is_empty(),
    })
}

fn plan_tmpfs(tmpfs: &Tmpfs, memory: Bytes) -> TmpfsPlan {
    TmpfsPlan {
        path: tmpfs.path.clone(),
        size_bytes: tmpfs.size.map_or_else(|| DEFAULT_MEMORY_FILES.0.min(memory.0), |size| size.0),
        mode: tmpfs.mode,
        read_only: tmpfs.read_only,
        no_exec: tmpfs.no_exec,
    }
}

fn process(
    container: &Container,
    config: &ImageConfig,
    user: &ResolvedUser,
    hostname: &str,
) -> Result<ProcessSpec, PlanError> {
    let args = match &container.command {
        Command::Replace(words) => words.clone(),
        Command::Image => config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
    };
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::NoCommand { container: container.name.to_string() });
    }
    let working_directory = match &container.work_dir {
        Some(directory) => directory.clone(),
        None if config.working_dir.starts_with('/') => config.working_dir.clone(),
        None => "/".to_owned(),
    };
    Ok(ProcessSpec {
        args,
        env: environment(container, config, user, hostname),
        working_directory,
        make_working_directory: true,
        user: user.ids.clone(),
        capabilities: capabilities(&container.cap_add, &container.cap_drop).mask(),
        no_new_privileges: !container.new_privileges,
        stdin: container.stdin,
        terminal: container.tty.then_some(DEFAULT_TERMINAL),
        umask: 0o022,
        oom_score_adj: WORKLOAD_OOM_SCORE,
        open_files: None,
    })
}

/// The default set with what was added and without what was dropped; a name that is not known adds nothing and drops everything: an
/// admitted one always is known. Dropping ALL leaves what was added. SOURCE: Docker and containerd read the two lists like this.
pub(crate) fn capabilities(added: &[String], dropped: &[String]) -> CapabilitySet {
    let added = CapabilitySet::parse(added).unwrap_or(CapabilitySet::EMPTY);
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let named = dropped.iter().filter(|name| !is_all(name));
    let named = CapabilitySet::parse(named).unwrap_or(CapabilitySet::ALL);
    let default = if dropped.iter().any(is_all) {
        CapabilitySet::EMPTY
    } else {
        CapabilitySet::container_default()
    };
    default.with_all_of(added).without(named)
}

/// Defaults, then the image's entries, then the user's: a later entry of a name replaces an earlier one, in the earlier one's place.
fn environment(
    container: &Container,
    config: &ImageConfig,
    user: &ResolvedUser,
    hostname: &str,
) -> Vec<String> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match merged.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => value.clone_into(old),
        None => merged.push((key.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    set("HOSTNAME", hostname);
    let root = user.ids.uid == 0;
    set(
        "HOME",
        user.home.as_deref().filter(|home| home.starts_with('/')).unwrap_or(if root {
            "/root"
        } else {
            "/"
        }),
    );
    if container.tty {
        set("TERM", "xterm");
    }
    for (key, value) in config
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .filter(|(key, _)| !key.is_empty())
    {
        set(key, value);
    }
    for entry in &container.env {
        set(&entry.key, &entry.value);
    }
    merged.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

#[cfg(test)]
mod tests;
