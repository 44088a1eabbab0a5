//! Commands about objects: create, get, describe, wait, delete, events, logs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::{
    ListFormat, ObjectReference, ObjectSelector, PlainFormat, WaitCondition, duration, label, name,
};

/// Flags of `atoll create`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A file may hold several YAML documents, separated by '---', or JSON. A manifest:

  apiVersion: sandboxd.o/v1
  kind: Sandbox
  id: work
  spec:
    containers:
      - name: main
        image: busybox
        args: [sleep, '3600']
        resource: {cpu: 500m, memory: 256Mi}

Examples:
  atoll create -f work.yaml --wait
  generate-manifests | atoll create -f -
  atoll create volume data --size 1Gi"
)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CreateArgs {
    #[command(subcommand)]
    pub(crate) object: Option<CreateObject>,

    /// Manifest files; - is standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) filename: Vec<PathBuf>,

    /// Wait until all of them are ready
    #[arg(long)]
    pub(crate) wait: bool,

    /// How to print what was created
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlainFormat::Text)]
    pub(crate) output: PlainFormat,
}

/// Objects that need no manifest.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CreateObject {
    /// Create a volume: files that outlive sandboxes, with a limit
    Volume(CreateVolumeArgs),
}

/// Flags of `atoll create volume`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  atoll create volume data --size 1Gi && atoll run -v data:/data busybox -- touch /data/here")]
pub(crate) struct CreateVolumeArgs {
    /// Its name
    #[arg(value_name = "NAME", value_parser = name)]
    pub(crate) name: String,

    /// Most that its files may take, such as 1Gi
    #[arg(long, value_name = "QUANTITY", allow_negative_numbers = true)]
    pub(crate) size: String,

    /// A label
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
}

/// Flags of `atoll get`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll get sandboxes
  atoll get sandbox/work -o yaml
  atoll get sandboxes -l app=web,tier!=test
  atoll get sandboxes --watch -o json")]
pub(crate) struct GetArgs {
    /// sandbox, volume, image, node or external; or one object as KIND/NAME
    #[arg(value_name = "KIND[/NAME]")]
    pub(crate) selector: ObjectSelector,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub(crate) output: ListFormat,

    /// Only those with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, several separated by commas
    #[arg(short = 'l', long = "selector", value_name = "LABELS")]
    pub(crate) labels: Option<String>,

    /// Go on and show changes as they happen
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Flags of `atoll describe`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll describe sandbox/work    its state, limits, events, and where its start-up time went
  atoll describe node")]
pub(crate) struct DescribeArgs {
    /// The objects
    #[arg(required = true, value_name = "KIND/NAME")]
    pub(crate) objects: Vec<ObjectReference>,
}

/// Flags of `atoll wait`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Fails with exit code 1 when the time is over, or when the state can no longer be reached.

Example:
  atoll wait sandbox/work --for ready --timeout 30s"
)]
pub(crate) struct WaitArgs {
    /// The object
    #[arg(value_name = "KIND/NAME")]
    pub(crate) object: ObjectReference,

    /// The state to wait for
    #[arg(long = "for", value_enum, value_name = "STATE")]
    pub(crate) condition: WaitCondition,

    /// How long to wait; for ever when left out
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Flags of `atoll delete`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll delete sandbox/a sandbox/b
  atoll delete sandboxes --all")]
pub(crate) struct DeleteArgs {
    /// The objects; a KIND alone with --all
    #[arg(required = true, value_name = "KIND/NAME")]
    pub(crate) objects: Vec<ObjectSelector>,

    /// All objects of the kind
    #[arg(long)]
    pub(crate) all: bool,

    /// It is fine when an object is not there
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// Flags of `atoll events`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll events sandbox/work
  atoll events --follow -o json")]
pub(crate) struct EventsArgs {
    /// Only those of this object
    #[arg(value_name = "KIND/NAME")]
    pub(crate) object: Option<ObjectReference>,

    /// Go on and show events as they happen
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// How to print them
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlainFormat::Text)]
    pub(crate) output: PlainFormat,
}

/// Flags of `atoll logs`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll logs work
  atoll logs -f --tail 20 --timestamps work main")]
pub(crate) struct LogsArgs {
    /// Go on and print output as it comes, until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only the last N lines
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,

    /// The time before each line
    #[arg(long)]
    pub(crate) timestamps: bool,

    /// The sandbox
    #[arg(value_name = "SANDBOX", value_parser = name)]
    pub(crate) name: String,

    /// The container; the first when left out
    pub(crate) container: Option<String>,
}
