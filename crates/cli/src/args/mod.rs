//! What can be written on the command line: names, flags, help texts. Decides nothing and does nothing.

mod bench;
mod files;
mod image;
mod instance;
mod objects;
mod process;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use bench::{
    Against, BenchArgs, BenchSuite, ExecBenchArgs, NamedUrl, PortsBenchArgs, ProvisionBenchArgs,
    Service,
};
pub(crate) use files::CopyArgs;
pub(crate) use image::{
    ImageCommand, ImageGcArgs, ImageImportArgs, ImagePullArgs, ImageRemoveArgs, LoginArgs,
    LogoutArgs,
};
pub(crate) use instance::{CompletionArgs, DoctorArgs, DownArgs, NetworkMode, UpArgs, VersionArgs};
pub(crate) use objects::{
    CreateArgs, CreateObject, CreateVolumeArgs, DeleteArgs, DescribeArgs, EventsArgs, GetArgs,
    LogsArgs, WaitArgs,
};
pub(crate) use process::{AttachArgs, ExecArgs, RunArgs};
pub(crate) use values::{
    ListFormat, MountedVolume, ObjectReference, PlainFormat, PublishedPort, PullPolicy,
    ResourceKind, WaitCondition, duration,
};

/// Where state lies when nothing else is said. SOURCE: the file hierarchy standard.
pub(crate) const DEFAULT_DATA_DIRECTORY: &str = "/var/lib/atoll";

const ABOUT: &str = "Runs untrusted code in isolated sandboxes on this machine: from OCI images, with limits, in milliseconds.";

const EXAMPLES: &str = "Examples:
  atoll up --detach                                      start atoll on this machine
  atoll run busybox -- echo hello                        a command in a sandbox, gone afterwards
  echo 'print(6*7)' | atoll run -i python -- python -    code in, output and exit code out
  atoll run --keep --name work busybox -- sleep 1h       one that stays
  atoll exec -it work -- sh                              a shell in it
  atoll get sandboxes                                    what there is
  atoll describe sandbox/work                            where its start-up time went
  atoll down                                             end atoll and all that runs

Exit codes: for `run` and `exec` that of the command (125: it could not be begun);
else 0 for success, 1 for failure, 2 for a command line that makes no sense.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "atoll", version, about = ABOUT, after_help = EXAMPLES, propagate_version = false)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which atoll is meant: that of a data directory on this machine, or one by its address.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which atoll")]
pub(crate) struct ConnectionArgs {
    /// The instance that keeps its state in this directory
    #[arg(long, global = true, value_name = "DIR", env = "ATOLL_DATA_DIR")]
    #[arg(default_value = DEFAULT_DATA_DIRECTORY, hide_env_values = true)]
    pub(crate) data_dir: PathBuf,

    /// The instance at this address, such as http://127.0.0.1:8082, whatever its data directory
    #[arg(long, global = true, value_name = "URL", env = "ATOLL_SERVER", hide_env_values = true)]
    pub(crate) server: Option<String>,

    /// File that holds the token for --server; ATOLL_TOKEN may hold the token itself
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// The first argument of the unpack helper, which the server alone starts: no command, and offered to nobody.
pub(crate) const UNPACK_ARGUMENT: &str = "internal-unpack";

/// Everything atoll can be told.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start atoll on this machine
    Up(UpArgs),
    /// End atoll and everything that runs in it
    Down(DownArgs),
    /// Run a command in a new sandbox, with its input, output and exit code
    Run(RunArgs),
    /// Run a command in a sandbox that runs
    Exec(ExecArgs),
    /// Connect to the input and output of a sandbox's main process
    Attach(AttachArgs),
    /// Copy files into a sandbox or out of it
    Cp(CopyArgs),
    /// Print what a sandbox has written
    #[command(visible_alias = "log")]
    Logs(LogsArgs),
    /// Create objects from manifests, or a volume
    Create(CreateArgs),
    /// List objects, or show one
    Get(GetArgs),
    /// Show everything about an object, for people
    Describe(DescribeArgs),
    /// Wait until an object is in a state
    Wait(WaitArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Work with images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Store a user name and password for a registry
    Login(LoginArgs),
    /// Forget the user name and password for a registry
    Logout(LogoutArgs),
    /// Measure this machine's atoll, beside other ways to run containers
    #[command(subcommand)]
    Bench(BenchSuite),
    /// Say what this machine offers, what is missing and what to install
    Doctor(DoctorArgs),
    /// Print the version of atoll, and of the instance if one runs
    Version(VersionArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}
