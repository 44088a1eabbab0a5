//! Pulls of a real image from Debian's docker-registry: plain, with a password, over TLS with a private authority.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "skipped tests say so")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use atoll_image::{Credentials, Digest, ImageErrorKind, ProgressSink, PullOptions, users};
use support::{Built, Scratch, Tar, scratch};

/// A registry process, ended when this is dropped.
struct Registry {
    process: Child,
    address: String,
    base: String,
    client: reqwest::Client,
    login: Option<(String, String)>,
    _directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A certificate of its own authority for 127.0.0.1, as files.
struct Certificate {
    authority: String,
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn make(directory: &Path) -> Self {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority_pem = authority.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, key);
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let (certificate, key) = (directory.join("leaf.pem"), directory.join("leaf.key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&key, leaf_key.serialize_pem()).unwrap();
        Self { authority: authority_pem, certificate, key }
    }
}

impl Registry {
    /// `None`, and said so, where docker-registry or htpasswd is not installed.
    fn start(
        test: &str,
        login: Option<(&str, &str)>,
        certificate: Option<&Certificate>,
    ) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut auth = String::new();
        if let Some((user, password)) = login {
            let Ok(entry) = Command::new("htpasswd").args(["-Bbn", user, password]).output() else {
                eprintln!("SKIPPED: {test}: htpasswd missing");
                return None;
            };
            let file = directory.path().join("htpasswd");
            std::fs::write(&file, entry.stdout).unwrap();
            auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
        }
        let tls = certificate.map_or(String::new(), |certificate| {
            format!(
                ", tls: {{certificate: {}, key: {}}}",
                certificate.certificate.display(),
                certificate.key.display()
            )
        });
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}http: {{addr: \"127.0.0.1:0\"{tls}}}\n",
            directory.path().join("data").display()
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let Ok(mut process) = process else {
            eprintln!("SKIPPED: {test}: docker-registry missing");
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split([',', '"']).next().unwrap().to_owned();
            }
        };
        // Its log must go on being read.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder();
        if let Some(certificate) = certificate {
            client = client
                .tls_certs_only([
                    reqwest::Certificate::from_pem(certificate.authority.as_bytes()).unwrap()
                ]);
        }
        let scheme = if certificate.is_some() { "https" } else { "http" };
        Some(Self {
            process,
            base: format!("{scheme}://{address}"),
            address,
            client: client.build().unwrap(),
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
            _directory: directory,
        })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let request = match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        request.send().await.unwrap().error_for_status().unwrap()
    }

    async fn push(&self, name: &str, tag: &str, built: &Built) {
        for blob in built.layers.iter().chain([&built.config]) {
            let begun = self
                .send(self.client.post(format!("{}/v2/{name}/blobs/uploads/", self.base)))
                .await;
            let location = begun.headers()["location"].to_str().unwrap();
            let url = if location.starts_with('/') {
                format!("{}{location}", self.base)
            } else {
                location.to_owned()
            };
            let joint = if url.contains('?') { '&' } else { '?' };
            let url = format!("{url}{joint}digest={}", Digest::of(blob));
            self.send(self.client.put(url).body(blob.clone())).await;
        }
        let url = format!("{}/v2/{name}/manifests/{tag}", self.base);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.send(self.client.put(url).header("content-type", kind).body(built.manifest.clone()))
            .await;
    }
}

/// Busybox as an image of two layers, with users.
fn busybox(test: &str) -> Option<Built> {
    let Ok(program) = std::fs::read("/bin/busybox") else {
        eprintln!("SKIPPED: {test}: busybox-static missing");
        return None;
    };
    let base = Tar::new()
        .directory("bin/")
        .file_with("bin/busybox", &program, |header| header.set_mode(0o755))
        .hard_link("bin/sh", "bin/busybox")
        .directory("etc/")
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/false\n")
        .file("etc/group", b"root:x:0:\nweb:x:33:\nlog:x:4:web\n")
        .finish();
    let top = Tar::new().directory("srv/").file("srv/index.html", b"hello").finish();
    Some(Built::new(&[base, top], serde_json::json!({"Cmd": ["/bin/sh"], "User": "web"})))
}

fn plain() -> PullOptions {
    PullOptions { plain_http: true, ..PullOptions::default() }
}

/// The pulled image works: its program runs from the unpacked layer.
fn assert_runs(scratch: &Scratch, reference: &str) {
    let image = scratch.store.resolve(&reference.parse().unwrap()).unwrap();
    let output =
        Command::new(image.layers[1].join("bin/sh")).args(["-c", "echo it runs"]).output().unwrap();
    assert_eq!(output.stdout, b"it runs\n");
    let user = users::resolve(&image.config.user, &image.layers).unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplementary_gids, user.home.as_str()),
        (33, 33, vec![4], "/srv")
    );
}

#[tokio::test]
async fn an_image_comes_from_a_real_registry() {
    let test = "an_image_comes_from_a_real_registry";
    let (Some(built), Some(registry)) = (busybox(test), Registry::start(test, None, None)) else {
        return;
    };
    registry.push("team/busybox", "1.35", &built).await;
    let scratch = scratch().await;
    let reference = format!("{}/team/busybox:1.35", registry.address);
    let image = scratch
        .store
        .pull(&reference.parse().unwrap(), &plain(), ProgressSink::none())
        .await
        .unwrap();
    assert_eq!(image.digest, built.digest());
    assert_runs(&scratch, &reference);

    let missing = format!("{}/team/busybox:none", registry.address).parse().unwrap();
    let error = scratch.store.pull(&missing, &plain(), ProgressSink::none()).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::NotFound, "{error}");
    let told = format!("{} has no team/busybox:none; tags that it has: 1.35", registry.address);
    assert!(error.to_string().ends_with(&told), "{error}");

    let address = registry.address.clone();
    drop(registry);
    let gone = format!("{address}/team/busybox:1.36").parse().unwrap();
    let error = scratch.store.pull(&gone, &plain(), ProgressSink::none()).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&format!("{address} cannot be reached")), "{error}");
    assert_runs(&scratch, &reference);
}

#[tokio::test]
async fn a_registry_with_a_password_wants_a_login() {
    let test = "a_registry_with_a_password_wants_a_login";
    let login = Some(("me", "pass:word"));
    let (Some(built), Some(registry)) = (busybox(test), Registry::start(test, login, None)) else {
        return;
    };
    registry.push("app", "latest", &built).await;
    let scratch = scratch().await;
    let reference = format!("{}/app", registry.address);
    let pull = async || {
        scratch.store.pull(&reference.parse().unwrap(), &plain(), ProgressSink::none()).await
    };
    let error = pull().await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unauthorized, "{error}");
    let set = async |password: &str| {
        let login = Credentials { username: "me".into(), password: password.into() };
        scratch.store.set_credentials(&registry.address, Some(login)).await.unwrap()
    };
    set("wrong").await;
    let error = pull().await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unauthorized, "{error}");
    set("pass:word").await;
    pull().await.unwrap();
    assert_runs(&scratch, &reference);
}

#[tokio::test]
async fn tls_needs_a_certificate_that_is_trusted() {
    let test = "tls_needs_a_certificate_that_is_trusted";
    let scratch = scratch().await;
    let certificate = Certificate::make(scratch.directory.path());
    let (Some(built), Some(registry)) =
        (busybox(test), Registry::start(test, None, Some(&certificate)))
    else {
        return;
    };
    registry.push("app", "latest", &built).await;
    let reference = format!("{}/app", registry.address);
    let options = PullOptions::default();
    let pull = async || {
        scratch.store.pull(&reference.parse().unwrap(), &options, ProgressSink::none()).await
    };
    let error = pull().await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("certs/"), "says what to do: {error}");

    // Another registry's authority is not this one's.
    std::fs::create_dir_all(scratch.path("certs/other.example")).unwrap();
    std::fs::write(scratch.path("certs/other.example/ca.pem"), &certificate.authority).unwrap();
    pull().await.unwrap_err();
    std::fs::create_dir_all(scratch.path("certs").join(&registry.address)).unwrap();
    let file = scratch.path("certs").join(&registry.address).join("ca.crt");
    std::fs::write(&file, "no certificate").unwrap();
    let error = pull().await.unwrap_err();
    assert!(error.to_string().contains("ca.crt"), "names the file: {error}");
    std::fs::write(&file, &certificate.authority).unwrap();
    pull().await.unwrap();
    assert_runs(&scratch, &reference);
}
