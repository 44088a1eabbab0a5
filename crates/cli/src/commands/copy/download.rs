//! Out of a sandbox. The archive is hostile: names that climb out, links, devices, and entries that follow links are no surprise.

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use reqwest::Method;
use tokio::sync::mpsc;

use super::super::{Outcome, SUCCESS};
use super::{Remote, last_part};
use crate::output::{self, TransferProgress};

/// Chunks of the archive that may wait to be unpacked.
const QUEUE: usize = 8;
/// What a sandbox's file loses here: set-user-id, set-group-id, sticky.
const MODE_MASK: u32 = 0o7000;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
enum ArchiveError {
    /// Nothing in it.
    #[error("the sandbox sent an empty archive")]
    Empty,
    /// A name that leaves the directory.
    #[error("the sandbox sent an entry that would lie elsewhere: {name}")]
    Escapes {
        /// As sent.
        name: String,
    },
}

/// Writes the archive to standard output as it comes.
pub(super) async fn to_stream(remote: &Remote<'_>) -> Outcome {
    anyhow::ensure!(
        !std::io::stdout().is_terminal(),
        "a tar stream is not for a terminal: redirect it, for example `| tar t`"
    );
    let mut response = remote.client.send(request(remote)).await?;
    while let Some(chunk) = response.chunk().await.context("the transfer broke off")? {
        output::print_bytes(&chunk)?;
    }
    Ok(SUCCESS)
}

/// Copies to a path here: into it if it is a directory, else as it.
pub(super) async fn to_path(remote: &Remote<'_>, destination: &Path) -> Outcome {
    let name = last_part(&remote.path).unwrap_or("root").to_owned();
    let target =
        if destination.is_dir() { destination.join(&name) } else { destination.to_owned() };
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    anyhow::ensure!(parent.is_dir(), "there is no directory {}", parent.display());
    let mut response = remote.client.send(request(remote)).await?;
    let staging = tempfile::Builder::new()
        .prefix(".atoll-cp-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot write to {}", parent.display()))?;
    let (chunks, receiver) = mpsc::channel::<std::io::Result<Bytes>>(QUEUE);
    let directory = staging.path().to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(receiver, &directory));
    let progress = TransferProgress::new(&format!("{}:{}", remote.name, remote.path), None);
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                let broken = format!("the transfer broke off: {error}");
                let _ = chunks.send(Err(std::io::Error::other(broken))).await;
                break;
            }
        };
        progress.add(chunk.len() as u64);
        if chunks.send(Ok(chunk)).await.is_err() {
            break;
        }
    }
    drop(chunks);
    let top = unpacking.await.context("unpacking ended early")??;
    drop(progress);
    place(&staging.path().join(top), &target)?;
    Ok(SUCCESS)
}

fn request(remote: &Remote<'_>) -> reqwest::RequestBuilder {
    remote.client.request(Method::GET, &remote.url(&remote.path))
}

/// Reads the chunks of a channel.
struct ChunkReader {
    chunks: mpsc::Receiver<std::io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Unpacks into an empty directory that is nobody else's; gives the name of the one thing at its top.
fn unpack(
    chunks: mpsc::Receiver<std::io::Result<Bytes>>,
    directory: &Path,
) -> anyhow::Result<PathBuf> {
    let mut archive = tar::Archive::new(ChunkReader { chunks, current: Bytes::new() });
    archive.set_mask(MODE_MASK);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(false);
    let mut top: Option<PathBuf> = None;
    // A directory may be read-only: its mode is set when everything is in it.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            output::warn(&format!(
                "{} is left out: it is neither file, directory nor link",
                name.display()
            ));
            continue;
        }
        let first = name.components().next();
        let Some(std::path::Component::Normal(first)) = first else {
            return Err(ArchiveError::Escapes { name: name.display().to_string() }.into());
        };
        match &top {
            None => top = Some(PathBuf::from(first)),
            Some(known) if known.as_os_str() == first => {}
            Some(_) => {
                return Err(ArchiveError::Escapes { name: name.display().to_string() }.into());
            }
        }
        if kind.is_dir() {
            let mode = entry.header().mode()? & 0o777;
            directories.push((name.clone(), mode));
            entry.set_preserve_permissions(false);
        }
        if !entry.unpack_in(directory)? {
            return Err(ArchiveError::Escapes { name: name.display().to_string() }.into());
        }
    }
    let top = top.ok_or(ArchiveError::Empty)?;
    for (name, mode) in directories.iter().rev() {
        set_directory_mode(directory, name, *mode)?;
    }
    Ok(top)
}

/// Sets a directory's mode, unless a later entry put something else there.
fn set_directory_mode(root: &Path, name: &Path, mode: u32) -> anyhow::Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, open, openat2};
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = openat2(
        &root,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    if let Ok(found) = found {
        fchmod(&found, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// Moves what was unpacked to where it shall be; directories are merged, anything else is replaced.
fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", to.display());
    let new = from.symlink_metadata().with_context(context)?;
    let merge = match to.symlink_metadata() {
        Ok(old) => {
            anyhow::ensure!(
                old.is_dir() == new.is_dir(),
                "{} is {}, and would be replaced by {}",
                to.display(),
                if old.is_dir() { "a directory" } else { "no directory" },
                if new.is_dir() { "a directory" } else { "none" },
            );
            new.is_dir()
        }
        Err(_) => false,
    };
    if !merge {
        return fs::rename(from, to).with_context(context);
    }
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        place(&entry.path(), &to.join(entry.file_name()))?;
    }
    fs::set_permissions(to, new.permissions()).with_context(context)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header
    }

    /// Unpacks an archive into a fresh directory and gives both.
    fn unpacked(
        build: impl FnOnce(&mut tar::Builder<Vec<u8>>),
    ) -> (tempfile::TempDir, anyhow::Result<PathBuf>) {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let bytes = builder.into_inner().unwrap();
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(Ok(Bytes::from(bytes))).unwrap();
        drop(sender);
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let result = unpack(receiver, &inside);
        (directory, result)
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, text: &str, mode: u32) {
        let mut header = header(tar::EntryType::Regular, text.len() as u64, mode);
        let bytes = &mut header.as_old_mut().name;
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }

    #[test]
    fn nothing_lands_outside_whatever_the_archive_says() {
        for name in ["../evil", "/evil", "top/../../evil"] {
            let (directory, result) = unpacked(|builder| file(builder, name, "x", 0o644));
            assert!(result.is_err(), "{name}");
            assert!(!directory.path().join("evil").exists(), "{name}");
            assert!(!Path::new("/evil").exists());
        }
        let (directory, result) = unpacked(|builder| {
            let mut link = header(tar::EntryType::Symlink, 0, 0o777);
            builder.append_link(&mut link, "top", "../").unwrap();
            file(builder, "top/evil", "x", 0o644);
        });
        assert!(result.is_err());
        assert!(!directory.path().join("evil").exists());
    }

    #[test]
    fn only_one_thing_lies_at_the_top() {
        let (_directory, result) = unpacked(|builder| {
            file(builder, "a", "x", 0o644);
            file(builder, "b", "x", 0o644);
        });
        assert!(result.is_err());
        let (_directory, result) = unpacked(|_| {});
        assert!(result.unwrap_err().is::<ArchiveError>());
    }

    #[test]
    fn a_read_only_directory_can_be_filled_and_set_user_id_is_lost() {
        let (directory, result) = unpacked(|builder| {
            let mut top = header(tar::EntryType::Directory, 0, 0o555);
            builder.append_data(&mut top, "top/", std::io::empty()).unwrap();
            file(builder, "top/program", "x", 0o4755);
        });
        assert_eq!(result.unwrap(), Path::new("top"));
        let mode = |path: &str| {
            directory.path().join("inside").join(path).metadata().unwrap().permissions().mode()
        };
        assert_eq!(mode("top") & 0o7777, 0o555);
        assert_eq!(mode("top/program") & 0o7777, 0o755);
    }

    #[test]
    fn directories_are_merged_and_files_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for (path, text) in
            [("from/a", "new"), ("from/sub/b", "b"), ("to/a", "old"), ("to/sub/c", "c")]
        {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        place(&from, &to).unwrap();
        let read = |path: &str| fs::read_to_string(to.join(path)).unwrap();
        assert_eq!(
            (read("a"), read("sub/b"), read("sub/c")),
            ("new".into(), "b".into(), "c".into())
        );
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(place(&directory.path().join("file"), &to).is_err());
    }
}
