//! A store in a directory of its own, and archives made by hand.
#![allow(dead_code, unreachable_pub, reason = "each test program uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_image::{Digest, ImageStore, ProgressSink, StoreOptions, UnpackHelper};

/// The helper of these tests.
pub fn helper() -> UnpackHelper {
    let mut helper = UnpackHelper::program(env!("CARGO_BIN_EXE_atoll-unpack-helper"), &[]);
    helper.timeout = Duration::from_secs(60);
    helper
}

/// A data directory with a store.
pub struct Scratch {
    pub directory: tempfile::TempDir,
    pub store: ImageStore,
}

pub fn options(directory: &Path) -> StoreOptions {
    let mut options = StoreOptions::in_data_directory(directory, helper());
    options.min_free_bytes = 1 << 20;
    options
}

pub async fn scratch() -> Scratch {
    scratch_with(|_| {}).await
}

pub async fn scratch_with(change: impl FnOnce(&mut StoreOptions)) -> Scratch {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    change(&mut options);
    let store = ImageStore::open(directory.path().join("images"), options).await.unwrap();
    Scratch { directory, store }
}

impl Scratch {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Imports bytes as a root file system (or whatever they are) under a name.
    pub async fn import(
        &self,
        bytes: &[u8],
        reference: &str,
    ) -> Result<PathBuf, atoll_image::ImageError> {
        let file = self.write("import.tar", bytes);
        let images =
            self.store.import(file, Some(reference.parse().unwrap()), ProgressSink::none()).await?;
        Ok(self.store.get(&images[0].digest).unwrap().layers[0].clone())
    }

    /// Names in a directory of the store, sorted.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path("images").join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing of a failed operation is left.
    pub fn assert_nothing_half_made(&self) {
        assert_eq!(self.names("staging"), Vec::<String>::new());
        assert_eq!(self.names("layers"), Vec::<String>::new());
        assert_eq!(self.store.list(), []);
    }
}

/// A tar written header by header, lies included.
#[derive(Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// One entry; `change` may make its header lie (before the checksum).
    pub fn entry(
        mut self,
        kind: tar::EntryType,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        for (long, kind, at, room) in [(name, b'L', 0, 100), (link, b'K', 157, 100)] {
            if long.len() < room {
                header.as_mut_bytes()[at..at + long.len()].copy_from_slice(long);
            } else {
                self = self.extension(kind, &[long, b"\0"].concat());
                header.as_mut_bytes()[at..at + room - 1].copy_from_slice(&long[..room - 1]);
            }
        }
        change(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.data(data)
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        let padding = data.len().next_multiple_of(512) - data.len();
        self.bytes.resize(self.bytes.len() + padding, 0);
        self
    }

    /// An extension header of this kind (`L`, `K`, `x`, `g`).
    pub fn extension(self, kind: u8, data: &[u8]) -> Self {
        self.entry(tar::EntryType::new(kind), b"././@LongLink", b"", data, |_| {})
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, name.as_bytes(), b"", data, |_| {})
    }

    pub fn file_with(self, name: &str, data: &[u8], change: impl FnOnce(&mut tar::Header)) -> Self {
        self.entry(tar::EntryType::Regular, name.as_bytes(), b"", data, change)
    }

    pub fn directory(self, name: &str) -> Self {
        self.entry(tar::EntryType::Directory, name.as_bytes(), b"", b"", |_| {})
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    /// A pax header with these records, for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut block = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(block, "{length} {key}=").unwrap();
            block.extend_from_slice(value);
            block.push(b'\n');
        }
        self.extension(b'x', &block)
    }

    /// Without an end mark.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image as its blobs.
pub struct Built {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Compressed layers, lowest first.
    pub layers: Vec<Vec<u8>>,
}

impl Built {
    /// An image of these plain layer archives, gzipped, with this `config` section.
    pub fn new(layers: &[Vec<u8>], section: serde_json::Value) -> Self {
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": section,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": descriptors,
        })
        .to_string()
        .into_bytes();
        Self { manifest, config, layers }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// An OCI layout whose index gives the image this name.
    pub fn layout(&self, name: &str) -> Vec<u8> {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest);
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let mut tar = Tar::new()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index.as_bytes());
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            tar = tar.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
        }
        tar.finish()
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

pub mod fake_registry;
pub mod namespace;

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
