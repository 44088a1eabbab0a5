//! Commands that connect a person or a program to a process: run, exec, attach.

use std::time::Duration;

use clap::Args;

use super::values::{
    MountedVolume, PublishedPort, PullPolicy, duration, environment_entry, mounted_volume, name,
    published_port,
};

/// Flags of `atoll run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll run busybox -- echo hello
  echo 'print(1)' | atoll run -i python -- python -
  atoll run -it --memory 1Gi --cpus 2 debian -- bash
  atoll run --keep --name db postgres

The sandbox is deleted when its command ends, unless --keep is given. When this process is killed, atoll deletes the sandbox soon
afterwards. Ctrl-C is passed on to the command; pressed twice, it ends the sandbox.")]
pub(crate) struct RunArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Set an environment variable; KEY alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = environment_entry)]
    pub(crate) env: Vec<String>,

    /// Let visitors of this machine's port HOST in to PORT; any free HOST when left out.
    #[arg(short, long = "publish", value_name = "[HOST:]PORT[/udp]", value_parser = published_port)]
    pub(crate) publish: Vec<PublishedPort>,

    /// Working directory inside
    #[arg(short, long = "workdir", value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User inside, name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// Mount a volume, which `atoll create volume` makes and which outlives the sandbox
    #[arg(short, long = "volume", value_name = "VOLUME:PATH[:ro]", value_parser = mounted_volume)]
    pub(crate) volume: Vec<MountedVolume>,

    /// CPUs it may use, such as 0.5 or 2
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) cpus: Option<String>,

    /// Memory it may use, such as 512Mi
    #[arg(long, value_name = "QUANTITY", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) memory: Option<String>,

    /// Processes and threads it may have
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) pids: Option<i64>,

    /// Disk it may use for its root, /tmp and logs, such as 1Gi
    #[arg(long, value_name = "QUANTITY", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) disk: Option<String>,

    /// End the command when it has run for this time, such as 30s or 5m; what comes before it begins is not counted
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,

    /// Allow connections to the outside, but to nothing private and to no other sandbox
    #[arg(long)]
    pub(crate) egress: bool,

    /// How to isolate it: container or gvisor; the strongest that this machine has when left out
    #[arg(long, value_name = "CLASS")]
    pub(crate) class: Option<String>,

    /// Its name; made up when left out
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Keep the sandbox, its files and logs when the command has ended
    #[arg(long)]
    pub(crate) keep: bool,

    /// Delete the sandbox when the command has ended: the default
    #[arg(long, conflicts_with = "keep")]
    pub(crate) rm: bool,

    /// When to ask the registry for the image
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = PullPolicy::Missing)]
    pub(crate) pull: PullPolicy,

    /// The image, such as busybox or registry.example/team/app:1.2
    pub(crate) image: String,

    /// The command and its arguments; the image's own when left out
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Flags of `atoll exec`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll exec work -- ls -l /
  atoll exec -it work -- sh
  tar c . | atoll exec -i work -- tar x -C /src

A client that ends before its command (a second Ctrl-C, a lost connection) ends itself alone: a command with a terminal
is hung up (SIGHUP), any other goes on, and ends with its sandbox at the latest.")]
pub(crate) struct ExecArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// The container; the first when left out
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,

    /// Set an environment variable; KEY alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = environment_entry)]
    pub(crate) env: Vec<String>,

    /// Working directory inside
    #[arg(short, long = "workdir", value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User inside, name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// The sandbox
    #[arg(value_name = "SANDBOX", value_parser = name)]
    pub(crate) name: String,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Flags of `atoll attach`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Ends with the main process's exit code when that ends. Ctrl-C leaves the sandbox running (with a \
terminal: press Ctrl-P, then Ctrl-Q).

Examples:
  atoll attach work
  atoll attach -i work sidecar"
)]
pub(crate) struct AttachArgs {
    /// Pass standard input on, where the sandbox was created to take it
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// The sandbox
    #[arg(value_name = "SANDBOX", value_parser = name)]
    pub(crate) name: String,

    /// The container; the first when left out
    pub(crate) container: Option<String>,
}
