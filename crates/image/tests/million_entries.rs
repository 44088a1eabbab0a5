//! Archives at the limit of entries that real images have: one below is taken, one above is refused, in bounded time and memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "skipped tests and long ones say so")]

mod support;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atoll_image::ProgressSink;
use support::{Scratch, Tar, helper, scratch_with};
use tar::EntryType;

/// The limit that a server has.
const LIMIT: u64 = 1_000_000;
/// Most memory of a helper: a hundredth of what an ordinary machine has, and far more than entries of ordinary names take.
const MAX_HELPER_KIB: u64 = 192 << 10;

/// A gzipped archive of entries that differ in their numbers only, written as it is made.
struct Archive {
    out: flate2::write::GzEncoder<BufWriter<File>>,
}

impl Archive {
    fn create(path: &Path) -> Self {
        let file = BufWriter::new(File::create(path).unwrap());
        Self { out: flate2::write::GzEncoder::new(file, flate2::Compression::fast()) }
    }

    /// `count` entries of this kind, whose names have a number of seven digits after `prefix`.
    fn entries(&mut self, kind: EntryType, prefix: &str, numbers: std::ops::Range<u64>) {
        let first = Tar::new().entry(kind, format!("{prefix}0000000").as_bytes(), b"", b"", |_| {});
        let mut header = first.cut();
        let sum: u64 = header_sum(&header);
        for number in numbers {
            let digits = format!("{number:07}");
            header[prefix.len()..prefix.len() + 7].copy_from_slice(digits.as_bytes());
            let more: u64 = digits.bytes().map(|digit| u64::from(digit - b'0')).sum();
            header[148..155].copy_from_slice(format!("{:07o}", sum + more).as_bytes());
            self.out.write_all(&header).unwrap();
        }
    }

    fn finish(mut self) {
        self.out.write_all(&[0; 1024]).unwrap();
        self.out.finish().unwrap().flush().unwrap();
    }
}

/// SOURCE: tar(5): the sum of all bytes of a header, its own field counted as spaces.
fn header_sum(header: &[u8]) -> u64 {
    let plain = header[..148].iter().chain(&header[156..512]);
    plain.map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ')
}

/// The most memory that any child of this process has had, in KiB, looked at until told to end.
fn watch_children(ended: &AtomicBool) -> u64 {
    let mut most = 0;
    let own = std::process::id().to_string();
    while !ended.load(Ordering::SeqCst) {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name))?;
                line.split_whitespace().nth(1)
            };
            if field("PPid:") == Some(own.as_str()) {
                let kib = field("VmHWM:").and_then(|text| text.parse().ok()).unwrap_or(0);
                most = most.max(kib);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    most
}

/// Imports an archive; says how long it took, and what became of it.
async fn import(
    scratch: &Scratch,
    name: &str,
    write: impl FnOnce(&mut Archive),
) -> Result<PathBuf, String> {
    let path = scratch.path("many.tar.gz");
    let mut archive = Archive::create(&path);
    write(&mut archive);
    archive.finish();
    let begun = Instant::now();
    let ended = AtomicBool::new(false);
    let (result, most_kib) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch_children(&ended));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let import =
            scratch.store.import(&path, Some("many:1".parse().unwrap()), ProgressSink::none());
        let result = scope
            .spawn(move || {
                let result = runtime.block_on(import);
                runtime.shutdown_background();
                result
            })
            .join()
            .unwrap();
        ended.store(true, Ordering::SeqCst);
        (result, watching.join().unwrap())
    });
    println!("{name}: {:?}, at most {most_kib} KiB", begun.elapsed());
    assert!(most_kib > 1000, "no helper was seen");
    assert!(most_kib < MAX_HELPER_KIB, "{name}: the helper had {most_kib} KiB");
    match result {
        Ok(images) => Ok(scratch.store.get(&images[0].digest).unwrap().layers[0].clone()),
        Err(error) => {
            scratch.assert_nothing_half_made();
            Err(error.to_string())
        }
    }
}

async fn store() -> Scratch {
    scratch_with(|options| {
        assert_eq!(options.max_layer_entries, LIMIT, "what a server has");
        let mut helper = helper();
        helper.timeout = Duration::from_secs(600);
        options.helper = helper;
    })
    .await
}

/// Devices are counted and skipped: the archive is as long as one of files, and the disk is spared.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_entries_are_taken_and_one_more_is_refused() {
    let scratch = store().await;
    let refused = import(&scratch, "one too many", |archive| {
        archive.entries(EntryType::Char, "device-", 0..LIMIT + 1);
    });
    let error = refused.await.unwrap_err();
    assert!(error.contains("exceeds the limit of 1000000 entries"), "{error}");
    let taken = import(&scratch, "as many as allowed", |archive| {
        archive.entries(EntryType::Char, "device-", 0..LIMIT);
    });
    let tree = taken.await.unwrap();
    let note = std::fs::read_to_string(tree.with_file_name("layer.json")).unwrap();
    assert!(note.contains(r#""skipped_devices":1000000"#), "{note}");
}

/// The same with files on a disk, in a thousand directories. Takes minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_files_are_taken_and_one_more_is_refused() {
    if std::env::var_os("ATOLL_TEST_FULL").is_none() {
        println!(
            "SKIPPED: a million files on disk: only where ATOLL_TEST_FULL is set; a million entries are tried all the same"
        );
        return;
    }
    let scratch = store().await;
    let files = |archive: &mut Archive, count: u64| {
        for directory in 0..1000 {
            archive.entries(EntryType::Directory, "d", directory..directory + 1);
            let prefix = format!("d{directory:07}/f");
            archive.entries(EntryType::Regular, &prefix, 0..999);
        }
        if count > LIMIT {
            archive.entries(EntryType::Regular, "more", 0..count - LIMIT);
        }
    };
    let refused = import(&scratch, "a file too many", |archive| files(archive, LIMIT + 1)).await;
    assert!(refused.unwrap_err().contains("exceeds the limit of 1000000 entries"));
    let tree = import(&scratch, "a million files", |archive| files(archive, LIMIT)).await.unwrap();
    assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 1000);
    assert_eq!(std::fs::read_dir(tree.join("d0000999")).unwrap().count(), 999);
}

/// Few entries can name many bytes: what is remembered of them is bounded too.
#[tokio::test(flavor = "multi_thread")]
async fn paths_that_would_fill_the_memory_are_refused() {
    let scratch = store().await;
    let refused = import(&scratch, "long paths", |archive| {
        // Fifteen names of 200 bytes, made without an entry of their own: 24 KB are to be remembered for each path of 3 KB.
        for number in 0..2000 {
            let mut path = format!("{number:07}");
            (0..15).for_each(|_| path.push_str(&format!("/{}", "n".repeat(200))));
            let entry = Tar::new().pax(&[("path", path.as_bytes())]).file("f", b"").cut();
            archive.out.write_all(&entry).unwrap();
        }
    });
    let error = refused.await.unwrap_err();
    assert!(error.contains("bytes in paths of directories"), "{error}");
}
