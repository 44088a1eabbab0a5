//! Into a sandbox.

use std::fs::Metadata;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use reqwest::{Body, Method};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::super::{Outcome, SUCCESS};
use super::{Remote, last_part};
use crate::client::ClientError;
use crate::output::{self, TransferProgress};

/// Chunks of the archive that may wait to be sent.
const QUEUE: usize = 8;
/// Bytes of a chunk. Guess: a few hundred system calls per 100 MB.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long to wait for what broke an upload off, once that is known to be broken.
const PACKING_ERROR_WITHIN: Duration = Duration::from_millis(200);
/// Length of a tar header. SOURCE: POSIX ustar.
const TAR_BLOCK_BYTES: usize = 512;

/// Unpacks the tar on standard input below the path.
pub(super) async fn from_stream(remote: &Remote<'_>) -> Outcome {
    let stream = ReaderStream::with_capacity(tokio::io::stdin(), CHUNK_BYTES);
    put(remote, &remote.path, Body::wrap_stream(stream)).await
}

/// Copies a file or directory: into the destination if that is a directory, else as the destination.
pub(super) async fn from_path(source: &Path, remote: &Remote<'_>) -> Outcome {
    let metadata =
        std::fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    let own_name = file_name(source)?;
    let into_directory = remote.path.ends_with('/')
        || last_part(&remote.path).is_none()
        || is_directory(remote).await?;
    let (parent, name) = if into_directory {
        (remote.path.clone(), own_name)
    } else {
        let name = last_part(&remote.path).unwrap_or_default().to_owned();
        let parent = remote.path.trim_end_matches('/').strip_suffix(&name).unwrap_or("/");
        (parent.to_owned(), name)
    };
    let (chunks, mut receiver) = mpsc::channel(QUEUE);
    let source_path = source.to_owned();
    let mut packing =
        tokio::task::spawn_blocking(move || pack(&source_path, &metadata, &name, chunks));
    let progress = TransferProgress::new(&format!("{} to {}", source.display(), remote.name), None);
    let body = Body::wrap_stream(futures::stream::poll_fn(move |context| {
        let chunk = receiver.poll_recv(context);
        if let std::task::Poll::Ready(Some(Ok(bytes))) = &chunk {
            let bytes: &Bytes = bytes;
            progress.add(bytes.len() as u64);
        }
        chunk
    }));
    let sent = put(remote, &parent, body).await;
    let packed = match &sent {
        Ok(_) => (&mut packing).await,
        // A refusal may leave the packing waiting for a reader that has gone; an error of its own broke the upload and is here at once.
        Err(_) => match tokio::time::timeout(PACKING_ERROR_WITHIN, &mut packing).await {
            Ok(packed) => packed,
            Err(_) => return sent,
        },
    };
    match packed {
        Ok(Err(error)) if !is_cut_off(&error) => Err(error),
        Ok(_) => sent,
        Err(_) => anyhow::bail!("packing {} ended with a panic", source.display()),
    }
}

async fn put(remote: &Remote<'_>, directory: &str, body: Body) -> Outcome {
    let request = remote
        .client
        .request(Method::PUT, &remote.url(directory))
        .header("content-type", "application/x-tar")
        .body(body);
    remote.client.send(request).await?;
    Ok(SUCCESS)
}

/// Asks by the first header of the tar that the path would give.
async fn is_directory(remote: &Remote<'_>) -> anyhow::Result<bool> {
    let request = remote.client.request(Method::GET, &remote.url(&remote.path));
    let mut response = match remote.client.send(request).await {
        Ok(response) => response,
        // Nothing can be read there; whether something can be written, the upload itself will tell.
        Err(ClientError::Refused { status: 422, .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let mut head = Vec::new();
    while head.len() < TAR_BLOCK_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => head.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    let Some(block) = head.get(..TAR_BLOCK_BYTES) else { return Ok(false) };
    Ok(tar::Header::from_byte_slice(block).entry_type().is_dir())
}

fn file_name(path: &Path) -> anyhow::Result<String> {
    let resolved: PathBuf;
    let named = if path.file_name().is_some() {
        path
    } else {
        // `.`, `..` and `/`: the directory's real name.
        resolved =
            path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))?;
        &resolved
    };
    named
        .file_name()
        .and_then(|name| name.to_str())
        .map(str::to_owned)
        .with_context(|| format!("{} has no name that can be sent", path.display()))
}

/// The receiving side is gone.
#[derive(Debug, thiserror::Error)]
#[error("the upload ended early")]
struct CutOff;

fn is_cut_off(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<CutOff>()
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.get_ref().is_some_and(|inner| inner.is::<CutOff>()))
    })
}

/// Writes the archive in chunks to the channel.
struct ChunkWriter {
    chunks: mpsc::Sender<std::io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    fn send(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks.blocking_send(Ok(bytes)).map_err(|_| std::io::Error::other(CutOff))
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.send()
    }
}

/// Packs the source as `name`. On an error the body breaks off, so that the server keeps nothing half-made silently.
fn pack(
    source: &Path,
    metadata: &Metadata,
    name: &str,
    chunks: mpsc::Sender<std::io::Result<Bytes>>,
) -> anyhow::Result<()> {
    let writer = ChunkWriter { chunks: chunks.clone(), buffer: Vec::new() };
    let mut archive = tar::Builder::new(writer);
    archive.follow_symlinks(false);
    let result = append(&mut archive, source, metadata, name)
        .and_then(|()| Ok(archive.into_inner()?.flush()?));
    if let Err(error) = &result {
        let _ = chunks.blocking_send(Err(std::io::Error::other(error.to_string())));
    }
    result
}

/// Appends a file, or a directory with all that is in it. Owners are left to the sandbox.
fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    metadata: &Metadata,
    name: &str,
) -> anyhow::Result<()> {
    let shown = || format!("cannot read {}", path.display());
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    header.set_uid(0);
    header.set_gid(0);
    let kind = metadata.file_type();
    if kind.is_dir() {
        archive.append_data(&mut header, format!("{name}/"), std::io::empty())?;
        let mut entries = std::fs::read_dir(path)
            .with_context(shown)?
            .collect::<Result<Vec<_>, _>>()
            .with_context(shown)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let child = entry.path();
            let Some(child_name) = child.file_name().and_then(|name| name.to_str()) else {
                output::warn(&format!("{} is left out: its name is not UTF-8", child.display()));
                continue;
            };
            let child_metadata = child
                .symlink_metadata()
                .with_context(|| format!("cannot read {}", child.display()))?;
            append(archive, &child, &child_metadata, &format!("{name}/{child_name}"))?;
        }
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).with_context(shown)?;
        header.set_size(0);
        archive.append_link(&mut header, name, target)?;
    } else if kind.is_file() {
        let file = std::fs::File::open(path).with_context(shown)?;
        archive.append_data(&mut header, name, FixedLength::new(file, metadata.len()))?;
    } else {
        output::warn(&format!(
            "{} is left out: it is neither file, directory nor link",
            path.display()
        ));
    }
    Ok(())
}

/// A file as long as its header said, whatever happens to it meanwhile.
struct FixedLength {
    file: std::io::Take<std::fs::File>,
    missing: u64,
}

impl FixedLength {
    fn new(file: std::fs::File, length: u64) -> Self {
        use std::io::Read as _;
        Self { file: file.take(length), missing: length }
    }
}

impl std::io::Read for FixedLength {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && self.missing > 0 && !buffer.is_empty() {
            return Err(std::io::Error::other("the file became shorter while it was read"));
        }
        self.missing -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_packed_under_its_new_name_with_links_as_links() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("src");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        std::fs::write(source.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", source.join("link")).unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        pack(&source, &source.metadata().unwrap(), "renamed", sender).unwrap();
        let mut bytes = Vec::new();
        while let Ok(chunk) = receiver.try_recv() {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                (name, entry.header().entry_type(), entry.header().uid().unwrap())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("renamed/".to_owned(), tar::EntryType::Directory, 0),
                ("renamed/link".to_owned(), tar::EntryType::Symlink, 0),
                ("renamed/sub/".to_owned(), tar::EntryType::Directory, 0),
                ("renamed/sub/file".to_owned(), tar::EntryType::Regular, 0),
            ]
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_breaks_the_upload_off() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        let metadata = directory.path().metadata().unwrap();
        let missing = directory.path().join("gone");
        assert!(pack(&missing, &metadata, "x", sender).is_err());
        let mut broke_off = false;
        while let Ok(chunk) = receiver.try_recv() {
            broke_off |= chunk.is_err();
        }
        assert!(broke_off);
    }
}
