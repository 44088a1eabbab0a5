//! The image store as the server sees it: shapes translated, nothing decided.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use async_trait::async_trait;
use atoll_image::{
    Collected, Credentials, Digest, HighWater, Image, ImageError, ImageErrorKind, ImageStore,
    ImageSummary, ProgressEvent, ProgressSink, PullOptions, users,
};
use atoll_model::image_reference::ImageReference;
use atoll_server::{
    ImageConfig, ImageSource, ImageSourceError, Progress, ResolvedImage, ResolvedUser,
};
use atoll_wire::guest::UserIds;
use atoll_wire::rest::{CollectedImages, ImageInfo, ImageProgress, Registry, RegistryCredentials};
use tokio::io::AsyncRead;

/// `image gc` removes every image that no sandbox uses.
const COLLECT_ALL: HighWater = HighWater::StoreBytes(0);
/// Digits of a layer's digest that are shown.
const SHORT_DIGITS: usize = 12;
/// What an archive that was received is called: errors name it.
const RECEIVED: &str = "archive";
/// Bytes between two reports while an archive arrives.
const REPORT_BYTES: u64 = 4 << 20;

/// An [`ImageStore`] as an [`ImageSource`].
pub(super) struct StoreImages {
    store: ImageStore,
    /// Where archives arrive before they are read.
    incoming: PathBuf,
    /// An archive that would leave less than this free is refused.
    min_free_bytes: u64,
}

impl StoreImages {
    /// Empties what an earlier server left in `incoming`.
    pub(super) fn new(
        store: ImageStore,
        incoming: PathBuf,
        min_free_bytes: u64,
    ) -> anyhow::Result<Self> {
        match std::fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => DirBuilder::new().recursive(true).mode(0o700).create(&incoming),
        }
        .with_context(|| format!("cannot prepare {}", incoming.display()))?;
        Ok(Self { store, incoming, min_free_bytes })
    }

    /// Writes an archive to a file, so that it can be read more than once.
    async fn receive(
        &self,
        mut archive: Box<dyn AsyncRead + Send + Unpin>,
        progress: &Progress,
    ) -> Result<tempfile::TempDir, ImageSourceError> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let failed = |error: std::io::Error| ImageSourceError::Failed {
            message: format!("the archive could not be received: {error}"),
        };
        let directory = tempfile::tempdir_in(&self.incoming).map_err(failed)?;
        let file = std::fs::File::create_new(directory.path().join(RECEIVED)).map_err(failed)?;
        let mut to = tokio::fs::File::from_std(file);
        let mut buffer = vec![0; 256 * 1024];
        let (mut received, mut reported) = (0_u64, 0_u64);
        let begun = Instant::now();
        loop {
            let read = archive.read(&mut buffer).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            to.write_all(&buffer[..read]).await.map_err(failed)?;
            received += read as u64;
            if received - reported >= REPORT_BYTES {
                reported = received;
                self.check_free_space()?;
                progress(status(&format!("received {} MiB", received >> 20)));
            }
        }
        to.flush().await.map_err(failed)?;
        tracing::debug!(received, elapsed = ?begun.elapsed(), "an archive was received");
        Ok(directory)
    }

    /// An archive without an end must not take the last of the disk, on which the server's own state lies.
    fn check_free_space(&self) -> Result<(), ImageSourceError> {
        let Ok(stat) = rustix::fs::statvfs(&self.incoming) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= self.min_free_bytes {
            return Ok(());
        }
        let message = format!(
            "the disk is full: the archive leaves {} MiB free of the {} MiB that atoll keeps; free space or remove images (atoll image gc)",
            free >> 20,
            self.min_free_bytes >> 20
        );
        Err(ImageSourceError::Failed { message })
    }
}

#[async_trait]
impl ImageSource for StoreImages {
    async fn find(
        &self,
        reference: &ImageReference,
    ) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok(self.store.resolve(reference).map(resolved))
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        plain_http: bool,
        progress: Progress,
    ) -> Result<ResolvedImage, ImageSourceError> {
        let options = PullOptions { plain_http, ..PullOptions::default() };
        let image =
            self.store.pull(reference, &options, sink(progress)).await.map_err(source_error)?;
        Ok(resolved(image))
    }

    async fn by_digest(&self, digest: &str) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok(self.store.get(&parse_digest(digest)?).map(resolved))
    }

    async fn lease(&self, digest: &str, holder: &str) -> Result<(), ImageSourceError> {
        self.store.lease(&parse_digest(digest)?, holder).map(drop).map_err(source_error)
    }

    async fn release(&self, holder: &str) -> Result<(), ImageSourceError> {
        self.store.release(holder).map_err(source_error)
    }

    async fn retain_leases(&self, holders: &HashSet<String>) -> Result<(), ImageSourceError> {
        let ended =
            self.store.retain_leases(|holder| holders.contains(holder)).map_err(source_error)?;
        if !ended.is_empty() {
            tracing::info!(?ended, "leases of sandboxes that are gone were ended");
        }
        Ok(())
    }

    async fn resolve_user(
        &self,
        digest: &str,
        user: &str,
    ) -> Result<ResolvedUser, ImageSourceError> {
        let digest = parse_digest(digest)?;
        let image = self.store.get(&digest).ok_or_else(|| not_here(&digest))?;
        let user = user.to_owned();
        let ids = tokio::task::spawn_blocking(move || users::resolve(&user, &image.layers))
            .await
            .map_err(|error| ImageSourceError::Failed { message: error.to_string() })?
            .map_err(|error| ImageSourceError::Invalid { message: error.to_string() })?;
        Ok(ResolvedUser {
            ids: UserIds { uid: ids.uid, gid: ids.gid, supplementary_gids: ids.supplementary_gids },
            home: Some(ids.home),
        })
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, ImageSourceError> {
        Ok(self.store.list().into_iter().map(|summary| info(summary, false)).collect())
    }

    async fn inspect(&self, reference: &ImageReference) -> Result<ImageInfo, ImageSourceError> {
        self.store
            .inspect(&reference.to_string())
            .map(|summary| info(summary, true))
            .map_err(source_error)
    }

    async fn remove(&self, reference: &ImageReference) -> Result<(), ImageSourceError> {
        self.store.remove(&reference.to_string()).await.map(drop).map_err(source_error)
    }

    async fn import(
        &self,
        archive: Box<dyn AsyncRead + Send + Unpin>,
        reference: Option<&ImageReference>,
        progress: Progress,
    ) -> Result<Vec<ImageInfo>, ImageSourceError> {
        let directory = self.receive(archive, &progress).await?;
        progress(status("unpacking"));
        let images = self
            .store
            .import(directory.path().join(RECEIVED), reference.cloned(), sink(progress))
            .await
            .map_err(source_error)?;
        Ok(images.into_iter().map(|summary| info(summary, false)).collect())
    }

    async fn collect(&self) -> Result<CollectedImages, ImageSourceError> {
        let Collected { removed, freed_bytes } =
            self.store.collect(COLLECT_ALL).await.map_err(source_error)?;
        Ok(CollectedImages { removed, freed_bytes })
    }

    async fn registries(&self) -> Result<Vec<Registry>, ImageSourceError> {
        let known = self.store.registries_with_credentials();
        Ok(known.into_iter().map(|(registry, username)| Registry { registry, username }).collect())
    }

    async fn set_credentials(
        &self,
        registry: &str,
        credentials: &RegistryCredentials,
    ) -> Result<(), ImageSourceError> {
        let credentials = Credentials {
            username: credentials.username.clone(),
            password: credentials.password.clone(),
        };
        self.store
            .set_credentials(registry, Some(credentials))
            .await
            .map(drop)
            .map_err(source_error)
    }

    async fn remove_credentials(&self, registry: &str) -> Result<bool, ImageSourceError> {
        self.store.set_credentials(registry, None).await.map_err(source_error)
    }
}

fn resolved(image: Image) -> ResolvedImage {
    let config = &image.config;
    ResolvedImage {
        digest: image.digest.to_string(),
        config: ImageConfig {
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            working_dir: config.working_directory.clone(),
            user: config.user.clone(),
            stop_signal: config.stop_signal.clone(),
        },
        layers: image.layers,
    }
}

fn info(summary: ImageSummary, with_config: bool) -> ImageInfo {
    ImageInfo {
        references: summary.references,
        digest: summary.digest.to_string(),
        platform: summary.config.platform.clone(),
        size_bytes: summary.size_bytes,
        imported_at: summary.imported_at.to_string(),
        last_used_at: summary.last_used_at.map(|time| time.to_string()),
        used_by: Vec::new(),
        layers: u32::try_from(summary.layers).unwrap_or(u32::MAX),
        config: with_config.then(|| serde_json::json!(*summary.config)),
    }
}

fn parse_digest(text: &str) -> Result<Digest, ImageSourceError> {
    text.parse().map_err(|error| ImageSourceError::Invalid {
        message: format!("{text:?} is not the digest of an image: {error}"),
    })
}

fn not_here(digest: &Digest) -> ImageSourceError {
    source_error(ImageError::NotFound { name: digest.to_string() })
}

fn source_error(error: ImageError) -> ImageSourceError {
    let message = error.to_string();
    match error.kind() {
        ImageErrorKind::NotFound => ImageSourceError::NotFound { message },
        ImageErrorKind::Conflict => ImageSourceError::InUse { message },
        ImageErrorKind::Invalid => ImageSourceError::Invalid { message },
        ImageErrorKind::Unauthorized
        | ImageErrorKind::Unavailable
        | ImageErrorKind::DiskFull
        | ImageErrorKind::Internal => ImageSourceError::Failed { message },
    }
}

fn status(text: &str) -> ImageProgress {
    ImageProgress { status: text.to_owned(), ..ImageProgress::default() }
}

/// The store's events as lines for a client.
fn sink(progress: Progress) -> ProgressSink {
    ProgressSink::new(move |event| {
        for line in lines(event) {
            progress(line);
        }
    })
}

fn lines(event: &ProgressEvent) -> Vec<ImageProgress> {
    let of = |layer: &Digest, text: &str| ImageProgress {
        layer: Some(short(layer)),
        ..status(&format!("{text} {}", short(layer)))
    };
    match event {
        ProgressEvent::Layers { layers } => layers
            .iter()
            .map(|(layer, bytes)| ImageProgress {
                done_bytes: Some(0),
                total_bytes: Some(*bytes),
                ..of(layer, "found")
            })
            .collect(),
        ProgressEvent::Downloaded { layer, done_bytes, total_bytes } => vec![ImageProgress {
            done_bytes: Some(*done_bytes),
            total_bytes: Some(*total_bytes),
            ..of(layer, "downloading")
        }],
        ProgressEvent::Retrying { layer, reason } => {
            vec![of(layer, &format!("{reason}: retrying"))]
        }
        ProgressEvent::Unpacking { layer } => vec![of(layer, "unpacking")],
        ProgressEvent::LayerReady { layer, reused: true } => vec![of(layer, "already here:")],
        ProgressEvent::LayerReady { layer, reused: false } => vec![of(layer, "unpacked")],
    }
}

fn short(layer: &Digest) -> String {
    let text = layer.to_string();
    text.strip_prefix("sha256:").unwrap_or(&text).chars().take(SHORT_DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_refuses_keeps_its_kind() {
        let error = source_error(ImageError::NotFound { name: "busybox".into() });
        assert!(
            matches!(error, ImageSourceError::NotFound { message } if message.contains("busybox"))
        );
        let error =
            source_error(ImageError::InUse { name: "a".into(), holders: vec!["00ff".into()] });
        assert!(matches!(error, ImageSourceError::InUse { .. }));
        assert!(matches!(parse_digest("latest"), Err(ImageSourceError::Invalid { .. })));
    }
}
