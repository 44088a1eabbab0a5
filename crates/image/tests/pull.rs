//! Pulls from a registry that answers as each test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_image::{
    Credentials, Digest, Image, ImageError, ImageErrorKind, ProgressEvent, ProgressSink,
    PullOptions,
};
use support::fake_registry::{FakeRegistry, Reply, serve_image};
use support::{Built, Scratch, Tar, descriptor, noise, scratch};

fn options() -> PullOptions {
    PullOptions { plain_http: true, idle_timeout: Duration::from_secs(10) }
}

async fn pull(scratch: &Scratch, reference: &str) -> Result<Image, ImageError> {
    scratch.store.pull(&reference.parse().unwrap(), &options(), ProgressSink::none()).await
}

fn image(files: &[(&str, &[u8])]) -> Built {
    let layers: Vec<Vec<u8>> =
        files.iter().map(|(name, data)| Tar::new().file(name, data).finish()).collect();
    Built::new(&layers, serde_json::json!({"Cmd": ["/a"]}))
}

fn blob_path(blob: &[u8]) -> String {
    format!("/v2/team/app/blobs/{}", Digest::of(blob))
}

#[tokio::test]
async fn an_image_is_pulled_with_progress_and_found_again_without_downloading() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"low"), ("b", b"high")]));
    let served = Arc::clone(&built);
    let registry = FakeRegistry::start(move |request| serve_image(&served, request));
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let reference = registry.reference("team/app:1").parse().unwrap();
    let progress = ProgressSink::new(move |event| sink.lock().unwrap().push(event.clone()));
    let image = scratch.store.pull(&reference, &options(), progress).await.unwrap();
    assert_eq!(image.digest, built.digest());
    assert_eq!(std::fs::read(image.layers[0].join("b")).unwrap(), b"high");
    assert_eq!(std::fs::read(image.layers[1].join("a")).unwrap(), b"low");
    assert_eq!(scratch.store.resolve(&reference).unwrap(), image);

    let events = events.lock().unwrap().clone();
    assert!(matches!(&events[0], ProgressEvent::Layers { layers } if layers.len() == 2));
    for blob in &built.layers {
        let layer = Digest::of(blob);
        let size = blob.len() as u64;
        let downloaded =
            ProgressEvent::Downloaded { layer: layer.clone(), done_bytes: size, total_bytes: size };
        for event in [downloaded, ProgressEvent::LayerReady { layer, reused: false }] {
            assert!(events.contains(&event), "{event:?} in {events:?}");
        }
    }
    assert_eq!(scratch.names("partial"), Vec::<String>::new());

    let before = registry.requests_of("/blobs/").len();
    pull(&scratch, &registry.reference("team/app:2")).await.unwrap();
    assert_eq!(
        registry.requests_of("/blobs/").len(),
        before,
        "the same image has nothing to download"
    );
    assert_eq!(scratch.store.inspect(&image.digest.to_string()).unwrap().references.len(), 2);
    assert!(registry.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn layers_are_downloaded_at_the_same_time() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"1"), ("b", b"2"), ("c", b"3")]));
    let barrier = Arc::new((Mutex::new(0), std::sync::Condvar::new()));
    let (served, meeting) = (Arc::clone(&built), Arc::clone(&barrier));
    let registry = FakeRegistry::start(move |request| {
        if served.layers.iter().any(|layer| request.path == blob_path(layer)) {
            // No layer is answered before all three were asked for.
            let (count, changed) = &*meeting;
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            let limit = Duration::from_secs(10);
            let (count, _) = changed.wait_timeout_while(count, limit, |count| *count < 3).unwrap();
            if *count < 3 {
                return Reply::status(400);
            }
        }
        serve_image(&served, request)
    });
    pull(&scratch, &registry.reference("team/app")).await.unwrap();
}

#[tokio::test]
async fn this_machines_image_is_taken_from_an_index() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"mine")]));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str, bytes: &[u8]| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", bytes);
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
            .to_string()
    };
    let good = index(vec![entry("riscv64", b"other"), entry(architecture, &built.manifest)]);
    let foreign = index(vec![entry("riscv64", b"other"), entry("s390x", b"another")]);
    let (served, indexes) = (Arc::clone(&built), [good.clone(), foreign]);
    let registry = FakeRegistry::start(move |request| {
        if request.path.ends_with("/manifests/good")
            || request.path.ends_with(&Digest::of(indexes[0].as_bytes()).to_string())
        {
            return Reply::ok(indexes[0].clone());
        }
        if request.path.ends_with("/manifests/foreign") {
            return Reply::ok(indexes[1].clone());
        }
        serve_image(&served, request)
    });
    assert_eq!(
        pull(&scratch, &registry.reference("team/app:good")).await.unwrap().digest,
        built.digest()
    );
    let by_index = registry.reference(&format!("team/app@{}", Digest::of(good.as_bytes())));
    pull(&scratch, &by_index).await.unwrap();
    let found = scratch.store.resolve(&by_index.parse().unwrap()).unwrap();
    assert_eq!(found.digest, built.digest(), "found by the digest of the index too");
    let error = pull(&scratch, &registry.reference("team/app:foreign")).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::NoPlatform { offered, .. } if offered == "linux/riscv64, linux/s390x"),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let scratch = scratch().await;
    let data = noise(3 << 20, 1);
    let built = Arc::new(image(&[("a", &data)]));
    let layer = built.layers[0].clone();
    let half = layer.len() / 2;
    let (served, broken) = (Arc::clone(&built), AtomicUsize::new(0));
    let registry = FakeRegistry::start(move |request| {
        if request.path == blob_path(&served.layers[0])
            && broken.fetch_add(1, Ordering::SeqCst) == 0
        {
            let claimed_length = Some(served.layers[0].len());
            return Reply { claimed_length, ..Reply::ok(&served.layers[0][..half]) };
        }
        serve_image(&served, request)
    });
    let image = pull(&scratch, &registry.reference("team/app")).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("a")).unwrap(), data);
    let starts: Vec<_> = registry
        .requests_of(&blob_path(&layer))
        .iter()
        .map(|request| request.range_start())
        .collect();
    assert_eq!(starts, [None, Some(half)]);
}

/// Registry gone mid-pull: a clear error, nothing half-made; the next pull, by another store on the same directory, resumes.
#[tokio::test]
async fn a_registry_that_goes_away_is_an_error_and_the_next_pull_resumes() {
    let scratch = scratch().await;
    let data = noise(2 << 20, 2);
    let built = Arc::new(image(&[("a", &data)]));
    let half = built.layers[0].len() / 2;
    let (served, calls) = (Arc::clone(&built), Arc::new(AtomicUsize::new(0)));
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, is_healthy) = (Arc::clone(&calls), Arc::clone(&healthy));
    let registry = FakeRegistry::start(move |request| {
        if request.path == blob_path(&served.layers[0]) && !is_healthy.load(Ordering::SeqCst) {
            return match seen.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    Reply { claimed_length: Some(half * 2), ..Reply::ok(&served.layers[0][..half]) }
                }
                _ => Reply::status(503),
            };
        }
        serve_image(&served, request)
    });
    let reference = registry.reference("team/app:1");
    let error = pull(&scratch, &reference).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("503"), "{error}");
    scratch.assert_nothing_half_made();

    let Scratch { directory, store } = scratch;
    drop(store);
    let store = atoll_image::ImageStore::open(
        directory.path().join("images"),
        support::options(directory.path()),
    )
    .await
    .unwrap();
    let scratch = Scratch { directory, store };
    healthy.store(true, Ordering::SeqCst);
    pull(&scratch, &reference).await.unwrap();
    let last = registry.requests_of("/blobs/").pop().unwrap();
    assert_eq!(last.range_start(), Some(half), "what was there was not downloaded again");
}

/// Layers that are whole are not fetched again, although the pull they came with failed.
#[tokio::test]
async fn the_next_pull_keeps_the_layers_of_a_failed_one() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"first layer"), ("b", b"second layer")]));
    let (served, calls) = (Arc::clone(&built), AtomicUsize::new(0));
    let registry = FakeRegistry::start(move |request| {
        let second = request.path == blob_path(&served.layers[1]);
        if second && calls.fetch_add(1, Ordering::SeqCst) == 0 {
            Reply::status(404)
        } else {
            serve_image(&served, request)
        }
    });
    let reference = registry.reference("team/app");
    let error = pull(&scratch, &reference).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::NotFound, "{error}");
    assert_eq!(scratch.store.list(), []);
    pull(&scratch, &reference).await.unwrap();
    assert_eq!(registry.requests_of(&blob_path(&built.layers[0])).len(), 1);
}

/// Who mistypes a tag learns which image is not there and what is; a registry's list of tags is bounded and shown as far as it makes sense.
#[tokio::test]
async fn a_tag_that_is_not_there_is_told_with_those_that_are() {
    let scratch = scratch().await;
    let lists: [(&str, Reply); 5] = [
        (
            "tags that it has: 1.0, latest",
            Reply::ok(r#"{"name":"team/app","tags":["1.0","latest"]}"#),
        ),
        ("the repository has no tags", Reply::ok(r#"{"name":"team/app","tags":null}"#)),
        ("check repository and tag", Reply::status(404)),
        ("check repository and tag", Reply::ok("no JSON")),
        ("check repository and tag", Reply { claimed_length: Some(1 << 40), ..Reply::ok("") }),
    ];
    for (told, list) in lists {
        let registry = FakeRegistry::start(move |request| {
            if request.path.starts_with("/v2/team/app/tags/list?") {
                list.clone()
            } else {
                Reply::status(404)
            }
        });
        let reference = registry.reference("team/app:nope");
        let error = pull(&scratch, &reference).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::NotFound, "{error}");
        let expected =
            format!("cannot pull {reference}: {} has no team/app:nope; {told}", registry.address);
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn a_registry_that_stumbles_is_asked_again() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"a")]));
    let (served, calls) = (Arc::clone(&built), AtomicUsize::new(0));
    let registry = FakeRegistry::start(move |request| {
        // Every first answer of two is no answer.
        if calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            Reply::status(503)
        } else {
            serve_image(&served, request)
        }
    });
    let reference = registry.reference("team/app").parse().unwrap();
    let options = options();
    // As a server calls it: behind a trait object that moves between threads.
    let pulled: std::pin::Pin<Box<dyn Future<Output = _> + Send + '_>> =
        Box::pin(scratch.store.pull(&reference, &options, ProgressSink::none()));
    pulled.await.unwrap();
}

#[tokio::test]
async fn a_registry_that_cannot_resume_is_read_from_the_start() {
    let scratch = scratch().await;
    let data = noise(1 << 20, 3);
    let built = Arc::new(image(&[("a", &data)]));
    let half = built.layers[0].len() / 2;
    let (served, calls) = (Arc::clone(&built), AtomicUsize::new(0));
    let registry = FakeRegistry::start(move |request| {
        if request.path == blob_path(&served.layers[0]) {
            let whole = Reply::ok(served.layers[0].clone());
            return match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Reply {
                    body: whole.body[..half].to_vec(),
                    claimed_length: Some(whole.body.len()),
                    ..whole
                },
                _ => whole,
            };
        }
        serve_image(&served, request)
    });
    let image = pull(&scratch, &registry.reference("team/app")).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("a")).unwrap(), data);
}

#[tokio::test]
async fn a_silent_connection_ends_in_an_error() {
    let scratch = scratch().await;
    let registry =
        FakeRegistry::start(|_| Reply { claimed_length: Some(100), hang: true, ..Reply::ok("{") });
    let options = PullOptions { plain_http: true, idle_timeout: Duration::from_millis(300) };
    let reference = registry.reference("team/app").parse().unwrap();
    let error = scratch.store.pull(&reference, &options, ProgressSink::none()).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("nothing came for too long"), "{error}");
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_not_used() {
    let built = Arc::new(image(&[("a", b"honest content")]));
    let other = image(&[("a", b"other content!")]);
    let by_digest = format!("team/app@{}", built.digest());
    type Lie = fn(&Built) -> Vec<u8>;
    let lies: [(&str, &str, Lie); 4] = [
        ("manifest by digest", "/manifests/", |other| other.manifest.clone()),
        ("configuration", "config", |other| other.config.clone()),
        ("layer", "layer", |other| other.layers[0].clone()),
        ("longer layer", "layer", |other| [other.layers[0].clone(), vec![0; 1 << 20]].concat()),
    ];
    for (what, part, lie) in lies {
        let scratch = scratch().await;
        let served = Arc::clone(&built);
        let lied = lie(&other);
        let place = match part {
            "config" => blob_path(&built.config),
            "layer" => blob_path(&built.layers[0]),
            part => part.to_owned(),
        };
        let registry = FakeRegistry::start(move |request| {
            if request.path.contains(&place) {
                Reply::ok(lied.clone())
            } else {
                serve_image(&served, request)
            }
        });
        let error = pull(&scratch, &registry.reference(&by_digest)).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Invalid, "{what}: {error}");
        scratch.assert_nothing_half_made();
    }
}

#[tokio::test]
async fn endless_answers_are_bounded() {
    let scratch = scratch().await;
    let registry = FakeRegistry::start(|_| Reply::ok(vec![b' '; 5 << 20]));
    let error = pull(&scratch, &registry.reference("team/app")).await.unwrap_err();
    assert!(error.to_string().contains("longer than 4194304 bytes"), "{error}");
    let registry = FakeRegistry::start(|_| Reply {
        status: 500,
        body: vec![b'<'; 5 << 20],
        ..Reply::default()
    });
    let error = pull(&scratch, &registry.reference("team/app")).await.unwrap_err();
    assert!(error.to_string().len() < 500, "{error}");
}

fn protected(
    built: Arc<Built>,
    realm: String,
) -> impl Fn(&support::fake_registry::Request) -> Reply {
    move |request| {
        if request.path.starts_with("/token?") {
            let expected = "Basic bWU6c2VjcmV0"; // me:secret
            return match request.header("authorization") {
                Some(authorization) if authorization != expected => Reply::status(401),
                None if request.path.contains("private") => Reply::status(401),
                _ => Reply::ok(r#"{"token":"the-token"}"#),
            };
        }
        if request.header("authorization") == Some("Bearer the-token") {
            return serve_image(&built, request);
        }
        let challenge = format!(r#"Bearer realm="{realm}/token",service="reg.example",scope="x""#);
        Reply::status(401).with("www-authenticate", &challenge)
    }
}

#[tokio::test]
async fn tokens_are_asked_for_anonymously_and_with_credentials() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"a")]));
    let address = Arc::new(Mutex::new(String::new()));
    let (served, realm) = (Arc::clone(&built), Arc::clone(&address));
    let registry = FakeRegistry::start(move |request| {
        protected(Arc::clone(&served), format!("http://{}", realm.lock().unwrap()))(request)
    });
    *address.lock().unwrap() = registry.address.to_string();

    pull(&scratch, &registry.reference("team/app")).await.unwrap();
    let asked = registry.requests_of("/token?");
    assert_eq!(asked.len(), 1, "one token for all requests");
    assert!(asked[0].path.contains("service=reg.example"), "{}", asked[0].path);
    assert!(asked[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", asked[0].path);

    let private = registry.reference("private/app");
    let error = pull(&scratch, &private).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unauthorized, "{error}");
    assert!(error.to_string().contains("atoll login"), "{error}");

    let host = registry.address.to_string();
    let login = |password: &str| Credentials { username: "me".into(), password: password.into() };
    scratch.store.set_credentials(&host, Some(login("wrong"))).await.unwrap();
    let error = pull(&scratch, &private).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error:?}").contains("wrong"), "no password in an error");
    assert!(scratch.store.set_credentials(&host, Some(login("secret"))).await.unwrap());
    pull(&scratch, &private).await.unwrap();
}

/// A token service elsewhere over plain HTTP would be told the password.
#[tokio::test]
async fn credentials_are_not_sent_to_a_token_service_without_tls() {
    let scratch = scratch().await;
    for realm in ["http://192.0.2.1", "ftp://127.0.0.1", "http://me:secret@127.0.0.1:1", "nonsense"]
    {
        let registry =
            FakeRegistry::start(protected(Arc::new(image(&[("a", b"a")])), realm.to_owned()));
        let login = Credentials { username: "me".into(), password: "secret".into() };
        scratch.store.set_credentials(&registry.address.to_string(), Some(login)).await.unwrap();
        let error = pull(&scratch, &registry.reference("team/app")).await.unwrap_err();
        assert!(error.to_string().contains("token service"), "{realm}: {error}");
    }
}

/// OpenSandbox #955: credentials must not travel along a redirect.
#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"a")]));
    let elsewhere_serves = Arc::clone(&built);
    let elsewhere = FakeRegistry::start(move |request| serve_image(&elsewhere_serves, request));
    let (served, target) = (Arc::clone(&built), elsewhere.address);
    let registry = FakeRegistry::start(move |request| {
        if request.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            return Reply::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        if request.path.contains("/blobs/") {
            return Reply::status(307)
                .with("location", &format!("http://{target}{}", request.path));
        }
        serve_image(&served, request)
    });
    let login = Credentials { username: "me".into(), password: "secret".into() };
    scratch.store.set_credentials(&registry.address.to_string(), Some(login)).await.unwrap();
    pull(&scratch, &registry.reference("team/app")).await.unwrap();
    let leaked = elsewhere.requests();
    assert_eq!(leaked.len(), 2, "configuration and layer");
    assert!(leaked.iter().all(|request| request.header("authorization").is_none()), "{leaked:?}");
}

#[tokio::test]
async fn redirects_that_lead_astray_are_refused() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", b"a")]));
    for location in
        ["http://192.0.2.1/x", "file:///etc/passwd", "ftp://127.0.0.1/", "http://[", "", "/again"]
    {
        let served = Arc::clone(&built);
        let registry = FakeRegistry::start(move |request| {
            if request.path.contains("/manifests/") {
                serve_image(&served, request)
            } else {
                Reply::status(302).with("location", location)
            }
        });
        let error = pull(&scratch, &registry.reference("team/app")).await.unwrap_err();
        assert!(error.to_string().contains("redirect"), "{location:?}: {error}");
        assert!(registry.requests().len() < 20, "no endless loop");
    }
}

#[tokio::test]
async fn plain_http_is_for_this_machine_alone() {
    let scratch = scratch().await;
    for reference in
        ["registry.example/app", "192.0.2.1:5000/app", "127.0.0.1.example/app", "busybox"]
    {
        let error = pull(&scratch, reference).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("plain HTTP"), "{error}");
    }
    let registry = FakeRegistry::start(|_| Reply::status(500));
    let reference = registry.reference("team/app").parse().unwrap();
    let error = scratch
        .store
        .pull(&reference, &PullOptions::default(), ProgressSink::none())
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ImageErrorKind::Unavailable,
        "without being asked to, no plain HTTP: {error}"
    );
    assert_eq!(registry.requests_of("/v2/").len(), 0);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_running_or_half_made() {
    let scratch = scratch().await;
    let built = Arc::new(image(&[("a", &noise(1 << 20, 4))]));
    let served = Arc::clone(&built);
    let registry = FakeRegistry::start(move |request| {
        if request.path == blob_path(&served.layers[0]) {
            return Reply {
                claimed_length: Some(served.layers[0].len()),
                hang: true,
                ..Reply::ok(&served.layers[0][..1000])
            };
        }
        serve_image(&served, request)
    });
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let progress = ProgressSink::new(move |event| {
        let _ = begun.send(event.clone());
    });
    let reference = registry.reference("team/app").parse().unwrap();
    let options = options();
    tokio::select! {
        result = scratch.store.pull(&reference, &options, progress) => panic!("it cannot end: {result:?}"),
        event = has_begun.recv() => assert!(event.is_some()),
    }
    scratch.assert_nothing_half_made();
}
