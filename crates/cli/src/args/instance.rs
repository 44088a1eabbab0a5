//! Commands about the instance and the machine: up, down, doctor, version, completion.

use std::num::NonZero;
use std::time::Duration;

use atoll_model::egress::Grant;
use atoll_model::ports::{DEFAULT_PORT_RANGE, PortRange};
use atoll_runtime::disk::DiskChoice;
use atoll_server::ListenAddress;
use clap::{Args, ValueEnum};

use super::values::{PlainFormat, capability, duration, label};

/// Flags of `atoll up`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Sandboxes go on when this process ends, and are found again by the next `atoll up` with the same data \
directory. `atoll down` ends them.

Examples:
  atoll up --detach
  atoll up --data-dir /tmp/atoll --listen 127.0.0.1:0 --detach    an instance of its own, beside others

ATOLL_LOG sets what is logged (info; debug; atoll_server=debug,info). With OTEL_EXPORTER_OTLP_ENDPOINT set, the timelines of sandboxes go \
there as traces."
)]
pub(crate) struct UpArgs {
    /// Where the API listens, on this machine only: ADDR:PORT (port 0 takes any free port) or unix:/PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8082")]
    pub(crate) listen: ListenAddress,

    /// Return as soon as it serves, and go on in the background
    #[arg(long)]
    pub(crate) detach: bool,

    /// Offer class sim too: it isolates nothing and runs nothing, but models sandboxes for tests
    #[arg(long)]
    pub(crate) enable_sim: bool,

    /// What bounds the disks of new sandboxes: auto, image, btrfs or project-quota. auto takes the fastest whose full disks give ENOSPC
    #[arg(long, value_name = "BACKEND", default_value_t = DiskChoice::Auto)]
    pub(crate) disk_backend: DiskChoice,

    /// A network for sandboxes that ask for it (egress, published ports, probes). auto: where this machine can have one; on: or no
    /// server; off: loopback only
    #[arg(long, value_enum, value_name = "MODE", env = "ATOLL_NETWORK", default_value_t)]
    #[arg(num_args = 0..=1, default_missing_value = "on")]
    pub(crate) network: NetworkMode,

    /// A label of this machine, for sandboxes with a node_selector; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) node_label: Vec<(String, String)>,

    /// Ports of this host that sandboxes may publish
    #[arg(long, value_name = "FIRST-LAST", default_value_t = DEFAULT_PORT_RANGE)]
    pub(crate) port_range: PortRange,

    /// Private addresses that sandboxes may reach when they ask for it (egress_allow): ADDRESS[/LENGTH]:PORT[-PORT][/udp], as in
    /// 10.1.0.0/16:5432; may be given again
    #[arg(long, value_name = "DESTINATION", env = "ATOLL_ALLOW_EGRESS", value_delimiter = ',')]
    pub(crate) allow_egress: Vec<Grant>,

    /// A capability that manifests may add (cap_add) beyond the default set, or ALL; may be given again
    #[arg(long, value_name = "NAME", env = "ATOLL_ALLOW_CAPABILITY", value_delimiter = ',')]
    #[arg(value_parser = capability)]
    pub(crate) allow_capability: Vec<String>,

    /// Let manifests turn no-new-privileges off (security_opt), in class container
    #[arg(long, env = "ATOLL_ALLOW_NEW_PRIVILEGES")]
    pub(crate) allow_new_privileges: bool,

    /// Sandboxes that may be created in a second; more are answered 429 with Retry-After. No limit when left out
    #[arg(long, value_name = "N", env = "ATOLL_CREATE_RATE")]
    pub(crate) create_rate: Option<NonZero<u32>>,

    /// Sandboxes that may be created at once after a rest; twice the rate when left out
    #[arg(long, value_name = "N", env = "ATOLL_CREATE_BURST", requires = "create_rate")]
    pub(crate) create_burst: Option<NonZero<u32>>,

    /// The background half of --detach
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

/// Whether an instance has a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum NetworkMode {
    /// Where the machine can have one.
    #[default]
    Auto,
    /// Or the server does not start.
    On,
    /// Sandboxes have loopback only.
    Off,
}

impl NetworkMode {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Flags of `atoll down`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll down
  atoll down --data-dir /tmp/atoll")]
pub(crate) struct DownArgs {
    /// Give up when it has not ended by then
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub(crate) timeout: Duration,
}

/// Flags of `atoll doctor`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Works without a server. Exit code 1 when something is missing without which no sandbox runs.

Examples:
  atoll doctor
  atoll doctor --classes    the isolating classes that can be had here, for scripts"
)]
pub(crate) struct DoctorArgs {
    /// Only the names of the isolating classes that can be had here, one a line, the weakest first
    #[arg(long, conflicts_with = "output")]
    pub(crate) classes: bool,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlainFormat::Text)]
    pub(crate) output: PlainFormat,
}

/// Flags of `atoll version`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VersionArgs {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlainFormat::Text)]
    pub(crate) output: PlainFormat,
}

/// Flags of `atoll completion`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll completion bash > /etc/bash_completion.d/atoll
  atoll completion zsh > /usr/local/share/zsh/site-functions/_atoll
  atoll completion fish > /etc/fish/completions/atoll.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}
