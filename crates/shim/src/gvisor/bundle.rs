//! The OCI configuration of one container: a pure function from the plan to `config.json`.
//!
//! Owns which mounts, capabilities and annotations runsc is told. Never touches the host. Only the few fields that runsc is told are
//! modelled: the whole of the OCI types would be the larger part of this small program.
//! SOURCE: OCI runtime specification 1.0.2, config.md and config-linux.md; gVisor's g3doc/user_guide/containerd (annotations).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use atoll_sys::capabilities::CapabilitySet;
use atoll_wire::guest::ProcessSpec;
use atoll_wire::shim::{ContainerPlan, Init, SandboxPlan};
use serde::Serialize;

use super::limits;
use super::volumes::{VolumePlaces, is_on_host};

/// Where the guest stands in a container: on gVisor's own /dev, so that the image's files are not touched.
pub(super) const GUEST_PATH: &str = "/dev/.atoll-guest";

/// What the guest itself needs to start processes as any user, copy files of any owner, name the host, kill and mount over.
const GUEST_CAPABILITIES: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_RESOURCE",
];

/// What a container is to runsc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// The first container: its end is the Sentry's end.
    Sandbox,
    /// One more in the Sentry of the container with that id.
    Member {
        /// The first container's id.
        sandbox_id: &'a str,
    },
}

/// Paths that a container's configuration names.
#[derive(Debug, Clone)]
pub(super) struct Paths<'a> {
    /// Its root file system.
    pub(super) root: &'a Path,
    /// A directory on its disk to stand at /tmp; `None` when the image's own /tmp stays.
    pub(super) tmp: Option<&'a Path>,
    /// The guest's program.
    pub(super) guest: &'a Path,
    /// Where named volumes are.
    pub(super) volumes: &'a VolumePlaces,
}

/// `config.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    oci_version: &'static str,
    process: Process,
    root: Root,
    hostname: String,
    mounts: Vec<Mount>,
    annotations: BTreeMap<String, String>,
    linux: Linux,
}

/// A process, of a container or for `runsc exec`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    terminal: bool,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: Capabilities,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
    umask: u32,
}

#[derive(Debug, Serialize)]
struct Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    permitted: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: &'static str,
    soft: u64,
    hard: u64,
}

#[derive(Debug, Serialize)]
struct Root {
    path: PathBuf,
    readonly: bool,
}

#[derive(Debug, Serialize)]
struct Mount {
    destination: String,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    options: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
}

/// The configuration of a container of the plan.
pub(super) fn container(
    plan: &SandboxPlan,
    container: &ContainerPlan,
    role: Role<'_>,
    paths: &Paths<'_>,
) -> Config {
    let process = match container.init {
        Init::Guest => {
            let alone = plan.containers.len() == 1;
            guest_process(container.process.capabilities, alone)
        }
        Init::Image => image_process(plan, &container.process),
    };
    let mut config = bare(plan, process, role, paths, container.read_only_root);
    if let Some(tmp) = paths.tmp {
        config.mounts.push(bind("/tmp", tmp, &["rw", "nosuid", "nodev"]));
    }
    config.mounts.push(tmpfs("/dev/shm", SHM_SOURCE, plan.shm_bytes, 0o1777, &["noexec"]));
    for tmpfs_plan in &container.tmpfs {
        let mut flags = vec![if tmpfs_plan.read_only { "ro" } else { "rw" }];
        if tmpfs_plan.no_exec {
            flags.push("noexec");
        }
        config.mounts.push(tmpfs(
            &tmpfs_plan.path,
            "tmpfs",
            tmpfs_plan.size_bytes,
            tmpfs_plan.mode,
            &flags,
        ));
    }
    for mount in &container.volume_mounts {
        let number = plan.volumes.iter().position(|volume| volume.name == mount.volume);
        let volume = number.and_then(|number| plan.volumes.get(number));
        let access = if mount.read_only { "ro" } else { "rw" };
        if let (Some(number), Some(volume)) = (number, volume)
            && is_on_host(volume)
        {
            let source = paths.volumes.of(number, mount.read_only);
            config.mounts.push(bind(&mount.path, &source, &[access, "nosuid", "nodev"]));
            continue;
        }
        let size_bytes = volume.map_or(0, |volume| volume.size_bytes);
        let source = volume_source(&mount.volume);
        config.mounts.push(tmpfs(&mount.path, &source, size_bytes, 0o1777, &[access]));
    }
    config
}

/// The configuration of a container that only keeps the Sentry while others come and go: the guest, told nothing.
pub(super) fn keeper(plan: &SandboxPlan, paths: &Paths<'_>) -> Config {
    bare(plan, guest_process(0, false), Role::Sandbox, paths, true)
}

fn bare(
    plan: &SandboxPlan,
    process: Process,
    role: Role<'_>,
    paths: &Paths<'_>,
    read_only_root: bool,
) -> Config {
    Config {
        oci_version: "1.0.2",
        process,
        root: Root { path: paths.root.to_owned(), readonly: read_only_root },
        hostname: plan.hostname.clone(),
        mounts: vec![
            Mount {
                destination: "/proc".into(),
                kind: "proc",
                source: "proc".into(),
                options: options(&["nosuid", "nodev", "noexec"]),
            },
            bind(GUEST_PATH, paths.guest, &["ro", "nosuid", "nodev"]),
        ],
        annotations: annotations(plan, role),
        linux: Linux { namespaces: namespaces() },
    }
}

/// runsc runs in the sandbox's network namespace already; without a path it would make a new one.
fn namespaces() -> Vec<Namespace> {
    let of = |kind| Namespace { kind, path: None };
    let network = Namespace { kind: "network", path: Some("/proc/self/ns/net") };
    vec![of("pid"), of("mount"), of("ipc"), of("uts"), network]
}

const SHM_SOURCE: &str = "/atoll/shm";

fn volume_source(name: &str) -> String {
    format!("/atoll/volume/{name}")
}

/// Says who shares a Sentry, and which tmpfs mounts are one and the same in all its containers. A hint is found by a mount's source.
fn annotations(plan: &SandboxPlan, role: Role<'_>) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let mut say = |key: &str, value: &str| annotations.insert(key.to_owned(), value.to_owned());
    match role {
        Role::Sandbox => {
            say("io.kubernetes.cri.container-type", "sandbox");
        }
        Role::Member { sandbox_id } => {
            say("io.kubernetes.cri.container-type", "container");
            say("io.kubernetes.cri.sandbox-id", sandbox_id);
        }
    }
    let mut share = |hint: &str, source: &str, size_bytes: u64, mode: u32| {
        let key = |field: &str| format!("dev.gvisor.spec.mount.{hint}.{field}");
        say(&key("source"), source);
        say(&key("type"), "tmpfs");
        say(&key("share"), "pod");
        say(&key("options"), &format!("rw,size={size_bytes},mode={mode:o}"));
    };
    share("shm", SHM_SOURCE, plan.shm_bytes, 0o1777);
    let in_sentry = plan.volumes.iter().enumerate().filter(|(_, volume)| !is_on_host(volume));
    for (index, volume) in in_sentry {
        let source = volume_source(&volume.name);
        share(&format!("volume{index}"), &source, volume.size_bytes, 0o1777);
    }
    annotations
}

fn bind(destination: &str, source: &Path, flags: &[&str]) -> Mount {
    let mut options = options(flags);
    options.push("bind".into());
    Mount {
        destination: destination.into(),
        kind: "bind",
        source: source.to_string_lossy().into_owned(),
        options,
    }
}

fn tmpfs(path: &str, source: &str, size_bytes: u64, mode: u32, flags: &[&str]) -> Mount {
    let mut options = options(flags);
    options.extend(["nosuid".into(), "nodev".into()]);
    options.extend([format!("size={size_bytes}"), format!("mode={mode:o}")]);
    Mount { destination: path.into(), kind: "tmpfs", source: source.into(), options }
}

fn options(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

/// The guest, told whether it has the Sentry for its container alone.
fn guest_process(workload_capabilities: u64, alone: bool) -> Process {
    let mut set = CapabilitySet::from_mask(workload_capabilities);
    for name in GUEST_CAPABILITIES {
        if let Some(number) = atoll_sys::capabilities::number(name) {
            set = set.with(number);
        }
    }
    Process {
        terminal: false,
        user: User { uid: 0, gid: 0, additional_gids: Vec::new(), umask: 0o022 },
        args: vec![GUEST_PATH.into(), if alone { "alone" } else { "shared" }.into()],
        env: Vec::new(),
        cwd: "/".into(),
        capabilities: Capabilities::all_of(set),
        rlimits: Vec::new(),
        no_new_privileges: false,
    }
}

/// A process as the plan describes it, without the guest's help.
pub(super) fn image_process(plan: &SandboxPlan, spec: &ProcessSpec) -> Process {
    let set = CapabilitySet::from_mask(spec.capabilities);
    let mut capabilities = Capabilities::all_of(set);
    if spec.user.uid != 0 {
        // As the kernel does at exec for who is not root.
        capabilities.effective.clear();
        capabilities.permitted.clear();
    }
    let rlimit = |kind, limit| Rlimit { kind, soft: limit, hard: limit };
    let users = limits::of_users(plan);
    // Nobody starts it as root: it counts as its user's own.
    let processes = if spec.user.uid == 0 { users.root } else { users.other.saturating_add(1) };
    let mut rlimits = vec![rlimit("RLIMIT_NPROC", processes)];
    rlimits.extend(spec.open_files.map(|files| rlimit("RLIMIT_NOFILE", files)));
    Process {
        terminal: false,
        user: User {
            uid: spec.user.uid,
            gid: spec.user.gid,
            additional_gids: spec.user.supplementary_gids.clone(),
            umask: spec.umask,
        },
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.working_directory.clone(),
        capabilities,
        rlimits,
        no_new_privileges: spec.no_new_privileges,
    }
}

impl Capabilities {
    fn all_of(set: CapabilitySet) -> Self {
        let names: Vec<String> = set.names();
        Self { bounding: names.clone(), effective: names.clone(), permitted: names }
    }
}
