//! A registry that dies in the middle of a pull: a clear word, nothing half-made, and the next pull goes on where this one ended.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use atoll_image::Digest;

use crate::support::{archive, instance_with_image};

/// One image of one layer.
struct Served {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Served {
    fn new(layer: Vec<u8>) -> Self {
        // Unpacked, the layer is what it is: its digest is that of its content too.
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["sh"],"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            Digest::of(&layer)
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
            Digest::of(&config),
            config.len(),
            Digest::of(&layer),
            layer.len()
        )
        .into_bytes();
        Self { manifest, config, layer }
    }
}

/// A registry on loopback. One that is to die ends with the first half of the layer: its connections and its port are closed then.
struct Registry {
    address: SocketAddr,
    /// The first byte of the layer that each request for it asked for.
    asked_from: Arc<Mutex<Vec<usize>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    fn start(address: &str, image: &Arc<Served>, dies: bool) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked_from, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (image, seen, stop) = (Arc::clone(image), Arc::clone(&asked_from), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // One after the other: a client with several connections waits. A client that goes away is no failure of the registry's.
                if let Ok(true) = stream.and_then(|stream| serve(stream, &image, &seen, dies)) {
                    return;
                }
            }
        });
        Self { address, asked_from, ended, thread: Some(thread) }
    }

    fn reference(&self) -> String {
        format!("{}/half:1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers one request. True: the registry is to be dead from now on.
fn serve(
    mut stream: TcpStream,
    image: &Served,
    asked_from: &Mutex<Vec<usize>>,
    dies: bool,
) -> std::io::Result<bool> {
    let (mut path, mut from) = (String::new(), 0);
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    let is = |bytes: &[u8]| path.ends_with(&Digest::of(bytes).to_string());
    let (status, kind, body) = if path.contains("/manifests/") {
        (200, "application/vnd.oci.image.manifest.v1+json", image.manifest.as_slice())
    } else if is(&image.config) {
        (200, "application/octet-stream", image.config.as_slice())
    } else if is(&image.layer) {
        asked_from.lock().unwrap().push(from);
        let status = if from > 0 { 206 } else { 200 };
        (status, "application/octet-stream", image.layer.get(from..).unwrap_or_default())
    } else {
        (if path == "/v2/" { 200 } else { 404 }, "application/json", b"{}".as_slice())
    };
    let mut head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n",
        body.len()
    );
    if status == 206 {
        let whole = image.layer.len();
        head += &format!("content-range: bytes {from}-{}/{whole}\r\n", whole - 1);
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let dies = dies && is(&image.layer);
    stream.write_all(if dies { &body[..body.len() / 2] } else { body })?;
    Ok(dies)
}

#[test]
fn a_registry_that_dies_in_the_middle_of_a_pull_leaves_nothing_half_made_and_the_next_pull_resumes()
{
    let Some(instance) = instance_with_image("registry_gone") else { return };
    // Another content than the imported image's, which is here already.
    let mut layer = archive().unwrap_or_default().to_vec();
    let end = layer.len() - 1024;
    layer.truncate(end);
    let mut more = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_mode(0o644);
    header.set_size(6);
    more.append_data(&mut header, "etc/pulled", b"whole\n".as_slice()).unwrap();
    layer.extend(more.into_inner().unwrap());
    let image = Arc::new(Served::new(layer));

    let dying = Registry::start("127.0.0.1:0", &image, true);
    let (reference, address) = (dying.reference(), dying.address.to_string());
    let failed = instance.atoll(["image", "pull", "--plain-http", &reference]);
    failed.ended_with(1);
    failed.complains(&address);
    assert_eq!(dying.asked_from.lock().unwrap().as_slice(), [0]);
    drop(dying);

    let images = instance.atoll(["image", "ls", "-o", "json"]).json();
    assert_eq!(
        images["items"].as_array().map(Vec::len),
        Some(1),
        "only the imported one: {images}"
    );
    let refused = instance.atoll(["run", "--pull", "never", &reference, "--", "true"]);
    refused.ended_with(125);
    refused.complains("half");
    instance.has_no_sandboxes();

    let healthy = Registry::start(&address, &image, false);
    instance.atoll(["image", "pull", "--plain-http", &reference]).succeeded();
    let asked = healthy.asked_from.lock().unwrap().clone();
    assert!(
        asked.len() == 1 && asked[0] > 0,
        "the second pull goes on where the first ended: {asked:?}"
    );
    let pulled = instance.atoll(["run", "--pull", "never", &reference, "--", "cat", "/etc/pulled"]);
    assert_eq!(pulled.succeeded(), "whole\n");
    instance.end();
}
