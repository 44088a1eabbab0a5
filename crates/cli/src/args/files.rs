//! Copying files.

use clap::Args;

/// Flags of `atoll cp`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "One of the two is SANDBOX:PATH, the other a path here, or - for a tar stream.

Examples:
  atoll cp ./data work:/srv            a directory into the sandbox: /srv/data if /srv is there, else /srv
  atoll cp work:/var/log/app.log .
  tar c src | atoll cp - work:/build
  atoll cp work:/etc - | tar t"
)]
pub(crate) struct CopyArgs {
    /// The container; the first when left out
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,

    /// From where
    pub(crate) source: String,

    /// To where
    pub(crate) destination: String,
}
