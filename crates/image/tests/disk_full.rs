//! A full disk: a clear error, nothing left, and all is well once there is room.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use atoll_image::{ImageErrorKind, ImageStore, ProgressSink, PullOptions};
use support::fake_registry::{FakeRegistry, serve_image};
use support::namespace::{has_own_mounts, mount_tmpfs};
use support::{Built, Scratch, Tar, noise, options};

/// A store on a disk of 16 MiB, archives elsewhere.
async fn small_store(min_free_bytes: u64) -> Scratch {
    let directory = tempfile::tempdir().unwrap();
    mount_tmpfs(&directory.path().join("images"), 16);
    let mut options = options(directory.path());
    options.min_free_bytes = min_free_bytes;
    let store = ImageStore::open(directory.path().join("images"), options).await.unwrap();
    Scratch { directory, store }
}

#[tokio::test]
async fn an_import_that_does_not_fit_leaves_nothing() {
    if !has_own_mounts("an_import_that_does_not_fit_leaves_nothing") {
        return;
    }
    for min_free_bytes in [0, 4 << 20] {
        let scratch = small_store(min_free_bytes).await;
        let layers = [
            Tar::new().file("a", &noise(4 << 20, 1)).finish(),
            Tar::new().file("b", &noise(9 << 20, 2)).finish(),
        ];
        let built = Built::new(&layers, serde_json::json!({}));
        for bytes in [built.layout("x:1"), Tar::new().file("a", &noise(20 << 20, 3)).finish()] {
            let error = scratch.import(&bytes, "x:1").await.unwrap_err();
            assert_eq!(error.kind(), ImageErrorKind::DiskFull, "{error}");
            assert!(
                error.to_string().contains("full") && error.to_string().contains("atoll image gc"),
                "{error}"
            );
            scratch.assert_nothing_half_made();
        }
        scratch.import(&Tar::new().file("a", &noise(6 << 20, 4)).finish(), "x:1").await.unwrap();
    }
}

#[tokio::test]
async fn a_pull_that_does_not_fit_says_so_and_works_once_there_is_room() {
    if !has_own_mounts("a_pull_that_does_not_fit_says_so_and_works_once_there_is_room") {
        return;
    }
    let scratch = small_store(1 << 20).await;
    let built = Arc::new(Built::new(
        &[Tar::new().file("a", &noise(5 << 20, 5)).finish()],
        serde_json::json!({}),
    ));
    let served = Arc::clone(&built);
    let registry = FakeRegistry::start(move |request| serve_image(&served, request));
    let reference = registry.reference("team/app:1").parse().unwrap();
    let options = PullOptions { plain_http: true, ..PullOptions::default() };
    let ballast = scratch.path("images/ballast");
    // First there is no room for the download, then none for what comes out of it.
    for ballast_bytes in [11 << 20, 7 << 20] {
        std::fs::write(&ballast, noise(ballast_bytes, 6)).unwrap();
        let error =
            scratch.store.pull(&reference, &options, ProgressSink::none()).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::DiskFull, "{error}");
        scratch.assert_nothing_half_made();
    }
    std::fs::remove_file(&ballast).unwrap();
    let image = scratch.store.pull(&reference, &options, ProgressSink::none()).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[0].join("a")).unwrap().len(), 5 << 20);
    assert_eq!(
        registry.requests_of("/blobs/").len(),
        4,
        "three configurations, and the layer once: it was kept"
    );
}
