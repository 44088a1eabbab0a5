//! The protocol between server and shim, and what a server hands to a spawner to begin a sandbox.
//!
//! A sandbox has one directory, `<data>/sandboxes/<uid>` (mode 0700), in which everything about it lies:
//!
//! | file | written by | what |
//! |---|---|---|
//! | `launch.json` | server | [`Launch`]: all that was decided; a shim that adopts reads it again |
//! | `shim.sock` | shim | where the server connects; one connection a conversation |
//! | `shim.json` | shim | [`crate::record::ShimRecord`]: whose processes these are |
//! | `end.json` | shim | [`crate::record::EndRecord`]: how it ended, synced before anything is reaped |
//! | `container.<name>/guest.in`, `guest.out`, `guest.err` | shim | the guest's channel, two FIFOs, and one for its diagnostics |
//! | `container.<name>/stdout`, `stderr` | shim | with `init: image`: the command's output, two FIFOs |
//! | `container.<name>/disk.ext4` | server | the writable layer's disk: an image |
//! | `container.<name>/disk` | server | the same, of the other kinds of [`DiskBackend`] |
//! | `gvisor/volumes` | shim | engine gvisor: where named volumes are mounted, for this shim alone |
//! | `gvisor/container.<name>/disk` | shim | engine gvisor: where that disk is mounted, for this shim alone |
//! | `logs/<container>.log[.1]` | shim | [`crate::log`] |
//!
//! A server sends [`SpawnRequest`] as one packet to a spawner (SOCK_SEQPACKET, the spawner's descriptor 3) with descriptors in the order
//! of [`SpawnRequest::descriptors`]. The spawner forks the shim, which leaves its session. The descriptor `conversation` is the shim's first
//! connection and subscribed from the start: it hears `Spawned` and all that follows. From a shim that adopts it hears `Spawned`, then, as
//! soon as every guest has answered or ended (within 2 s), a [`ShimReply::State`], then events. A directory that another shim holds is
//! answered by [`ShimReply::Refused`] (connect to that one), and so is one that cannot be taken over (nothing was ended); a launch that cannot be read by [`ShimEvent::LaunchFailed`] alone. A later
//! server connects to `shim.sock` and sends [`ShimRequest::Subscribe`].
//!
//! On a connection the client's first frame is [`REQUEST_KIND`] with a JSON [`ShimRequest`]; the shim answers with [`REPLY_KIND`]
//! ([`ShimReply`]). After `Exec`, `Attach`, `Upload` and `Download` frames of [`crate::guest`] pass through in both directions, with
//! stream number 0 and the same windows. After `Subscribe`, frames of [`EVENT_KIND`] ([`ShimEvent`]) follow. When a client closes, only its conversation ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::guest::{ProcessInfo, ProcessSpec, SignalRequest, TransferRequest};
use crate::record::ContainerExit;

/// The version of this protocol and of [`Launch`]: older is read, newer refused.
pub const SHIM_PROTOCOL_VERSION: u32 = 1;
/// Kind of a frame that holds a [`ShimRequest`].
pub const REQUEST_KIND: u8 = 129;
/// Kind of a frame that holds a [`ShimReply`].
pub const REPLY_KIND: u8 = 130;
/// Kind of a frame that holds a [`ShimEvent`].
pub const EVENT_KIND: u8 = 131;

/// Which way of isolating the shim drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Namespaces and cgroups of the host's kernel.
    Container,
    /// runsc.
    Gvisor,
}

/// The directory of a container within its sandbox's. No name, however chosen, leads to a file or directory of another purpose.
#[must_use]
pub fn container_directory(name: &str) -> String {
    format!("container.{name}")
}

/// Where engine gvisor has a container's disk, in the mount namespace of the shim that began it: below the sandbox's directory.
#[must_use]
pub fn gvisor_disk(container: &str) -> PathBuf {
    ["gvisor", &container_directory(container), "disk"].iter().collect()
}

/// `launch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// [`SHIM_PROTOCOL_VERSION`].
    pub version: u32,
    /// What is to run.
    pub plan: SandboxPlan,
    /// Where on this host.
    pub placement: Placement,
}

/// What is to run: decided from the user's spec and the images, without anything of this host but paths of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// 16 hexadecimal digits; names everything on the host.
    pub uid: String,
    /// Hostname inside.
    pub hostname: String,
    /// At least one; they share network, IPC and hostname.
    pub containers: Vec<ContainerPlan>,
    /// What containers share.
    pub volumes: Vec<VolumePlan>,
    /// Size of /dev/shm, which the containers share.
    pub shm_bytes: u64,
    /// For how long from the start the CPU quota is lifted, at most; 0: not at all.
    pub boost_millis: u64,
    /// What it may reach and who may reach it.
    #[serde(default)]
    pub network: NetworkPlan,
    /// Destinations that it may reach besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<GrantPlan>,
    /// Ports of the host that lead into it, while it is ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortPlan>,
}

/// Ports of addresses that a sandbox may reach, whatever else it may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantPlan {
    /// First and last address, of one family.
    pub addresses: RangeInclusive<IpAddr>,
    /// Of which kind.
    pub protocol: PortProtocol,
    /// Ports, both ends included.
    pub ports: RangeInclusive<u16>,
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPlan {
    /// Of which kind.
    pub protocol: PortProtocol,
    /// On the host.
    pub host_port: u16,
    /// In the sandbox.
    pub container_port: u16,
}

/// Of which kind a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What a sandbox may reach, and whether anybody reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPlan {
    /// Its own loopback, and nothing else: it has no address.
    #[default]
    Loopback,
    /// It has an address that published ports and probes lead to, and reaches nothing by itself.
    Isolated,
    /// It reaches the world besides, but nothing private and nobody near.
    World,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// A checked container name.
    pub name: String,
    /// Unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// The root is read-only; /tmp is then a directory of the disk, writable all the same.
    pub read_only_root: bool,
    /// Size of the writable disk that root and /tmp share.
    pub disk_bytes: u64,
    /// Most bytes of log kept on disk (both files together).
    pub log_bytes: u64,
    /// The main process.
    pub process: ProcessSpec,
    /// Who is the first process.
    pub init: Init,
    /// Its share. Enforced for each container in `container`, as a sum in `gvisor`.
    pub limits: ContainerLimits,
    /// Memory file systems of its own.
    pub tmpfs: Vec<TmpfsPlan>,
    /// Volumes to mount.
    pub volume_mounts: Vec<VolumeMountPlan>,
    /// Signal that asks the main process to end.
    pub stop_signal: i32,
    /// Keep output from the first byte until somebody attaches, and send no faster than that client takes it.
    pub await_attach: bool,
    /// Its command is not started before [`ShimRequest::StartContainer`]. For [`Init::Guest`] alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// Who has pid 1 in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// atoll's guest, which starts the command as its child.
    Guest,
    /// The image's command itself (systemd, s6).
    Image,
}

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLimits {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory, tmpfs included; no swap on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What containers of the sandbox share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumePlan {
    /// A checked volume name.
    pub name: String,
    /// Its size; of a named volume 0, which has a limit of its own.
    pub size_bytes: u64,
    /// Where its files are; before there was a choice they were in memory.
    #[serde(default)]
    pub source: VolumeSource,
}

/// Where the files of a volume are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// In memory, gone with the sandbox.
    #[default]
    Memory,
    /// In the named volume with this uid, which outlives the sandbox: it comes as a descriptor.
    Named(String),
}

/// Where a volume stands in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMountPlan {
    /// A name of [`SandboxPlan::volumes`].
    pub volume: String,
    /// Absolute, clean path inside.
    pub path: String,
    /// No writing through this mount.
    pub read_only: bool,
}

/// A memory file system of one container. nosuid and nodev always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsPlan {
    /// Absolute, clean path inside.
    pub path: String,
    /// Its size: never unlimited.
    pub size_bytes: u64,
    /// Mode of its root, 0o1777 by default.
    pub mode: u32,
    /// No writing.
    pub read_only: bool,
    /// No executing.
    pub no_exec: bool,
}

/// Where on this host: decided by the node's runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Who isolates.
    pub engine: Engine,
    /// The sandbox's directory.
    pub directory: PathBuf,
    /// Name of the instance's control group (`atoll_sys::cgroup::CgroupRoot::open`); the sandbox's is named by its uid.
    pub cgroup_instance: String,
    /// First of the 65,536 host ids that are the sandbox's; `None`: without a user namespace (the kernel cannot id-map layers).
    pub first_host_id: Option<u32>,
    /// The static guest binary.
    pub guest_binary: PathBuf,
    /// For engine gvisor.
    pub gvisor: Option<GvisorPlacement>,
    /// What its disks are; before there was a choice they were images.
    #[serde(default)]
    pub disk_backend: DiskBackend,
    /// Its slot; `None`: loopback only.
    #[serde(default)]
    pub network: Option<NetworkPlacement>,
}

/// What bounds the disks of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBackend {
    /// An ext4 of its own in a file, on a loop device.
    #[default]
    Image,
    /// A subvolume of the data directory's btrfs with a limit of its quota group.
    Btrfs,
    /// A directory of the data directory's ext4 or xfs with a project quota.
    ProjectQuota,
}

impl DiskBackend {
    /// The name in options and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Btrfs => "btrfs",
            Self::ProjectQuota => "project-quota",
        }
    }
}

/// Where a sandbox is in the instance's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlacement {
    /// The number of its slot.
    pub slot: u32,
    /// Its own address.
    pub ipv4: Ipv4Addr,
    /// Its own address.
    pub ipv6: Ipv6Addr,
    /// Gateway and resolver.
    pub gateway_ipv4: Ipv4Addr,
    /// Gateway and resolver.
    pub gateway_ipv6: Ipv6Addr,
}

/// What the gvisor engine needs to know of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GvisorPlacement {
    /// The runsc program.
    pub runsc: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Its `--platform`.
    pub platform: String,
    /// This runsc takes a /proc/sys/net for the host's network namespace: start it where there is none.
    pub hide_proc_sys_net: bool,
}

/// What comes with a [`SpawnRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DescriptorRole {
    /// A stream socket: the shim's first connection.
    Conversation,
    /// The prepared network namespace.
    NetworkNamespace,
    /// A sysfs of that network namespace, mounted nowhere, read-only.
    Sysfs,
    /// The disk of the container of that name, a file system or directory mounted nowhere.
    Disk(String),
    /// The named volume that the plan's volume of that name stands for, mounted nowhere.
    Volume(String),
}

/// The packet to a spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// [`SHIM_PROTOCOL_VERSION`].
    pub version: u32,
    /// The sandbox's directory, with `launch.json` in it.
    pub directory: PathBuf,
    /// Start nothing: take over what runs and has lost its shim.
    pub adopt: bool,
    /// What the descriptors that came along are, in their order.
    pub descriptors: Vec<DescriptorRole>,
}

/// Most descriptors with one packet (the kernel takes 253).
pub const MAX_SPAWN_DESCRIPTORS: usize = 64;
/// Largest packet to a spawner.
pub const MAX_SPAWN_PACKET_BYTES: usize = 64 * 1024;

/// The first frame on a connection to a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum ShimRequest {
    /// Answered by [`ShimReply::State`], then events.
    Subscribe,
    /// Run a process in a container; answered by `Ok`, then guest frames.
    Exec {
        /// Which.
        container: String,
        /// What.
        process: ProcessSpec,
    },
    /// Input and output of the main process; answered by `Ok`, then guest frames.
    Attach {
        /// Which.
        container: String,
        /// From the first byte of output, where the plan says `await_attach` and nobody else has; else from now on.
        from_start: bool,
    },
    /// A tar into the container; answered by `Ok`, then guest frames.
    Upload {
        /// Which.
        container: String,
        /// Where.
        transfer: TransferRequest,
    },
    /// A tar out of the container; answered by `Ok`, then guest frames.
    Download {
        /// Which.
        container: String,
        /// What.
        transfer: TransferRequest,
    },
    /// Answered by [`ShimReply::Processes`].
    Processes {
        /// Which.
        container: String,
    },
    /// A signal for the main process, or for everyone in the container.
    Signal {
        /// Which.
        container: String,
        /// What.
        signal: SignalRequest,
    },
    /// Each container's stop signal, then SIGKILL to what is left after `grace_millis`. Answered at once; the end is an event.
    Stop {
        /// Milliseconds; 0 kills at once.
        grace_millis: u64,
    },
    /// The CPU quota holds from now on.
    EndBoost,
    /// Start the command of a container that is held. `Ok` once it is remembered, so that it happens whoever dies then; `Ok` again, and
    /// nothing more, for one that was started. Only what a plan holds is asked for: a shim that does not know this holds nothing.
    StartContainer {
        /// Which.
        container: String,
    },
}

/// A shim's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum ShimReply {
    /// Done, or begun.
    Ok,
    /// Where things stand.
    State(ShimState),
    /// What runs inside.
    Processes {
        /// In order of pid.
        processes: Vec<ProcessInfo>,
    },
    /// Not done.
    Refused {
        /// Why, and what to do.
        message: String,
    },
}

/// Where a sandbox stands, as its shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShimState {
    /// Each container's.
    pub containers: Vec<ContainerState>,
    /// This shim took over from one that died.
    pub adopted: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// When its command was exec'ed, microseconds since 1970.
    pub started_at_unix_micros: Option<i64>,
    /// Its first process, as the host numbers it.
    pub host_pid: Option<i32>,
    /// How it ended.
    pub exit: Option<ContainerExit>,
    /// Bytes of output that rotation dropped or a gap lost.
    pub log_dropped_bytes: u64,
}

/// What a shim tells a subscriber, in the order in which it happens. Times are CLOCK_MONOTONIC, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ShimEvent {
    /// The shim runs and has read its launch.
    Spawned {
        /// When.
        at_monotonic_micros: u64,
    },
    /// All namespaces, mounts and limits are in place and a container's first process runs.
    Isolated {
        /// Which.
        container: String,
        /// When.
        at_monotonic_micros: u64,
    },
    /// A container's command has been exec'ed.
    Started {
        /// Which.
        container: String,
        /// Its first process, as the host numbers it.
        host_pid: i32,
        /// When.
        at_monotonic_micros: u64,
        /// The same moment by the wall clock, microseconds since 1970.
        at_unix_micros: i64,
    },
    /// A container has ended (or never began: its exit says why). Recorded on disk already.
    Exited {
        /// How.
        exit: ContainerExit,
    },
    /// Output was dropped by rotation or lost with a shim: the sum so far.
    LogDropped {
        /// Which.
        container: String,
        /// Sum in bytes.
        dropped_bytes: u64,
    },
    /// Every container has ended, everything made on the host is gone but the directory, and `end.json` is on disk. The last event.
    Ended,
    /// The sandbox could not be begun; everything made is gone again, `end.json` is on disk. The last event.
    LaunchFailed {
        /// What could not be done, and why.
        message: String,
    },
}
