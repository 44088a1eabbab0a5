//! Importing archives: `docker save`, OCI layouts, root file systems.
//!
//! The confined helper takes an archive apart; here its parts are only named by numbers and digests. A name in an archive is looked
//! up in a map, never on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_model::image_reference::ImageReference;
use serde::Deserialize;

use crate::config::{self, MAX_CONFIG_BYTES};
use crate::digest::Digest;
use crate::error::{ImageError, io_error};
use crate::manifest::{self, Descriptor, Document, MAX_MANIFEST_BYTES};
use crate::progress::{ProgressEvent, ProgressSink};
use crate::store::{ImageRecord, ImageStore, ImageSummary, Inner, LayerJob, Pins, blocking};
use crate::unpack::{Staged, StagedKind};

/// Deepest nesting of indexes in a layout. `docker buildx` writes two.
const MAX_INDEX_DEPTH: usize = 4;
/// Most images of one archive (guess).
const MAX_IMAGES: usize = 64;

/// One image of an archive, its parts lying in the staging directory.
struct ArchivedImage {
    /// What the archive calls it.
    references: Vec<ImageReference>,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// File, digest and size of each layer as stored, lowest first.
    layers: Vec<(PathBuf, Digest, u64)>,
}

impl ImageStore {
    /// Imports an archive: `docker save`, OCI layout, or a root file system; plain, gzip or zstd. With a reference the archive's own
    /// names are ignored. Without one they are used, except that none of them takes over a name that stands for another image.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing is left of a failed import.
    pub async fn import(
        &self,
        path: impl Into<PathBuf>,
        reference: Option<ImageReference>,
        progress: ProgressSink,
    ) -> Result<Vec<ImageSummary>, ImageError> {
        let (inner, path) = (Arc::clone(&self.inner), path.into());
        blocking(move || {
            inner.make_room();
            match import(&inner, &path, reference.as_ref(), &progress) {
                Ok(digests) => {
                    Ok(digests.iter().filter_map(|digest| inner.summary(digest)).collect())
                }
                Err(error) => {
                    inner.sweep();
                    Err(error)
                }
            }
        })
        .await
    }
}

/// Imports an archive; gives the manifest digests.
fn import(
    store: &Arc<Inner>,
    path: &Path,
    reference: Option<&ImageReference>,
    progress: &ProgressSink,
) -> Result<Vec<Digest>, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|error| io_error("open", path, error))?;
    if !metadata.is_file() {
        return Err(ImageError::BadArchive {
            path: path.into(),
            reason: "it is no regular file".to_owned(),
        });
    }
    let label = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let staging = store.staging_directory()?;
    let staged = store.stage(path, &label, staging.path())?;
    if !staged.image_archive {
        let reference =
            reference.ok_or_else(|| ImageError::NeedsReference { path: path.into() })?;
        return import_root_file_system(store, path, label, reference, progress)
            .map(|digest| vec![digest]);
    }
    let archive = Archive { path, directory: staging.path(), files: files_by_name(staged) };
    let mut images = archive.images()?;
    if let Some(reference) = reference {
        if images.len() > 1 {
            return Err(ImageError::SeveralImages { path: path.into(), count: images.len() });
        }
        for image in &mut images {
            image.references = vec![reference.clone()];
        }
    }
    check_names(store, path, &images, reference.is_some())?;
    images.iter().map(|image| import_image(store, image, progress)).collect()
}

/// An archive's own names take nothing over (containerd GO-2026-5338: an imported archive replaced a tag of another image).
fn check_names(
    store: &Arc<Inner>,
    path: &Path,
    images: &[ArchivedImage],
    chosen: bool,
) -> Result<(), ImageError> {
    let mut seen = BTreeMap::new();
    for image in images {
        if image.references.is_empty() {
            return Err(ImageError::NeedsReference { path: path.into() });
        }
        let digest = Digest::of(&image.manifest);
        for reference in &image.references {
            let twice = seen
                .insert(reference.to_string(), digest.clone())
                .is_some_and(|other| other != digest);
            if twice || (!chosen && store.names_another(reference, &digest)) {
                return Err(ImageError::WouldReplace { reference: reference.familiar() });
            }
        }
    }
    Ok(())
}

fn import_image(
    store: &Arc<Inner>,
    image: &ArchivedImage,
    progress: &ProgressSink,
) -> Result<Digest, ImageError> {
    let document = config::parse(&image.config)?;
    config::check_platform(&document.config)?;
    config::check_layers(&document, image.layers.len())?;
    progress.send(&ProgressEvent::Layers {
        layers: image.layers.iter().map(|(_, digest, size)| (digest.clone(), *size)).collect(),
    });
    let mut pins = Pins::new(store);
    let mut layers = Vec::new();
    for ((file, digest, _), diff_id) in image.layers.iter().zip(&document.diff_ids) {
        progress.send(&ProgressEvent::Unpacking { layer: digest.clone() });
        let job = LayerJob {
            archive: File::open(file).map_err(|error| io_error("open", file, error))?,
            label: digest.to_string(),
            diff_id: Some(diff_id),
            below: &layers,
        };
        let (layer, reused) = store.ensure_layer(job, diff_id, &mut pins)?;
        progress.send(&ProgressEvent::LayerReady { layer: digest.clone(), reused });
        layers.push(layer);
    }
    let record = ImageRecord {
        config: document.config.into(),
        config_digest: Digest::of(&image.config),
        layers,
        imported_at: jiff::Timestamp::now(),
    };
    store.commit(&image.manifest, &image.config, record, &image.references)
}

fn import_root_file_system(
    store: &Arc<Inner>,
    path: &Path,
    label: String,
    reference: &ImageReference,
    progress: &ProgressSink,
) -> Result<Digest, ImageError> {
    let mut pins = Pins::new(store);
    let archive = File::open(path).map_err(|error| io_error("open", path, error))?;
    let job = LayerJob { archive, label, diff_id: None, below: &[] };
    let (layer, (diff_id, size)) = store.make_layer(job, &mut pins)?;
    progress.send(&ProgressEvent::LayerReady { layer: diff_id.clone(), reused: false });
    let config = serde_json::json!({
        "architecture": config::host_architecture(),
        "os": "linux",
        "config": {
            "Cmd": ["/bin/sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string()
    .into_bytes();
    let manifest = manifest::write((Digest::of(&config), config.len() as u64), &[(diff_id, size)])
        .map_err(|error| bad(path, error))?;
    let record = ImageRecord {
        config: config::parse(&config)?.config.into(),
        config_digest: Digest::of(&config),
        layers: vec![layer],
        imported_at: jiff::Timestamp::now(),
    };
    store.commit(&manifest, &config, record, std::slice::from_ref(reference))
}

fn files_by_name(staged: Staged) -> BTreeMap<String, StagedKind> {
    staged.files.into_iter().map(|file| (file.name, file.kind)).collect()
}

fn bad(path: &Path, reason: impl std::fmt::Display) -> ImageError {
    ImageError::BadArchive { path: path.into(), reason: reason.to_string() }
}

/// A staged archive.
struct Archive<'a> {
    path: &'a Path,
    directory: &'a Path,
    files: BTreeMap<String, StagedKind>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Archive<'_> {
    /// An OCI layout where there is one (newer `docker save` writes both: its digests are those of registries), else `docker save`.
    fn images(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        let mut images =
            if self.files.contains_key("index.json") { self.layout()? } else { self.docker()? };
        if images.is_empty() {
            return Err(bad(self.path, "it holds no image for this machine"));
        }
        if images.len() > MAX_IMAGES {
            return Err(bad(self.path, format!("it holds more than {MAX_IMAGES} images")));
        }
        for image in &mut images {
            image.references.sort();
            image.references.dedup();
        }
        Ok(images)
    }

    fn layout(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        let Document::Index(entries) =
            manifest::parse(&self.read("index.json", MAX_MANIFEST_BYTES)?)?
        else {
            return Err(bad(self.path, "its index.json is no index"));
        };
        let mut tags = self.docker_tags();
        let mut images: BTreeMap<Digest, ArchivedImage> = BTreeMap::new();
        for entry in &entries {
            let Some((digest, manifest)) = self.manifest(entry, 0)? else { continue };
            let mut references = annotated_references(entry);
            let Document::Manifest(parsed) = manifest::parse(&manifest)? else { continue };
            references.extend(tags.remove(&parsed.config.digest).unwrap_or_default());
            if let Some(known) = images.get_mut(&digest) {
                known.references.extend(references);
                continue;
            }
            let layers = parsed
                .layers
                .iter()
                .map(|layer| {
                    let (file, size) = self.blob(&layer.digest)?;
                    Ok((file, layer.digest.clone(), size))
                })
                .collect::<Result<_, ImageError>>()?;
            let config = self.read(&blob_name(&parsed.config.digest), MAX_CONFIG_BYTES)?;
            self.blob(&parsed.config.digest)?;
            images.insert(digest, ArchivedImage { references, manifest, config, layers });
        }
        Ok(images.into_values().collect())
    }

    /// The manifest for this machine that an index's entry leads to.
    fn manifest(
        &self,
        entry: &Descriptor,
        depth: usize,
    ) -> Result<Option<(Digest, Vec<u8>)>, ImageError> {
        if depth > MAX_INDEX_DEPTH {
            return Err(bad(self.path, "its indexes are nested too deep"));
        }
        let foreign =
            entry.platform.is_some() && manifest::choose(std::slice::from_ref(entry)).is_none();
        if foreign {
            return Ok(None);
        }
        self.blob(&entry.digest)?;
        let bytes = self.read(&blob_name(&entry.digest), MAX_MANIFEST_BYTES)?;
        match manifest::parse(&bytes)? {
            Document::Manifest(_) => Ok(Some((entry.digest.clone(), bytes))),
            Document::Index(entries) => match manifest::choose(&entries) {
                Some(chosen) => self.manifest(chosen, depth + 1),
                None => Ok(None),
            },
        }
    }

    /// Names that an old manifest.json beside an OCI layout gives, by configuration.
    fn docker_tags(&self) -> BTreeMap<Digest, Vec<ImageReference>> {
        let entries = self.docker_entries().unwrap_or_default();
        entries
            .into_iter()
            .filter_map(|entry| match self.find(&entry.config)? {
                StagedKind::File { digest, .. } => Some((digest.clone(), tags(&entry))),
                StagedKind::Link { .. } => None,
            })
            .collect()
    }

    fn docker_entries(&self) -> Result<Vec<DockerEntry>, ImageError> {
        let bytes = self.read("manifest.json", MAX_MANIFEST_BYTES)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| bad(self.path, format!("manifest.json: {error}")))
    }

    fn docker(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        self.docker_entries()?.iter().map(|entry| self.docker_image(entry)).collect()
    }

    fn docker_image(&self, entry: &DockerEntry) -> Result<ArchivedImage, ImageError> {
        let config = self.read(&entry.config, MAX_CONFIG_BYTES)?;
        self.check_config_name(&entry.config, &config)?;
        let names = entry.layers.clone().unwrap_or_default();
        if names.len() > config::MAX_LAYERS {
            return Err(bad(
                self.path,
                format!("an image of more than {} layers", config::MAX_LAYERS),
            ));
        }
        let layers = names
            .iter()
            .map(|name| match self.find(name) {
                Some(StagedKind::File { number, size_bytes, digest }) => {
                    Ok((self.file(*number), digest.clone(), *size_bytes))
                }
                _ => Err(bad(self.path, format!("its layer {} is missing", name.escape_debug()))),
            })
            .collect::<Result<Vec<_>, ImageError>>()?;
        let described: Vec<_> =
            layers.iter().map(|(_, digest, size)| (digest.clone(), *size)).collect();
        let manifest = manifest::write((Digest::of(&config), config.len() as u64), &described)
            .map_err(|error| bad(self.path, error))?;
        Ok(ArchivedImage { references: tags(entry), manifest, config, layers })
    }

    /// `<hex>.json` and `blobs/sha256/<hex>` promise their content.
    fn check_config_name(&self, name: &str, config: &[u8]) -> Result<(), ImageError> {
        let last = name.rsplit('/').next().unwrap_or(name);
        let hex = last.strip_suffix(".json").unwrap_or(last);
        let actual = Digest::of(config);
        match format!("sha256:{hex}").parse::<Digest>() {
            Ok(expected) if expected != actual => Err(ImageError::DigestMismatch {
                what: "the image's configuration".to_owned(),
                expected,
                actual,
            }),
            _ => Ok(()),
        }
    }

    /// A blob, whose content is what its name says.
    fn blob(&self, digest: &Digest) -> Result<(PathBuf, u64), ImageError> {
        match self.find(&blob_name(digest)) {
            Some(StagedKind::File { number, size_bytes, digest: actual }) if actual == digest => {
                Ok((self.file(*number), *size_bytes))
            }
            Some(StagedKind::File { digest: actual, .. }) => Err(ImageError::DigestMismatch {
                what: "a blob of the archive".to_owned(),
                expected: digest.clone(),
                actual: actual.clone(),
            }),
            _ => Err(bad(self.path, format!("its blob {digest} is missing"))),
        }
    }

    /// An entry by its name; a link (old `docker save` links equal layers) is followed once.
    fn find(&self, name: &str) -> Option<&StagedKind> {
        match self.files.get(name)? {
            StagedKind::Link { target } => {
                let target = target.strip_prefix("../").unwrap_or(target);
                self.files.get(target).filter(|kind| matches!(kind, StagedKind::File { .. }))
            }
            file => Some(file),
        }
    }

    fn file(&self, number: u32) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let shown = || name.chars().take(100).collect::<String>().escape_debug().to_string();
        match self.find(name) {
            Some(StagedKind::File { size_bytes, .. }) if *size_bytes > limit => {
                Err(bad(self.path, format!("its {} has more than {limit} bytes", shown())))
            }
            Some(StagedKind::File { number, .. }) => {
                let file = self.file(*number);
                std::fs::read(&file).map_err(|error| io_error("read", &file, error))
            }
            _ => Err(bad(self.path, format!("its {} is missing", shown()))),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn tags(entry: &DockerEntry) -> Vec<ImageReference> {
    entry.repo_tags.iter().flatten().filter_map(|tag| tag.parse().ok()).collect()
}

/// The full names that tools write into a layout's index. A bare tag (`latest`) is no name.
fn annotated_references(entry: &Descriptor) -> Vec<ImageReference> {
    let annotations = entry.annotations.iter().flatten();
    annotations
        .filter(|(key, value)| match key.as_str() {
            "io.containerd.image.name" => true,
            "org.opencontainers.image.ref.name" => value.contains([':', '/']),
            _ => false,
        })
        .filter_map(|(_, value)| value.parse().ok())
        .collect()
}
