//! Downloading one blob into a file that survives interruptions: appended to, hashed on the way, believed only when its digest fits.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::image_reference::ImageReference;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, io_error};
use crate::manifest::Descriptor;
use crate::progress::{ProgressEvent, ProgressSink};
use crate::registry::{BlobStream, Client, RegistryError};
use crate::store::{Inner, blocking};

/// Attempts without a byte of progress before a download is given up.
const MAX_ATTEMPTS: u32 = 4;
/// Attempts in all: a registry that drips a byte and hangs up does not hold us for ever.
const MAX_ATTEMPTS_IN_ALL: u32 = 50;
/// Wait before the second attempt; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Bytes between two progress events of a layer.
const PROGRESS_STEP_BYTES: u64 = 256 * 1024;
/// Chunks that the network may be ahead of the disk.
const QUEUED_CHUNKS: usize = 16;

/// A download that runs; ended when this is dropped.
pub(super) struct Download(JoinHandle<Result<File, DownloadError>>);

impl Drop for Download {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum DownloadError {
    Registry(RegistryError),
    Other(ImageError),
}

impl From<ImageError> for DownloadError {
    fn from(error: ImageError) -> Self {
        Self::Other(error)
    }
}

impl Download {
    pub(super) fn begin(
        store: Arc<Inner>,
        client: Arc<Client>,
        descriptor: &Descriptor,
        progress: ProgressSink,
    ) -> Self {
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        Self(tokio::spawn(async move {
            let lock = store.downloads.lock_of(&digest);
            let _alone = lock.lock().await;
            let Some(_slot) = store.downloads.slot().await else {
                return Err(
                    ImageError::Interrupted { detail: "downloads have ended".to_owned() }.into()
                );
            };
            Blob { store: &store, client: &client, digest: &digest, size, progress }.fetch().await
        }))
    }

    /// The verified file, to be read from its start.
    pub(super) async fn finish(mut self, reference: &ImageReference) -> Result<File, ImageError> {
        match (&mut self.0).await {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(DownloadError::Registry(source))) => {
                Err(ImageError::from_registry(reference, source))
            }
            Ok(Err(DownloadError::Other(error))) => Err(error),
            Err(error) => Err(ImageError::Interrupted { detail: error.to_string() }),
        }
    }
}

/// The part of a blob that is on disk, and its digest so far.
struct Partial {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    length: u64,
}

struct Blob<'a> {
    store: &'a Arc<Inner>,
    client: &'a Client,
    digest: &'a Digest,
    size: u64,
    progress: ProgressSink,
}

impl Blob<'_> {
    async fn fetch(&self) -> Result<File, DownloadError> {
        let (path, size) = (self.store.partial_path(self.digest), self.size);
        let mut partial = blocking(move || Partial::open(path, size)).await?;
        let mut resumed = partial.length > 0;
        self.check_room(partial.length)?;
        let mut attempt = 0;
        let mut in_all = 0;
        loop {
            if partial.length == self.size {
                match self.verify(partial).await? {
                    Verified::Good(file) => return Ok(file),
                    // What an earlier pull left may have been damaged: once from the start.
                    Verified::Bad(fresh, _) if resumed => {
                        resumed = false;
                        partial = fresh;
                    }
                    Verified::Bad(_, actual) => {
                        return Err(DownloadError::Registry(RegistryError::Digest {
                            what: "a layer".to_owned(),
                            expected: self.digest.clone(),
                            actual,
                        }));
                    }
                }
            }
            let before = partial.length;
            let (after, result) = self.attempt(partial).await?;
            partial = after;
            let Err(error) = result else { continue };
            attempt = if partial.length > before { 1 } else { attempt + 1 };
            in_all += 1;
            let exhausted = attempt >= MAX_ATTEMPTS || in_all >= MAX_ATTEMPTS_IN_ALL;
            if !error.is_transient() || exhausted {
                return Err(DownloadError::Registry(error));
            }
            self.progress.send(&ProgressEvent::Retrying {
                layer: self.digest.clone(),
                reason: error.to_string(),
            });
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(attempt - 1)).await;
        }
    }

    /// One request: the file comes back with what it brought. The outer error is of this machine.
    async fn attempt(
        &self,
        mut partial: Partial,
    ) -> Result<(Partial, Result<(), RegistryError>), ImageError> {
        let BlobStream { mut response, resumed } =
            match self.client.blob(self.digest, partial.length).await {
                Ok(stream) => stream,
                Err(error) => return Ok((partial, Err(error))),
            };
        if !resumed {
            partial = blocking(move || partial.restart()).await?;
        }
        let (chunks, writer) = write_in_background(partial);
        let mut length = writer.1;
        let mut told = length;
        let result = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    length += chunk.len() as u64;
                    if length > self.size {
                        break Err(RegistryError::TooLarge { limit: self.size });
                    }
                    if chunks.send(chunk).await.is_err() {
                        // The writer has ended and says why.
                        break Ok(());
                    }
                    if length - told >= PROGRESS_STEP_BYTES || length == self.size {
                        told = length;
                        self.tell(length);
                    }
                }
                Ok(None) if length < self.size => {
                    let detail = format!("after {length} of {} bytes", self.size);
                    break Err(RegistryError::Cut { detail });
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(RegistryError::cut(&error)),
            }
        };
        drop(chunks);
        let partial = match writer.0.await {
            Ok(written) => written?,
            Err(error) => return Err(ImageError::Interrupted { detail: error.to_string() }),
        };
        if matches!(result, Err(RegistryError::TooLarge { .. })) {
            return Ok((blocking(move || partial.restart()).await?, result));
        }
        Ok((partial, result))
    }

    fn tell(&self, done_bytes: u64) {
        self.progress.send(&ProgressEvent::Downloaded {
            layer: self.digest.clone(),
            done_bytes,
            total_bytes: self.size,
        });
    }

    async fn verify(&self, partial: Partial) -> Result<Verified, ImageError> {
        let expected = self.digest.clone();
        blocking(move || {
            let actual = partial.hasher.clone().finish();
            if actual != expected {
                return Ok(Verified::Bad(partial.restart()?, actual));
            }
            let mut file = partial.file;
            file.seek(SeekFrom::Start(0))
                .map_err(|error| io_error("rewind", &partial.path, error))?;
            Ok(Verified::Good(file))
        })
        .await
    }

    /// A disk that cannot hold the rest is found full before a byte is asked for.
    fn check_room(&self, have: u64) -> Result<(), ImageError> {
        let path = &self.store.directory;
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| io_error("ask for the free space of", path, error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed =
            (self.size - have.min(self.size)).saturating_add(self.store.options.min_free_bytes);
        if free < needed { Err(ImageError::DiskFull { path: path.clone() }) } else { Ok(()) }
    }
}

enum Verified {
    Good(File),
    Bad(Partial, Digest),
}

impl Partial {
    /// Opens what an earlier pull left, or a new file.
    fn open(path: PathBuf, size: u64) -> Result<Self, ImageError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_error("open", &path, error))?;
        let mut hasher = Hasher::default();
        let length = hasher.consume(&mut file).map_err(|error| io_error("read", &path, error))?;
        let partial = Self { file, path, hasher, length };
        if length > size { partial.restart() } else { Ok(partial) }
    }

    fn restart(mut self) -> Result<Self, ImageError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|error| io_error("empty", &self.path, error))?;
        self.hasher = Hasher::default();
        self.length = 0;
        Ok(self)
    }
}

type Writer = (JoinHandle<Result<Partial, ImageError>>, u64);

/// Hashes and writes on a thread that may block; ends when the sender is dropped.
fn write_in_background(mut partial: Partial) -> (mpsc::Sender<Bytes>, Writer) {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(QUEUED_CHUNKS);
    let length = partial.length;
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            partial
                .file
                .write_all(&chunk)
                .map_err(|error| io_error("write", &partial.path, error))?;
            partial.hasher.update(&chunk);
            partial.length += chunk.len() as u64;
        }
        Ok(partial)
    });
    (sender, (writer, length))
}

impl Inner {
    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("partial").join(digest.hex())
    }

    /// The blob was unpacked: its file has done its service.
    pub(super) fn remove_partial(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.partial_path(digest));
    }
}
