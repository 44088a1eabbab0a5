//! Leases, removal, collection, and what is left after a crash.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use atoll_image::{Credentials, Digest, HighWater, ImageErrorKind, ImageStore, ProgressSink};
use support::{Built, Scratch, Tar, noise, options, scratch, scratch_with};

const HOLDER: &str = "00112233445566aa";

/// Imports an image of a shared layer and one of its own.
async fn import(scratch: &Scratch, name: &str) -> Digest {
    let own = Tar::new().file(name, &noise(1000, name.len() as u64)).finish();
    let built =
        Built::new(&[Tar::new().file("base", b"base").finish(), own], serde_json::json!({}));
    let file = scratch.write("image.tar", &built.layout("x:1"));
    let reference = format!("{name}:1").parse().unwrap();
    scratch.store.import(file, Some(reference), ProgressSink::none()).await.unwrap();
    built.digest()
}

/// The same directory, opened by another process as it were.
async fn reopen(scratch: Scratch) -> Scratch {
    let Scratch { directory, store } = scratch;
    drop(store);
    let store =
        ImageStore::open(directory.path().join("images"), options(directory.path())).await.unwrap();
    Scratch { directory, store }
}

#[tokio::test]
async fn a_leased_image_is_never_removed_not_even_after_a_restart() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let image = scratch.store.lease(&digest, HOLDER).unwrap();
    scratch.store.lease(&digest, HOLDER).unwrap();
    let error = scratch.store.remove("one:1").await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Conflict);
    assert!(error.to_string().contains(HOLDER), "who uses it: {error}");
    let scratch = reopen(scratch).await;
    assert_eq!(scratch.store.inspect("one:1").unwrap().used_by, [HOLDER]);
    scratch.store.remove(&digest.to_string()).await.unwrap_err();
    let collected = scratch.store.collect(HighWater::StoreBytes(0)).await.unwrap();
    assert_eq!(collected.removed, Vec::<String>::new());
    assert!(image.layers.iter().all(|layer| layer.is_dir()));

    assert_eq!(
        scratch.store.retain_leases(|holder| holder == HOLDER).unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(scratch.store.retain_leases(|_| false).unwrap(), [HOLDER]);
    scratch.store.release(HOLDER).unwrap();
    let collected = scratch.store.remove("one").await.unwrap_err();
    assert_eq!(collected.kind(), ImageErrorKind::NotFound, "one:latest was never there");
    let collected = scratch.store.remove("one:1").await.unwrap();
    assert_eq!(collected.removed, ["one:1".to_owned(), digest.to_string()]);
    assert_eq!(collected.freed_bytes, 1004);
    scratch.assert_nothing_half_made();
    assert_eq!(scratch.names("blobs/sha256"), Vec::<String>::new());
    assert_eq!(scratch.names("used"), Vec::<String>::new());
    assert!(scratch.store.lease(&digest, HOLDER).is_err());
}

#[tokio::test]
async fn holders_that_are_no_uid_are_refused() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    for holder in ["", "../x", "a/b", "a~b", "a.b", &"x".repeat(65)] {
        assert!(scratch.store.lease(&digest, holder).is_err(), "{holder}");
    }
    assert_eq!(scratch.names("leases"), Vec::<String>::new());
}

/// When the index is lost, layers that running sandboxes stand on stay all the same.
#[tokio::test]
async fn a_damaged_index_costs_no_running_sandbox_its_layers() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let image = scratch.store.lease(&digest, HOLDER).unwrap();
    std::fs::write(scratch.path("images/index.json"), "{ half").unwrap();
    let scratch = reopen(scratch).await;
    assert_eq!(scratch.store.list(), []);
    assert!(scratch.path("images/index.json.damaged").is_file(), "set aside, not lost");
    scratch.store.collect(HighWater::StoreBytes(0)).await.unwrap();
    assert!(image.layers.iter().all(|layer| layer.is_dir()));
    assert_eq!(
        import(&scratch, "one").await,
        digest,
        "imported again, with the layers that were there"
    );
    scratch.store.release(HOLDER).unwrap();
    scratch.store.collect(HighWater::StoreBytes(0)).await.unwrap();
    scratch.assert_nothing_half_made();
}

#[tokio::test]
async fn the_longest_unused_go_until_the_mark_is_met() {
    let scratch = scratch().await;
    let (one, two, three) = (
        import(&scratch, "one").await,
        import(&scratch, "two2").await,
        import(&scratch, "three").await,
    );
    scratch.store.lease(&one, HOLDER).unwrap();
    scratch.store.release(HOLDER).unwrap();
    assert!(scratch.store.inspect("one:1").unwrap().last_used_at.is_some());
    let scratch = reopen(scratch).await;
    let nothing = scratch.store.collect(HighWater::StoreBytes(3004)).await.unwrap();
    assert_eq!(nothing.removed, Vec::<String>::new(), "all of it is below the mark");
    let collected = scratch.store.collect(HighWater::StoreBytes(3003)).await.unwrap();
    assert_eq!(
        collected.removed,
        ["two2:1".to_owned(), two.to_string()],
        "imported first, and not used since"
    );
    assert_eq!(collected.freed_bytes, 1000, "the shared layer stays");
    let collected = scratch.store.collect(HighWater::StoreBytes(1500)).await.unwrap();
    assert_eq!(
        collected.removed,
        ["three:1".to_owned(), three.to_string()],
        "the used one is the last"
    );
    assert!(scratch.store.collect(HighWater::DiskPercent(100)).await.unwrap().removed.is_empty());
    let collected = scratch.store.collect(HighWater::DiskPercent(0)).await.unwrap();
    assert_eq!(collected.removed, ["one:1".to_owned(), one.to_string()]);
    scratch.assert_nothing_half_made();
}

/// The disk is always fuller than 0 %: each import makes room, of images that were unused for the time given.
#[tokio::test]
async fn a_full_disk_makes_room_by_itself() {
    for (kept_unused, expected) in [(Duration::from_secs(3600), 3), (Duration::ZERO, 2)] {
        let scratch = scratch_with(|options| {
            options.high_water_percent = 0;
            options.kept_unused = kept_unused;
        })
        .await;
        let used = import(&scratch, "one").await;
        scratch.store.lease(&used, HOLDER).unwrap();
        import(&scratch, "two").await;
        import(&scratch, "three").await;
        assert_eq!(scratch.store.list().len(), expected, "{kept_unused:?}");
        assert!(scratch.store.get(&used).is_some(), "what is used stays in any case");
    }
}

#[tokio::test]
async fn an_image_goes_with_its_last_name() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let again = scratch.path("image.tar");
    scratch
        .store
        .import(again, Some("other:2".parse().unwrap()), ProgressSink::none())
        .await
        .unwrap();
    assert_eq!(scratch.store.inspect("one:1").unwrap().references, ["one:1", "other:2"]);
    assert_eq!(scratch.store.remove("one:1").await.unwrap().removed, ["one:1"]);
    assert!(scratch.store.get(&digest).is_some());
    assert!(scratch.store.resolve(&"one:1".parse().unwrap()).is_none());
    scratch.store.remove("other:2").await.unwrap();
    scratch.assert_nothing_half_made();
    for name in ["other:2", "sha256:00", "../etc", "", "a b"] {
        let error = scratch.store.remove(name).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::NotFound, "{name}");
    }
}

/// What a crash leaves: staging directories, layers without an image, a layer that somebody deleted.
#[tokio::test]
async fn leftovers_of_a_crash_are_cleaned() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let images = scratch.path("images");
    std::fs::create_dir_all(images.join("staging/s-half/fs/dir")).unwrap();
    std::fs::write(images.join("staging/s-half/fs/dir/file"), "half").unwrap();
    std::fs::create_dir_all(images.join("layers").join("0".repeat(64)).join("fs")).unwrap();
    std::fs::write(images.join("leases/nonsense"), "").unwrap();
    std::fs::write(images.join("partial").join("1".repeat(64)), "old").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(48 * 3600);
    std::fs::File::options()
        .write(true)
        .open(images.join("partial").join("1".repeat(64)))
        .unwrap()
        .set_modified(old)
        .unwrap();
    std::fs::write(images.join("partial").join("2".repeat(64)), "fresh").unwrap();
    let scratch = reopen(scratch).await;
    assert_eq!(scratch.names("staging"), Vec::<String>::new());
    scratch.store.collect(HighWater::DiskPercent(100)).await.unwrap();
    assert_eq!(scratch.names("layers").len(), 2);
    assert_eq!(scratch.names("partial"), ["2".repeat(64)]);
    let image = scratch.store.get(&digest).unwrap();

    std::fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    let scratch = reopen(scratch).await;
    assert!(
        scratch.store.get(&digest).is_none(),
        "an image without one of its layers cannot be run"
    );
    import(&scratch, "one").await;
    assert!(scratch.store.get(&digest).is_some());
}

#[tokio::test]
async fn a_store_has_one_user_and_no_newer_format() {
    let scratch = scratch().await;
    let second = ImageStore::open(scratch.path("images"), options(scratch.directory.path())).await;
    assert!(second.unwrap_err().to_string().contains("another process"));
    let Scratch { directory, store } = scratch;
    drop(store);
    std::fs::write(directory.path().join("images/format"), "2\n").unwrap();
    let newer = ImageStore::open(directory.path().join("images"), options(directory.path())).await;
    assert!(newer.unwrap_err().to_string().contains("newer than 1"));
}

#[tokio::test]
async fn credentials_are_kept_for_their_owner_alone() {
    let scratch = scratch().await;
    let login =
        |password: &str| Some(Credentials { username: "me".into(), password: password.into() });
    assert!(!scratch.store.set_credentials("Registry.Example:5000", login("first")).await.unwrap());
    assert!(scratch.store.set_credentials("registry.example:5000", login("second")).await.unwrap());
    scratch.store.set_credentials("index.docker.io", login("hub")).await.unwrap();
    let file = scratch.path("registry-credentials.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let scratch = reopen(scratch).await;
    let expected = [("docker.io", "me"), ("registry.example:5000", "me")];
    assert_eq!(
        scratch.store.registries_with_credentials(),
        expected.map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    assert!(!format!("{:?} {:?}", scratch.store, login("secret")).contains("secret"));
    assert!(scratch.store.set_credentials("docker.io", None).await.unwrap());
    assert!(!scratch.store.set_credentials("docker.io", None).await.unwrap());
    assert!(!std::fs::read_to_string(&file).unwrap().contains("hub"));
    for registry in ["", "../x", "a b", "http://x"] {
        assert!(scratch.store.set_credentials(registry, login("x")).await.is_err(), "{registry}");
    }
}

#[tokio::test]
async fn the_directories_are_closed_to_other_users() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let layer = scratch.store.get(&digest).unwrap().layers[0].clone();
    for path in
        [scratch.path("images"), scratch.path("images/layers"), layer.parent().unwrap().into()]
    {
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o700,
            "{}",
            path.display()
        );
    }
    assert_eq!(
        std::fs::metadata(&layer).unwrap().permissions().mode() & 0o7777,
        0o755,
        "the root of a sandbox"
    );
}

#[tokio::test]
async fn imports_at_the_same_time_share_what_they_make() {
    let scratch = scratch().await;
    let built =
        Built::new(&[Tar::new().file("base", &noise(100_000, 1)).finish()], serde_json::json!({}));
    let file = scratch.write("image.tar", &built.layout("x:1"));
    let imports = (0..8).map(|number| {
        let (store, file) = (scratch.store.clone(), file.clone());
        let reference = format!("x{}:1", number % 3).parse().unwrap();
        tokio::spawn(async move { store.import(file, Some(reference), ProgressSink::none()).await })
    });
    for import in imports.collect::<Vec<_>>() {
        assert_eq!(import.await.unwrap().unwrap()[0].digest, built.digest());
    }
    assert_eq!(scratch.names("layers").len(), 1);
    assert_eq!(scratch.store.inspect("x0:1").unwrap().references, ["x0:1", "x1:1", "x2:1"]);
}

/// Removing and importing the same image over and over: whoever has a lease has layers.
#[tokio::test]
async fn a_lease_and_a_removal_at_the_same_time_never_meet() {
    let scratch = scratch().await;
    let digest = import(&scratch, "one").await;
    let store = scratch.store.clone();
    let collector = tokio::spawn(async move {
        for _ in 0..50 {
            store.collect(HighWater::StoreBytes(0)).await.unwrap();
        }
    });
    let mut leases = 0;
    while !collector.is_finished() {
        match scratch.store.lease(&digest, HOLDER) {
            Ok(image) => {
                leases += 1;
                tokio::task::yield_now().await;
                assert!(image.layers.iter().all(|layer| layer.is_dir()));
                scratch.store.release(HOLDER).unwrap();
            }
            Err(_) => {
                import(&scratch, "one").await;
            }
        }
    }
    collector.await.unwrap();
    assert!(leases > 0);
}
