//! Commands that measure.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `atoll bench …`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BenchSuite {
    /// Time from a create request to the first output of a command, phase by phase
    Provision(ProvisionBenchArgs),
    /// Time of one exec in a sandbox that runs
    Exec(ExecBenchArgs),
    /// Requests a second through a published port, by wrk
    Ports(PortsBenchArgs),
}

/// Another way to run a container, measured in the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    /// `runc run` of the same root file system and command
    Runc,
    /// `runsc run --network=sandbox` in a network namespace made before
    Runsc,
    /// A pod of containerd's CRI, through crictl
    Containerd,
}

impl Against {
    /// The word on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Runsc => "runsc",
            Self::Containerd => "containerd",
        }
    }
}

/// A service with the specification that sandboxd-o published figures of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// nginx with 500m
    Nginx,
    /// httpd:2.4, from 64m to 1500m
    Httpd,
}

impl Service {
    /// Its image.
    pub(crate) const fn image(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Httpd => "httpd:2.4",
        }
    }
}

/// What both suites need to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// The class to measure
    #[arg(long, value_name = "CLASS", default_value = "container")]
    pub(crate) class: String,

    /// How many times
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,

    /// The image
    #[arg(long, value_name = "REF", default_value = "busybox")]
    pub(crate) image: String,

    /// Measure this beside it, interleaved in the same run; may be given several times
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) against: Vec<Against>,

    /// Write all figures to this file as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Flags of `atoll bench provision`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  atoll bench provision --class container --count 200 --against runc --image busybox -- echo ready
  atoll bench provision --class gvisor --count 45 --service nginx")]
pub(crate) struct ProvisionBenchArgs {
    #[command(flatten)]
    pub(crate) bench: BenchArgs,

    /// How many at a time
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) concurrency: u32,

    /// Measure a web server with a probe and a port instead, beside what sandboxd-o published of it. Its image must be here
    /// (scripts/make-images.sh makes one)
    #[arg(long, value_enum)]
    pub(crate) service: Option<Service>,

    /// The CPU limit of each sandbox, such as 1500m; given several times, the sizes are measured beside one another
    #[arg(long, value_name = "CPU")]
    pub(crate) cpu: Vec<String>,

    /// The command whose first output ends the measurement; echo ready when left out
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Flags of `atoll bench exec`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  atoll bench exec --class gvisor --count 100 --against runsc --image busybox -- /bin/true")]
pub(crate) struct ExecBenchArgs {
    #[command(flatten)]
    pub(crate) bench: BenchArgs,

    /// The command to run each time; /bin/true when left out
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Flags of `atoll bench ports`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  atoll bench ports --image nginx --count 3 --address 10.0.0.1 --client 'ip netns exec client' \\
    --against-url podman=http://10.0.0.1:18080")]
pub(crate) struct PortsBenchArgs {
    #[command(flatten)]
    pub(crate) bench: BenchArgs,

    /// The address of this host that is asked; 127.0.0.1 goes through a proxy, any other does not
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) address: String,

    /// What comes before wrk on its command line, to start it elsewhere
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) client: String,

    /// Another server that has /1k and /1m, measured in the same run; may be given several times
    #[arg(long, value_name = "NAME=URL", value_parser = named_url)]
    pub(crate) against_url: Vec<NamedUrl>,

    /// Connections that are open
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) connections: u32,

    /// Length of a round
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) seconds: u32,
}

/// A server and its name.
#[derive(Debug, Clone)]
pub(crate) struct NamedUrl {
    /// Its name.
    pub(crate) name: String,
    /// Without a path.
    pub(crate) url: String,
}

fn named_url(text: &str) -> Result<NamedUrl, String> {
    let (name, url) = text.split_once('=').ok_or("write NAME=URL")?;
    Ok(NamedUrl { name: name.to_owned(), url: url.trim_end_matches('/').to_owned() })
}
