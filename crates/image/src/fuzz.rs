//! Bodies of fuzz targets: whatever the bytes, they return. Run over a corpus as ordinary tests, and by a fuzz driver.

use crate::unpack::{LayerOptions, Limits, extract_archive, stage_archive};
use crate::{config, manifest, users};

/// A registry's manifest, index, or an image's configuration.
pub fn fuzz_manifest(data: &[u8]) {
    if let Ok(manifest::Document::Index(entries)) = manifest::parse(data) {
        let _ = manifest::choose(&entries);
        let _ = manifest::offered(&entries);
    }
    if let Ok(document) = config::parse(data) {
        for path in document.config.volumes.iter().chain([&document.config.working_directory]) {
            assert!(path.starts_with('/') && !path.split('/').any(|name| name == ".."), "{path:?}");
        }
        let _ = config::check_layers(&document, 1);
    }
}

/// A layer's archive, unpacked into a directory of its own, and the same bytes as an image archive; as they are, and with right
/// checksums, which no fuzzer finds. Needs root: it gives owners.
pub fn fuzz_tar(data: &[u8]) {
    unpack_anything(data);
    let mut repaired = data.to_vec();
    repair_checksums(&mut repaired);
    if repaired != data {
        unpack_anything(&repaired);
    }
}

/// SOURCE: POSIX ustar: the sum of the header's bytes, the checksum's own counted as spaces.
fn repair_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn unpack_anything(data: &[u8]) {
    let limits = Limits { max_entries: 1000, max_bytes: 1 << 20, min_free_bytes: 0 };
    for lowest in [true, false] {
        let Ok((directory, root)) = scratch() else { return };
        let options = LayerOptions { limits, lowest, require_end_mark: lowest };
        if let Ok(unpacked) = extract_archive(data, root, options) {
            assert!(
                unpacked.content_bytes <= limits.max_bytes
                    && unpacked.entries <= limits.max_entries
            );
        }
        drop(directory);
    }
    if let Ok((_directory, root)) = scratch() {
        let _ = stage_archive(data, &root, limits);
    }
}

/// `USER`, /etc/passwd and /etc/group, separated by NUL bytes.
pub fn fuzz_users(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default().to_vec();
    let (user, passwd, group) = (next(), next(), next());
    let Ok(user) = std::str::from_utf8(&user) else { return };
    if let Ok(ids) = users::resolve_in(user, || Ok(passwd), || Ok(group)) {
        assert!(ids.uid <= users::MAX_ID && ids.gid <= users::MAX_ID && ids.home.starts_with('/'));
    }
}

fn scratch() -> std::io::Result<(tempfile::TempDir, std::os::fd::OwnedFd)> {
    let directory = tempfile::tempdir()?;
    let root = std::fs::File::open(directory.path())?.into();
    Ok((directory, root))
}
