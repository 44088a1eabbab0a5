//! The store: what is on disk, and who may change it when.
//!
//! ```text
//! <directory>/format            1
//! <directory>/lock              held by the one process that uses the store
//! <directory>/index.json        images and the references that name them
//! <directory>/blobs/sha256/HEX  manifests and configurations, by content
//! <directory>/layers/CHAIN/     fs/ (the tree) and layer.json; complete as soon as it has this name
//! <directory>/leases/UID~HEX    a sandbox uses an image; empty files
//! <directory>/used/HEX          modified when the image was last used
//! <directory>/partial/HEX       downloads to be resumed
//! <directory>/staging/          what is being made; emptied at every start
//! ```
//!
//! INVARIANT: a layer that a lease reaches is never removed. A lease whose image is not known (a lost index) protects all layers.

mod collect;
mod downloads;
mod index;
mod layers;
mod leases;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_model::image_reference::{ImageReference, parse_registry};
use rustix::fs::{FlockOperation, flock};

use crate::atomic_file;
use crate::config::ImageConfig;
use crate::credentials::{CredentialFile, Credentials};
use crate::digest::Digest;
use crate::error::{ImageError, io_error};
use crate::unpack::{Limits, UnpackHelper};

pub use collect::{Collected, HighWater};
use downloads::Downloads;
pub(crate) use index::{ImageRecord, LayerRecord};
pub(crate) use layers::{LayerJob, Pins};

/// SOURCE: the kubelet's default (imageGCHighThresholdPercent), with some room for disks that hold other things too.
const HIGH_WATER_PERCENT: u8 = 90;
/// So that what was just brought in for a later run is there then (guess: an hour of work).
const KEPT_UNUSED: Duration = Duration::from_secs(3600);
/// Format of the store's directory. Older is migrated, newer refused; this is the first.
const FORMAT: u32 = 1;
/// How long a lock is waited for that a forked child of its last owner may hold until its exec.
const HELD_UNTIL_AN_EXEC: Duration = Duration::from_millis(500);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Where things are, and bounds.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The file of registry credentials. Its directory must exist.
    pub credentials_file: PathBuf,
    /// A directory of certificates of private authorities, in PEM form (`*.pem`, `*.crt`): those at its top are trusted for every
    /// registry, those in a subdirectory `HOST` or `HOST:PORT` for that one. Need not exist.
    pub certificates_directory: PathBuf,
    /// The program that unpacks.
    pub helper: UnpackHelper,
    /// Unpacking and downloading end with an error rather than leave less than this free.
    pub min_free_bytes: u64,
    /// Before a pull or an import, images that nobody uses and that were neither used nor brought in for [`Self::kept_unused`] are
    /// removed while the disk is fuller than this; 100: never.
    pub high_water_percent: u8,
    /// How long an unused image is safe from being removed unasked.
    pub kept_unused: Duration,
    /// Most bytes of one unpacked layer.
    pub max_layer_bytes: u64,
    /// Most entries of one layer.
    pub max_layer_entries: u64,
}

impl StoreOptions {
    /// The options of an instance whose state is in `data_directory`: credentials and `certs/` lie there.
    #[must_use]
    pub fn in_data_directory(data_directory: &Path, helper: UnpackHelper) -> Self {
        let limits = Limits::new(256 << 20);
        Self {
            credentials_file: data_directory.join("registry-credentials.json"),
            certificates_directory: data_directory.join("certs"),
            helper,
            min_free_bytes: limits.min_free_bytes,
            high_water_percent: HIGH_WATER_PERCENT,
            kept_unused: KEPT_UNUSED,
            max_layer_bytes: limits.max_bytes,
            max_layer_entries: limits.max_entries,
        }
    }
}

/// An image that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: Digest,
    /// How it wants to be run.
    pub config: Arc<ImageConfig>,
    /// Unpacked layers, topmost first: `lowerdir` of an overlay. Owned by the ids of the image (0 to 65,535), with overlayfs's own
    /// whiteouts. Safe to use while leased.
    pub layers: Vec<PathBuf>,
}

/// What is known of an image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its references, in the familiar form, ascending.
    pub references: Vec<String>,
    /// How it wants to be run.
    pub config: Arc<ImageConfig>,
    /// Bytes of its files; layers shared with other images are counted for each.
    pub size_bytes: u64,
    /// Number of layers.
    pub layers: usize,
    /// When it came in.
    pub imported_at: jiff::Timestamp,
    /// When a sandbox last began to use it.
    pub last_used_at: Option<jiff::Timestamp>,
    /// Who uses it: uids, ascending.
    pub used_by: Vec<String>,
}

/// The images of one instance. Clones share one store; blocking work runs on tokio's blocking threads.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) directory: PathBuf,
    pub(crate) options: StoreOptions,
    pub(crate) credentials: CredentialFile,
    state: Mutex<State>,
    /// Held by whoever writes the index.
    writer: Mutex<()>,
    unpacking: KeyedLocks,
    pub(crate) downloads: Downloads,
    _lock: File,
}

/// What must be looked at and changed together. The lock is never held over slow work.
struct State {
    index: index::Index,
    leases: leases::Leases,
    /// Layers that a pull or an import has found or made and not yet put into the index.
    pins: HashMap<Digest, usize>,
}

impl ImageStore {
    /// Opens the store in `directory`, made when missing. What a crash left half-made is removed.
    ///
    /// # Errors
    /// [`ImageError::Locked`], [`ImageError::NewerFormat`], or what the file system refused.
    pub async fn open(
        directory: impl Into<PathBuf>,
        options: StoreOptions,
    ) -> Result<Self, ImageError> {
        let directory = directory.into();
        blocking(move || {
            Inner::open(directory, options).map(|inner| Self { inner: Arc::new(inner) })
        })
        .await
    }

    /// The image that a reference names here; never asks a registry. Does no I/O.
    #[must_use]
    pub fn resolve(&self, reference: &ImageReference) -> Option<Image> {
        let state = self.inner.state();
        let digest = state.index.find(reference)?;
        self.inner.image(&state, &digest)
    }

    /// The image of this manifest digest. Does no I/O.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Image> {
        self.inner.image(&self.inner.state(), digest)
    }

    /// From now on, and after a restart too, `holder` (a sandbox's uid) uses the image: neither it nor its layers are removed until
    /// [`release`](Self::release). Idempotent. Takes some microseconds.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when it was removed meanwhile.
    pub fn lease(&self, digest: &Digest, holder: &str) -> Result<Image, ImageError> {
        self.inner.lease(digest, holder)
    }

    /// `holder` is gone: ends all its leases. Idempotent.
    ///
    /// # Errors
    /// What the file system refused.
    pub fn release(&self, holder: &str) -> Result<(), ImageError> {
        self.inner.release(holder)
    }

    /// Ends the leases of every holder that `is_alive` does not know; to be called at start, when all sandboxes are known. Gives the
    /// holders whose leases were ended.
    ///
    /// # Errors
    /// What the file system refused.
    pub fn retain_leases(
        &self,
        is_alive: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ImageError> {
        let holders = self.inner.state().leases.holders();
        let dead: Vec<String> = holders.into_iter().filter(|holder| !is_alive(holder)).collect();
        for holder in &dead {
            self.inner.release(holder)?;
        }
        Ok(dead)
    }

    /// All images, the most recently imported first.
    #[must_use]
    pub fn list(&self) -> Vec<ImageSummary> {
        let digests = self.inner.state().index.digests();
        let mut list: Vec<_> =
            digests.iter().filter_map(|digest| self.inner.summary(digest)).collect();
        list.sort_by(|a, b| {
            b.imported_at.cmp(&a.imported_at).then_with(|| a.digest.cmp(&b.digest))
        });
        list
    }

    /// One image, by reference or manifest digest.
    ///
    /// # Errors
    /// [`ImageError::NotFound`].
    pub fn inspect(&self, name: &str) -> Result<ImageSummary, ImageError> {
        let digest = self.inner.find(name)?;
        self.inner.summary(&digest).ok_or_else(|| ImageError::NotFound { name: name.to_owned() })
    }

    /// Removes a reference, and with the last one its image; a digest removes the image with all its references.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::InUse`] when the image would go and sandboxes use it.
    pub async fn remove(&self, name: &str) -> Result<Collected, ImageError> {
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        blocking(move || inner.remove(&name)).await
    }

    /// Removes images that no sandbox uses, those not used for longest first, until the disk is below the mark; and leftovers of
    /// downloads and layers that no image has.
    ///
    /// # Errors
    /// What the file system refused.
    pub async fn collect(&self, high_water: HighWater) -> Result<Collected, ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.collect(high_water, Duration::ZERO)).await
    }

    /// Sets (`Some`) or removes a registry's credentials; says whether there were some before.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] for a text that is no registry; what the file system refused.
    pub async fn set_credentials(
        &self,
        registry: &str,
        credentials: Option<Credentials>,
    ) -> Result<bool, ImageError> {
        let inner = Arc::clone(&self.inner);
        let registry = parse_registry(registry)
            .map_err(|_| ImageError::NotFound { name: registry.to_owned() })?;
        blocking(move || inner.credentials.set(&registry, credentials)).await
    }

    /// Registries with credentials, and the user names.
    #[must_use]
    pub fn registries_with_credentials(&self) -> Vec<(String, String)> {
        self.inner.credentials.list()
    }
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore")
            .field("directory", &self.inner.directory)
            .finish_non_exhaustive()
    }
}

/// Runs blocking work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Interrupted { detail: error.to_string() }),
    }
}

impl Inner {
    fn open(directory: PathBuf, options: StoreOptions) -> Result<Self, ImageError> {
        // One of the process; whoever was first has chosen the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        make_directory(&directory)?;
        let lock = lock(&directory)?;
        check_format(&directory)?;
        for name in ["blobs", "blobs/sha256", "layers", "leases", "used", "partial"] {
            make_directory(&directory.join(name))?;
        }
        let staging = directory.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("empty", &staging, error));
            }
            _ => make_directory(&staging)?,
        }
        let index = index::Index::load(&directory)?;
        let leases = leases::Leases::load(&directory.join("leases"))?;
        let credentials = CredentialFile::open(options.credentials_file.clone())?;
        Ok(Self {
            state: Mutex::new(State { index, leases, pins: HashMap::new() }),
            writer: Mutex::new(()),
            unpacking: KeyedLocks::default(),
            downloads: Downloads::default(),
            directory,
            options,
            credentials,
            _lock: lock,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, state: &State, digest: &Digest) -> Option<Image> {
        let record = state.index.get(digest)?;
        let layers =
            record.layers.iter().rev().map(|layer| self.layer_tree(&layer.chain)).collect();
        Some(Image { digest: digest.clone(), config: Arc::clone(&record.config), layers })
    }

    pub(crate) fn summary(&self, digest: &Digest) -> Option<ImageSummary> {
        let state = self.state();
        let record = state.index.get(digest)?;
        Some(ImageSummary {
            digest: digest.clone(),
            references: state.index.references_of(digest),
            config: Arc::clone(&record.config),
            size_bytes: record.layers.iter().map(|layer| layer.size_bytes).sum(),
            layers: record.layers.len(),
            imported_at: record.imported_at,
            last_used_at: state.leases.last_used(digest),
            used_by: state.leases.holders_of(digest),
        })
    }

    /// The digest that a reference or a digest text means here.
    fn find(&self, name: &str) -> Result<Digest, ImageError> {
        let state = self.state();
        let found = match name.parse::<Digest>() {
            Ok(digest) => state.index.get(&digest).map(|_| digest),
            Err(_) => name
                .parse::<ImageReference>()
                .ok()
                .and_then(|reference| state.index.find(&reference)),
        };
        found.ok_or_else(|| ImageError::NotFound { name: name.chars().take(300).collect() })
    }

    /// What this digest's image is now called by, if it is another than `digest`.
    pub(crate) fn names_another(&self, reference: &ImageReference, digest: &Digest) -> bool {
        self.state().index.find(reference).is_some_and(|current| current != *digest)
    }

    /// Keeps an image's manifest and configuration and puts it into the index, under these references.
    pub(crate) fn commit(
        &self,
        manifest: &[u8],
        config: &[u8],
        record: ImageRecord,
        references: &[ImageReference],
    ) -> Result<Digest, ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_blob(config)?;
        let digest = self.put_blob(manifest)?;
        self.change_index(|index| index.insert(digest.clone(), record, references))?;
        Ok(digest)
    }

    /// Calls an image that is here by one more name.
    pub(crate) fn add_reference(
        &self,
        digest: &Digest,
        reference: &ImageReference,
    ) -> Result<(), ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.state().index.get(digest).cloned();
        let record = record.ok_or_else(|| ImageError::NotFound { name: digest.to_string() })?;
        self.change_index(|index| {
            index.insert(digest.clone(), record, std::slice::from_ref(reference))
        })
    }

    /// Changes the index on disk, then in memory. The caller holds the writer's lock.
    fn change_index(&self, change: impl FnOnce(&mut index::Index)) -> Result<(), ImageError> {
        let mut next = self.state().index.clone();
        change(&mut next);
        next.save(&self.directory)?;
        self.state().index = next;
        Ok(())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_entries: self.options.max_layer_entries,
            max_bytes: self.options.max_layer_bytes,
            min_free_bytes: self.options.min_free_bytes,
        }
    }

    /// Keeps a manifest or configuration.
    fn put_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if !path.exists() {
            atomic_file::replace(&path, bytes).map_err(|error| io_error("write", &path, error))?;
        }
        Ok(digest)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn staging_directory(&self) -> Result<tempfile::TempDir, ImageError> {
        let staging = self.directory.join("staging");
        tempfile::Builder::new()
            .prefix("s-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&staging)
            .map_err(|error| io_error("make a directory in", &staging, error))
    }
}

fn make_directory(path: &Path) -> Result<(), ImageError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io_error("make the directory", path, error))
}

/// Takes the store, and waits a little for it: a child of its last user that was just forked holds the lock until its exec.
fn lock(directory: &Path) -> Result<File, ImageError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|error| io_error("open", &path, error))?;
    let give_up_at = Instant::now() + HELD_UNTIL_AN_EXEC;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up_at => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ImageError::Locked { path: directory.into() });
            }
            Err(error) => return Err(io_error("lock", &path, error)),
        }
    }
}

fn check_format(directory: &Path) -> Result<(), ImageError> {
    let path = directory.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT.to_string() => Ok(()),
        Ok(found) => Err(ImageError::NewerFormat {
            path: directory.into(),
            found: found.trim().chars().take(20).collect(),
            known: FORMAT,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            atomic_file::replace(&path, format!("{FORMAT}\n").as_bytes())
                .map_err(|error| io_error("write", &path, error))
        }
        Err(error) => Err(io_error("read", &path, error)),
    }
}

/// One lock per digest, for as long as somebody wants it.
#[derive(Default)]
pub(crate) struct KeyedLocks(Mutex<HashMap<Digest, Arc<Mutex<()>>>>);

impl KeyedLocks {
    /// Runs `work` while no other work of this key runs.
    pub(crate) fn run<T>(&self, key: &Digest, work: impl FnOnce() -> T) -> T {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = Arc::clone(all().entry(key.clone()).or_default());
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        drop(guard);
        let mut locks = all();
        // Two: the map's and this one. Whoever waits has a third.
        if Arc::strong_count(&lock) == 2 {
            locks.remove(key);
        }
        result
    }
}
