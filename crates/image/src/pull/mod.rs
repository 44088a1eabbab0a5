//! Bringing an image from a registry into the store: layers are downloaded at the same time and unpacked in order.

mod download;

use std::sync::Arc;
use std::time::Duration;

use atoll_model::image_reference::ImageReference;

use crate::config::{self, ConfigDocument, MAX_CONFIG_BYTES};
use crate::digest::Digest;
use crate::error::{ImageError, ImageErrorKind};
use crate::manifest::{self, Document, Manifest};
use crate::progress::{ProgressEvent, ProgressSink};
use crate::registry::{Client, ClientOptions, FetchedManifest, RegistryError};
use crate::store::{Image, ImageRecord, ImageStore, Inner, LayerJob, LayerRecord, Pins, blocking};

/// How to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullOptions {
    /// Speak HTTP without TLS. Refused for registries that are not on this machine.
    pub plain_http: bool,
    /// A connection on which nothing comes for this long is dead.
    pub idle_timeout: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { plain_http: false, idle_timeout: Duration::from_secs(30) }
    }
}

/// What a registry says an image is.
struct Described {
    manifest: FetchedManifest,
    layers: Manifest,
    config_bytes: Vec<u8>,
    config: ConfigDocument,
}

impl ImageStore {
    /// Pulls an image, or finds that it is here already; asks the registry in any case. An interrupted download goes on where it
    /// stopped when it is pulled again.
    ///
    /// # Errors
    /// [`ImageError::Registry`] and others. Of a failed pull are left whole layers and parts of blobs, from which the next one goes
    /// on; when the disk is full, only the latter.
    pub async fn pull(
        &self,
        reference: &ImageReference,
        options: &PullOptions,
        progress: ProgressSink,
    ) -> Result<Image, ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.make_room();
            Ok(())
        })
        .await?;
        let result = self.try_pull(reference, options, progress).await;
        if result.as_ref().is_err_and(|error| error.kind() == ImageErrorKind::DiskFull) {
            let inner = Arc::clone(&self.inner);
            blocking(move || {
                inner.sweep();
                Ok(())
            })
            .await?;
        }
        result
    }

    async fn try_pull(
        &self,
        reference: &ImageReference,
        options: &PullOptions,
        progress: ProgressSink,
    ) -> Result<Image, ImageError> {
        let failed = |source| ImageError::from_registry(reference, source);
        let client = self.client(reference, options).await?;
        let wanted = reference.digest().or(reference.tag()).unwrap_or_default();
        let manifest = fetch_manifest(&client, reference, wanted).await?;
        if let Some(image) = self.name_present_image(&manifest, reference).await? {
            return Ok(image);
        }
        let Document::Manifest(layers) = manifest::parse(&manifest.bytes)? else {
            return Err(failed(RegistryError::Protocol {
                detail: "an index leads to an index".to_owned(),
            }));
        };
        let config_bytes =
            client.small_blob(&layers.config.digest, MAX_CONFIG_BYTES).await.map_err(failed)?;
        let config = config::parse(&config_bytes)?;
        config::check_platform(&config.config)?;
        config::check_layers(&config, layers.layers.len())?;
        let described = Described { manifest, layers, config_bytes, config };
        self.fetch_layers(Arc::new(client), reference, described, progress).await
    }

    async fn client(
        &self,
        reference: &ImageReference,
        options: &PullOptions,
    ) -> Result<Client, ImageError> {
        let (inner, reference, options) =
            (Arc::clone(&self.inner), reference.clone(), options.clone());
        // Reads the system's certificates.
        blocking(move || {
            let client = ClientOptions {
                plain_http: options.plain_http,
                idle_timeout: options.idle_timeout,
                certificates_directory: &inner.options.certificates_directory,
                credentials: inner.credentials.get(reference.registry()),
            };
            Client::new(&reference, client)
                .map_err(|source| ImageError::from_registry(&reference, source))
        })
        .await
    }

    /// When the image is here, the reference is all that may be missing.
    async fn name_present_image(
        &self,
        manifest: &FetchedManifest,
        reference: &ImageReference,
    ) -> Result<Option<Image>, ImageError> {
        if self.get(&manifest.digest).is_none() {
            return Ok(None);
        }
        let (inner, digest, reference) =
            (Arc::clone(&self.inner), manifest.digest.clone(), reference.clone());
        blocking(move || inner.add_reference(&digest, &reference)).await?;
        Ok(self.get(&manifest.digest))
    }

    async fn fetch_layers(
        &self,
        client: Arc<Client>,
        reference: &ImageReference,
        described: Described,
        progress: ProgressSink,
    ) -> Result<Image, ImageError> {
        let Described { manifest, layers, config_bytes, config } = described;
        let descriptors = layers.layers;
        progress.send(&ProgressEvent::Layers {
            layers: descriptors.iter().map(|layer| (layer.digest.clone(), layer.size)).collect(),
        });
        let mut pins = Pins::new(&self.inner);
        let mut coming = Vec::new();
        let mut parent: Option<Digest> = None;
        for (descriptor, diff_id) in descriptors.iter().zip(&config.diff_ids) {
            let chain = Digest::chain(parent.as_ref(), diff_id);
            let here = self.inner.find_layer(&chain, &mut pins);
            coming.push(match here {
                Some(layer) => Coming::Here(layer),
                None => Coming::Download(self.inner.begin_download(&client, descriptor, &progress)),
            });
            parent = Some(chain);
        }
        let mut done: Vec<LayerRecord> = Vec::new();
        for ((coming, descriptor), diff_id) in
            coming.into_iter().zip(&descriptors).zip(&config.diff_ids)
        {
            let digest = descriptor.digest.clone();
            let (layer, reused) = match coming {
                Coming::Here(layer) => (layer, true),
                Coming::Download(download) => {
                    let archive = download.finish(reference).await?;
                    progress.send(&ProgressEvent::Unpacking { layer: digest.clone() });
                    let below = done.clone();
                    self.unpack(archive, digest.clone(), diff_id.clone(), below, &mut pins).await?
                }
            };
            progress.send(&ProgressEvent::LayerReady { layer: digest, reused });
            done.push(layer);
        }
        let record = ImageRecord {
            config: config.config.into(),
            config_digest: Digest::of(&config_bytes),
            layers: done,
            imported_at: jiff::Timestamp::now(),
        };
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        let digest = blocking(move || {
            let digest = inner.commit(&manifest.bytes, &config_bytes, record, &[reference])?;
            for descriptor in &descriptors {
                inner.remove_partial(&descriptor.digest);
            }
            Ok(digest)
        })
        .await?;
        self.get(&digest).ok_or_else(|| ImageError::NotFound { name: digest.to_string() })
    }

    async fn unpack(
        &self,
        archive: std::fs::File,
        blob: Digest,
        diff_id: Digest,
        below: Vec<LayerRecord>,
        pins: &mut Pins,
    ) -> Result<(LayerRecord, bool), ImageError> {
        let inner = Arc::clone(&self.inner);
        let mut own_pins = Pins::new(&inner);
        let (layer, reused, own_pins) = blocking(move || {
            let job = LayerJob {
                archive,
                label: blob.to_string(),
                diff_id: Some(&diff_id),
                below: &below,
            };
            let (layer, reused) = inner.ensure_layer(job, &diff_id, &mut own_pins)?;
            Ok((layer, reused, own_pins))
        })
        .await?;
        pins.extend(own_pins);
        Ok((layer, reused))
    }
}

enum Coming {
    Here(LayerRecord),
    Download(download::Download),
}

/// The manifest for this machine that a tag or digest leads to.
async fn fetch_manifest(
    client: &Client,
    reference: &ImageReference,
    wanted: &str,
) -> Result<FetchedManifest, ImageError> {
    let failed = |source| ImageError::from_registry(reference, source);
    let first = client.manifest(wanted).await.map_err(failed)?;
    let Document::Index(entries) = manifest::parse(&first.bytes)? else { return Ok(first) };
    let chosen = manifest::choose(&entries).ok_or_else(|| ImageError::NoPlatform {
        name: reference.familiar(),
        wanted: config::host_architecture(),
        offered: manifest::offered(&entries),
    })?;
    let chosen = chosen.digest.to_string();
    client.manifest(&chosen).await.map_err(failed)
}

impl Inner {
    fn begin_download(
        self: &Arc<Self>,
        client: &Arc<Client>,
        descriptor: &manifest::Descriptor,
        progress: &ProgressSink,
    ) -> download::Download {
        download::Download::begin(
            Arc::clone(self),
            Arc::clone(client),
            descriptor,
            progress.clone(),
        )
    }
}
