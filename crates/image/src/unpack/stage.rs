//! Taking the files of an image archive (`docker save`, OCI layout) out of their tar, under numbers instead of names. Runs in the
//! confined helper.
//!
//! An archive of a root file system is told apart here: its first entry that no image archive has ends the staging.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags};

use super::decompress::{Meter, decoder};
use super::stream::{Archive, Entry, Kind};
use super::tree::{Place, io_error, join};
use super::{Limits, Staged, StagedFile, StagedKind, UnpackError, damaged, printable};
use crate::digest::Hasher;

/// Most files of an image archive (guess: 128 layers of several images, each with three files).
const MAX_FILES: usize = 10_000;

/// Stages the archive that `input` holds into the directory `root`.
pub(crate) fn stage_archive(
    input: impl Read,
    root: &OwnedFd,
    limits: Limits,
) -> Result<Staged, UnpackError> {
    let meter = Meter::new(limits.max_bytes);
    let plain = decoder(input).map_err(|error| damaged(&format!("it cannot be read: {error}")))?;
    let mut archive = Archive::new(meter.watch(plain), limits, true);
    match stage(&mut archive, root) {
        Err(_) if meter.exceeded() => {
            Err(UnpackError::TooLarge { what: "bytes".to_owned(), limit: limits.max_bytes })
        }
        other => other,
    }
}

fn stage<R: Read>(archive: &mut Archive<R>, root: &OwnedFd) -> Result<Staged, UnpackError> {
    let mut files: HashMap<String, StagedKind> = HashMap::new();
    let mut next_number = 0;
    while let Some(entry) = archive.next_entry()? {
        let place = Place::of(&entry.path)?;
        if place.components.is_empty() {
            continue;
        }
        let Some(name) = archive_name(&join(&place.components), entry.kind) else {
            return Ok(Staged { image_archive: false, files: Vec::new() });
        };
        let kind = match entry.kind {
            Kind::File => {
                let kind = copy_out(archive, &entry, root, next_number)?;
                next_number += 1;
                kind
            }
            Kind::Symlink => StagedKind::Link { target: link_target(&entry)? },
            _ => continue,
        };
        if files.len() == MAX_FILES {
            return Err(UnpackError::TooLarge {
                what: "files in an image archive".to_owned(),
                limit: MAX_FILES as u64,
            });
        }
        files.insert(name, kind);
    }
    let image_archive = files.contains_key("index.json") || files.contains_key("manifest.json");
    let files = if image_archive {
        files.into_iter().map(|(name, kind)| StagedFile { name, kind }).collect()
    } else {
        Vec::new()
    };
    Ok(Staged { image_archive, files })
}

/// The name, if image archives have such an entry: blobs, the indexes, `<64 digits>/...` and `*.json`, `*.tar` at the top.
fn archive_name(path: &[u8], kind: Kind) -> Option<String> {
    let name = std::str::from_utf8(path).ok()?;
    let (first, below) = match name.split_once('/') {
        Some((first, _)) => (first, true),
        None => (name, false),
    };
    let hex = first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit());
    let known = if below || kind == Kind::Directory {
        first == "blobs" || hex
    } else {
        matches!(first, "oci-layout" | "repositories")
            || first.ends_with(".json")
            || first.ends_with(".tar")
    };
    known.then(|| name.to_owned())
}

fn link_target(entry: &Entry) -> Result<String, UnpackError> {
    String::from_utf8(entry.link.clone()).map_err(|_| UnpackError::Refused {
        path: printable(&entry.path),
        reason: "a link to a name that is no text".to_owned(),
    })
}

fn copy_out<R: Read>(
    archive: &mut Archive<R>,
    entry: &Entry,
    root: &OwnedFd,
    number: u32,
) -> Result<StagedKind, UnpackError> {
    if entry.segments.is_some() {
        return Err(UnpackError::Refused {
            path: printable(&entry.path),
            reason: "a sparse file in an image archive".to_owned(),
        });
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = fs::openat(root, number.to_string(), flags, Mode::from_raw_mode(0o600))
        .map_err(|error| io_error("make the file for", &entry.path, error))?
        .into();
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 * 1024];
    let mut size_bytes = 0;
    loop {
        let count = archive.read_data(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(|error| io_error("write", &entry.path, error))?;
        size_bytes += count as u64;
    }
    Ok(StagedKind::File { number, size_bytes, digest: hasher.finish() })
}
