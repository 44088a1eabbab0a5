//! A registry on loopback that serves one image of one layer, plain or over TLS, and can die in the middle of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use atoll_image::Digest;

use super::archive;

/// How long a client may keep the registry waiting. It serves one after the other.
const PATIENCE: Duration = Duration::from_secs(20);

/// One image of one layer.
pub struct Served {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Served {
    /// The busybox image with one file more, so that it is another than the imported one: `/etc/pulled`, which says `whole`.
    pub fn new() -> Self {
        let mut layer = archive().unwrap_or_default().to_vec();
        // Without the blocks that end an archive.
        layer.truncate(layer.len().saturating_sub(1024));
        let mut more = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_mode(0o644);
        header.set_size(6);
        more.append_data(&mut header, "etc/pulled", b"whole\n".as_slice()).expect("a file");
        layer.extend(more.into_inner().expect("the archive's end"));
        Self::of_layer(layer)
    }

    fn of_layer(layer: Vec<u8>) -> Self {
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

/// How a registry behaves.
#[derive(Default)]
pub struct Behaviour {
    /// TLS, with this certificate.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// It ends with the first half of the layer: its connections and its port are closed then.
    pub dies: bool,
}

/// A registry on loopback; ended when dropped.
pub struct Registry {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    paths: Mutex<Vec<String>>,
    layer_from: Mutex<Vec<usize>>,
}

impl Registry {
    /// Starts one at this address.
    pub fn start(address: &str, image: &Arc<Served>, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let (seen, ended) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (image, noted, stop) = (Arc::clone(image), Arc::clone(&seen), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // One after the other: a client with several connections waits. A client that goes away is no failure of the registry's.
                let served = stream.and_then(|stream| connect(stream, &image, &noted, &behaviour));
                if let Ok(true) = served {
                    return;
                }
            }
        });
        Self { address, seen, ended, thread: Some(thread) }
    }

    /// The image it has.
    pub fn reference(&self) -> String {
        format!("{}/half:1", self.address)
    }

    /// The first byte of the layer that each request for it asked for.
    pub fn layer_asked_from(&self) -> Vec<usize> {
        self.seen.layer_from.lock().expect("no panic before").clone()
    }

    /// The paths of all requests that it could read.
    pub fn paths(&self) -> Vec<String> {
        self.seen.paths.lock().expect("no panic before").clone()
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

fn connect(
    stream: TcpStream,
    image: &Served,
    seen: &Seen,
    behaviour: &Behaviour,
) -> std::io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let Some(tls) = &behaviour.tls else { return serve(stream, image, seen, behaviour.dies) };
    let session = rustls::ServerConnection::new(Arc::clone(tls)).map_err(std::io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(session, stream);
    let dies = serve(&mut stream, image, seen, behaviour.dies)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(dies)
}

/// Answers one request. True: the registry is to be dead from now on.
fn serve(
    mut stream: impl Read + Write,
    image: &Served,
    seen: &Seen,
    dies: bool,
) -> std::io::Result<bool> {
    let (mut path, mut from) = (String::new(), 0);
    for line in BufReader::new(&mut stream).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_ascii_lowercase();
        if path.is_empty() {
            if !line.starts_with("get ") {
                break;
            }
            path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    if path.is_empty() {
        let refused = b"HTTP/1.1 400 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        return stream.write_all(refused).map(|()| false);
    }
    seen.paths.lock().expect("no panic before").push(path.clone());
    let is = |bytes: &[u8]| path.ends_with(&Digest::of(bytes).to_string());
    let (status, kind, body) = if path.contains("/manifests/") {
        (200, "application/vnd.oci.image.manifest.v1+json", image.manifest.as_slice())
    } else if is(&image.config) {
        (200, "application/octet-stream", image.config.as_slice())
    } else if is(&image.layer) {
        seen.layer_from.lock().expect("no panic before").push(from);
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
    stream.flush()?;
    Ok(dies)
}
