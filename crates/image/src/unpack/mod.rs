//! Unpacking one archive in a process that can touch nothing but the directory it fills.
//!
//! The store runs the helper ([`launch`]) with the compressed archive as its standard input, the directory to fill as its
//! working directory and a [`Request`] as its last argument; the helper shuts itself in ([`confine`]), reads the archive
//! ([`stream`]) and builds the tree ([`extract`]), and answers with an [`Outcome`] on standard output.
//!
//! What is kept of an archive: files, directories, symlinks, hard links, fifos; owner, mode (setuid too: whether it has effect
//! is decided where the sandbox's root is mounted), time; the xattrs `security.capability` and `user.*`. Device nodes are
//! skipped and counted. OCI whiteouts become overlayfs whiteouts. What leads out of the directory is an error.

mod confine;
mod decompress;
mod extract;
mod finish;
mod launch;
mod pax;
mod probe;
mod stage;
mod stream;
mod tree;

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub(crate) use extract::{LayerOptions, extract_archive};
pub(crate) use finish::finish_layer;
pub use launch::UnpackHelper;
pub(crate) use launch::{own_pid, wrong_answer};
pub(crate) use stage::stage_archive;

/// What the helper is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Build the tree of a layer.
    Layer {
        /// No layer lies below it.
        lowest: bool,
        /// An archive without an end mark was cut.
        require_end_mark: bool,
    },
    /// Take only the files that make up an image archive (`docker save`, OCI layout) out of it.
    Stage,
    /// Try what must not be possible.
    Probe,
}

/// Bounds of one unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Entries in the archive, and directories made for entries that name no parent.
    pub(crate) max_entries: u64,
    /// Bytes of file content, holes counted as if they were data, and bytes of the decompressed archive.
    pub(crate) max_bytes: u64,
    /// Stop when the file system has less than this free.
    pub(crate) min_free_bytes: u64,
}

impl Limits {
    /// The bounds for real images: a million entries (the largest public images have about 400,000: guess, rounded up) and
    /// 64 GiB.
    pub(crate) fn new(min_free_bytes: u64) -> Self {
        Self { max_entries: 1_000_000, max_bytes: 64 << 30, min_free_bytes }
    }
}

/// The helper's last argument, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) mode: Mode,
    pub(crate) limits: Limits,
    /// The process that must outlive the helper.
    pub(crate) parent_pid: i32,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unpacked {
    /// Digest of the decompressed archive.
    pub(crate) diff_id: Option<Digest>,
    /// Bytes of the decompressed archive.
    pub(crate) archive_bytes: u64,
    /// Bytes of file content.
    pub(crate) content_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) skipped_devices: u64,
    pub(crate) skipped_xattrs: u64,
    /// The archive has an entry for the root itself.
    pub(crate) root_described: bool,
    /// Directories that hide what lower layers have there, for the parent to mark: the mark needs CAP_SYS_ADMIN.
    #[serde(with = "path_list")]
    pub(crate) opaque: Vec<Vec<u8>>,
    /// Directories that no entry described: they take the lower layers' owner and mode.
    #[serde(with = "path_list")]
    pub(crate) implicit: Vec<Vec<u8>>,
}

/// The files of an image archive, each under its number in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    /// Whether it is an image archive at all; else it may be the archive of a root file system.
    pub(crate) image_archive: bool,
    pub(crate) files: Vec<StagedFile>,
}

/// One entry of an image archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StagedFile {
    /// Its path in the archive. Never a path of the host.
    pub(crate) name: String,
    pub(crate) kind: StagedKind,
}

/// What a staged entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StagedKind {
    File { number: u32, size_bytes: u64, digest: Digest },
    Link { target: String },
}

/// The helper's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Unpacked(Unpacked),
    Staged(Staged),
    /// What was possible and must not be.
    Probed(Vec<String>),
    Failed(UnpackError),
}

/// Why an archive was not unpacked. Paths are shown with escapes: they come out of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum UnpackError {
    /// The helper could not shut itself in, so it did not begin.
    #[error(
        "cannot confine the unpacking ({step}): {detail}; a kernel with Landlock (5.19 or newer, in the lsm= list) and root are needed"
    )]
    Confinement {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        detail: String,
    },
    /// The archive breaks its own format, or ends early.
    #[error("the archive is damaged: {detail}")]
    Damaged {
        /// What is wrong.
        detail: String,
    },
    /// An entry asks for something that is refused.
    #[error("the archive's entry \"{path}\" is refused: {reason}")]
    Refused {
        /// The entry, escaped and cut.
        path: String,
        /// Why.
        reason: String,
    },
    /// A bound was reached.
    #[error("the archive exceeds the limit of {limit} {what}")]
    TooLarge {
        /// What is bounded.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The file system is full, or nearly.
    #[error("the disk is full: {detail}; free space or remove images (atoll image gc)")]
    DiskFull {
        /// What was seen.
        detail: String,
    },
    /// The helper itself failed.
    #[error("{detail}")]
    Helper {
        /// What happened to it.
        detail: String,
    },
    /// The kernel refused an operation.
    #[error("cannot {operation} \"{path}\": {detail}")]
    Io {
        /// What was being done.
        operation: String,
        /// The entry, escaped and cut.
        path: String,
        /// The kernel's answer.
        detail: String,
    },
}

/// What `atoll internal-unpack` runs: reads the [`Request`] from its last argument, confines itself, unpacks standard input
/// into the working directory and prints an [`Outcome`]. Exit code 0 when an outcome was printed, whatever it says.
pub fn unpack_helper_main() -> ExitCode {
    let outcome = confine::begin().and_then(|(request, root)| {
        let input = std::io::stdin().lock();
        match request.mode {
            Mode::Layer { lowest, require_end_mark } => {
                let options = LayerOptions { limits: request.limits, lowest, require_end_mark };
                extract_archive(input, root, options).map(Outcome::Unpacked)
            }
            Mode::Stage => stage_archive(input, &root, request.limits).map(Outcome::Staged),
            Mode::Probe => Ok(Outcome::Probed(probe::probe(&root, request.parent_pid))),
        }
    });
    let outcome = outcome.unwrap_or_else(Outcome::Failed);
    match serde_json::to_writer(std::io::stdout().lock(), &outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn damaged(detail: &str) -> UnpackError {
    UnpackError::Damaged { detail: detail.to_owned() }
}

/// A path of an archive for people: escaped, cut at 200 characters.
pub(crate) fn printable(path: &[u8]) -> String {
    let escaped = path.escape_ascii().to_string();
    if escaped.len() <= 200 { escaped } else { format!("{}...", &escaped[..200]) }
}

/// Paths are bytes; JSON has text only: base64.
mod path_list {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        paths: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| STANDARD.encode(path)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .collect()
    }
}
