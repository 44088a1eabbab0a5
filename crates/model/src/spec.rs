//! What a user wants, checked: the canonical form that every edge produces and every decision reads.
//!
//! Each part is made by the rules of [`crate::validate`]; a value of these types breaks none of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::egress::Grant;
use crate::ids::{ContainerName, ObjectName, VolumeName};
use crate::image_reference::ImageReference;
use crate::ports::PortProtocol;
use crate::probe::{Check, Probe};
use crate::units::{Bytes, MilliCpu};

/// A way of isolating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A model of a node, for tests.
    Sim,
    /// Shared kernel.
    Container,
    /// User-space kernel.
    Gvisor,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 3] = [Class::Sim, Class::Container, Class::Gvisor];

    /// The name in specs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Class::Sim => "sim",
            Class::Container => "container",
            Class::Gvisor => "gvisor",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// A sandbox's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Where it is to run; `None`: the node's strongest.
    pub class: Option<Class>,
    /// Seconds from creation to deletion; `None`: never.
    pub ttl_seconds: Option<u64>,
    /// Seconds without an attached client until deletion; `None`: never.
    pub detach_ttl_seconds: Option<u32>,
    /// The hostname inside; `None`: a form of the name.
    pub hostname: Option<String>,
    /// For how long the CPU quota is lifted at the start, at most.
    pub boost_seconds: u32,
    /// Size of /dev/shm; `None`: the default.
    pub shm_size: Option<Bytes>,
    /// What it may reach and who may reach it.
    pub network: Network,
    /// Destinations that it may reach besides.
    pub grants: Vec<Grant>,
    /// Its ports that are reached through this host, while it is ready.
    pub ports: Vec<Port>,
    /// Labels that its node must have.
    pub node_selector: BTreeMap<String, String>,
    /// What must pass before it is ready: its own probe, and those of its containers.
    pub probes: Vec<ReadinessProbe>,
    /// What the containers share.
    pub volumes: Vec<Volume>,
    /// At least one.
    pub containers: Vec<Container>,
}

/// What a sandbox may reach, and whether anybody reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Its own loopback: nobody asked for more.
    #[default]
    Loopback,
    /// An address that published ports lead to; it reaches nothing by itself.
    Isolated,
    /// It reaches the world besides.
    World,
}

impl SandboxSpec {
    /// Its containers' start alone does not make it ready.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        !self.ports.is_empty() || !self.probes.is_empty()
    }

    /// The named volumes that it has, each once.
    #[must_use]
    pub fn named_volumes(&self) -> BTreeSet<&ObjectName> {
        let named = self.volumes.iter().filter_map(|it| match &it.source {
            VolumeSource::Named(volume) => Some(volume),
            VolumeSource::Memory { .. } => None,
        });
        named.collect()
    }
}

/// Which wish of a selector a node's labels do not fulfil: `zone=a`; `None`: they fulfil all.
#[must_use]
pub fn unfulfilled(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> Option<String> {
    let missing = selector.iter().find(|(key, value)| labels.get(*key) != Some(value));
    missing.map(|(key, value)| format!("{key}={value}"))
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Of which kind.
    pub protocol: PortProtocol,
    /// In the sandbox; not 0.
    pub container_port: u16,
    /// Of this host; `None`: any of the node's range.
    pub published_port: Option<u16>,
}

/// A probe that decides whether a sandbox is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadinessProbe {
    /// Whose; `None`: the sandbox's own.
    pub container: Option<ContainerName>,
    /// What is tried, and how often.
    pub probe: Probe,
}

impl ReadinessProbe {
    /// It is tried over the network.
    #[must_use]
    pub fn needs_network(&self) -> bool {
        !matches!(self.probe.check, Check::Exec { .. })
    }
}

/// What the containers share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Unique in the sandbox.
    pub name: VolumeName,
    /// Where its files are.
    pub source: VolumeSource,
}

/// Where a volume's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// In memory, gone with the sandbox.
    Memory {
        /// Its size.
        size: Bytes,
    },
    /// In a named volume, which outlives the sandbox.
    Named(ObjectName),
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Unique in the sandbox.
    pub name: ContainerName,
    /// Its image.
    pub image: ImageReference,
    /// When the registry is asked.
    pub pull: PullPolicy,
    /// What is run.
    pub command: Command,
    /// Added to the image's environment, in order; a later entry of a name replaces an earlier one.
    pub env: Vec<EnvEntry>,
    /// Replaces the image's working directory.
    pub work_dir: Option<String>,
    /// `user[:group]`, replaces the image's.
    pub user: Option<String>,
    /// Capabilities added to the default set, plain names; `ALL` adds all.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set and from those added, as written; `ALL` takes the default set.
    pub cap_drop: Vec<String>,
    /// What is run may gain privileges, by set-user-id files for one.
    pub new_privileges: bool,
    /// Read-only root.
    pub read_only: bool,
    /// Memory file systems of its own.
    pub tmpfs: Vec<Tmpfs>,
    /// Where volumes stand.
    pub volume_mounts: Vec<VolumeMount>,
    /// What it may use.
    pub resources: Resources,
    /// Who is the first process.
    pub init: Init,
    /// Standard input stays open for `attach`.
    pub stdin: bool,
    /// The main process has a terminal.
    pub tty: bool,
    /// Output is held until the first `attach`.
    pub await_attach: bool,
    /// Replaces the image's stop signal.
    pub stop_signal: Option<Signal>,
    /// Its command starts only when these are ready.
    pub depends_on: Vec<ContainerName>,
}

/// What a container runs, in terms of its image's entrypoint and cmd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The image's own.
    Image,
    /// These words and nothing of the image's.
    Replace(Vec<String>),
}

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// When the image is not here.
    #[default]
    Missing,
    /// Each time.
    Always,
    /// Never.
    Never,
}

/// Who is the first process of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Init {
    /// atoll's guest.
    #[default]
    Guest,
    /// The image's command.
    Image,
}

/// A `KEY=VALUE` entry.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvEntry {
    /// Not empty, without `=` and NUL.
    pub key: String,
    /// Without NUL. May be secret.
    pub value: String,
}

/// Values may be secret: they are not shown.
impl std::fmt::Debug for EnvEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

/// A memory file system of one container. nosuid and nodev always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute, clean.
    pub path: String,
    /// Its size; `None`: the default, within the memory limit.
    pub size: Option<Bytes>,
    /// Mode of its root.
    pub mode: u32,
    /// No writing.
    pub read_only: bool,
    /// No executing.
    pub no_exec: bool,
}

/// Where a volume stands in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// A declared volume.
    pub name: VolumeName,
    /// Absolute, clean.
    pub path: String,
    /// No writing through this mount.
    pub read_only: bool,
}

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// CPU time.
    pub cpu: MilliCpu,
    /// Memory, tmpfs included.
    pub memory: Bytes,
    /// Disk for root, /tmp and logs.
    pub disk: Bytes,
    /// Processes and threads.
    pub pids: u64,
}

/// A signal's number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// Signal names by number, from 1. SOURCE: signal(7), numbers of x86, ARM and RISC-V.
const SIGNAL_NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl Signal {
    /// SIGTERM: what asks a process to end unless its image says otherwise.
    pub const TERM: Signal = Signal(15);

    /// A number from 1 to 64.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Self::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        // SOURCE: glibc and musl leave 32 and 33 (34 in musl's case) to themselves: SIGRTMIN is 34.
        if let Some(rest) = name.strip_prefix("RTMIN") {
            let offset =
                if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
            return 34_i32.checked_add(offset).and_then(Self::from_number).filter(|it| it.0 >= 34);
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            let offset =
                if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse::<i32>().ok()? };
            return 64_i32.checked_sub(offset).and_then(Self::from_number).filter(|it| it.0 >= 34);
        }
        let index = SIGNAL_NAMES.iter().position(|known| *known == name)?;
        i32::try_from(index + 1).ok().map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_wants_every_label_with_its_very_value() {
        let of = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let labels: BTreeMap<_, _> = of(&[("zone", "a"), ("gpu", "")]);
        for (selector, missing) in [
            (of(&[]), None),
            (of(&[("zone", "a")]), None),
            (of(&[("gpu", ""), ("zone", "a")]), None),
            (of(&[("zone", "b")]), Some("zone=b")),
            (of(&[("zone", "a"), ("disk", "")]), Some("disk=")),
        ] {
            assert_eq!(unfulfilled(&selector, &labels).as_deref(), missing, "{selector:?}");
        }
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("Sigkill", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(Signal::parse(text).map(Signal::number), Some(number), "{text}");
        }
        for bad in [
            "",
            "0",
            "65",
            "-9",
            "SIG",
            "TERMINATE",
            "RTMIN+31",
            "RTMIN+-1",
            "RTMIN+2147483647",
            "RTMAX-31",
        ] {
            assert_eq!(Signal::parse(bad), None, "{bad}");
        }
    }
}
