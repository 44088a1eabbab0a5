//! Commands about images and registries.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{ListFormat, PlainFormat, name};

/// `atoll image …`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageCommand {
    /// Take an image from a file: docker save, OCI layout, or the tar of a root file system
    Import(ImageImportArgs),
    /// Get an image from its registry
    Pull(ImagePullArgs),
    /// List the images that are here
    #[command(visible_alias = "list")]
    Ls(ImageListArgs),
    /// Show an image and its configuration
    Inspect(ImageInspectArgs),
    /// Remove images
    Rm(ImageRemoveArgs),
    /// Remove what no sandbox uses and no reference names
    Gc(ImageGcArgs),
}

/// Flags of `atoll image import`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll image import app.tar
  docker save app:1 | atoll image import -
  atoll image import rootfs.tar.gz base:1")]
pub(crate) struct ImageImportArgs {
    /// The file; - is standard input
    pub(crate) file: PathBuf,

    /// What to call the image; needed for the tar of a root file system
    pub(crate) reference: Option<String>,
}

/// Flags of `atoll image pull`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  atoll image pull busybox
  atoll image pull --plain-http 127.0.0.1:5000/app:1")]
pub(crate) struct ImagePullArgs {
    /// The image, such as busybox or registry.example/team/app:1.2
    pub(crate) reference: String,

    /// Speak plain HTTP: only to a registry on this machine
    #[arg(long)]
    pub(crate) plain_http: bool,

    /// No progress, only errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Flags of `atoll image ls`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageListArgs {
    /// How to print them
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub(crate) output: ListFormat,
}

/// Flags of `atoll image inspect`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageInspectArgs {
    /// The image: a reference or a digest
    pub(crate) reference: String,
}

/// Flags of `atoll image rm`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageRemoveArgs {
    /// The images: references or digests
    #[arg(required = true)]
    pub(crate) references: Vec<String>,
}

/// Flags of `atoll image gc`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageGcArgs {
    /// How to print what was removed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = PlainFormat::Text)]
    pub(crate) output: PlainFormat,
}

/// Flags of `atoll login`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The password is asked for without echo, or read from standard input with --password-stdin. It is kept by the \
server, readable by root alone, and never shown again.

Example:
  atoll login registry.example:5000 -u me --password-stdin < token"
)]
pub(crate) struct LoginArgs {
    /// The registry, HOST or HOST:PORT
    #[arg(value_parser = name)]
    pub(crate) registry: String,

    /// The user name; asked for when left out
    #[arg(short, long)]
    pub(crate) username: Option<String>,

    /// Read the password or token from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// Flags of `atoll logout`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogoutArgs {
    /// The registry, HOST or HOST:PORT
    #[arg(value_parser = name)]
    pub(crate) registry: String,
}
