//! The progress of a pull: there while a person looks at a terminal, gone without a trace afterwards, and nowhere else.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use atoll_image::Digest;

use crate::support::{Finished, Instance, atoll, finish, instance_with_image, skipped};

/// Pieces in which the layer comes, and the pause before each: several seconds in all, far more than the second after which a bar shows.
const PIECES: usize = 30;
const PAUSE: Duration = Duration::from_millis(120);

/// A registry on loopback with one image, whose layer comes slowly.
struct SlowRegistry {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowRegistry {
    /// Each number is an image of its own.
    fn start(number: u8) -> Self {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let content = vec![number; 1 << 20];
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, "content", content.as_slice()).unwrap();
        let layer = archive.into_inner().unwrap();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            Digest::of(&layer)
        );
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::of(&layer).to_string(), "size": layer.len()}],
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let bodies = [manifest.to_string().into_bytes(), config.into_bytes(), layer];
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is no failure of the registry's.
                let _ = stream.and_then(|stream| answer(stream, &bodies));
            }
        });
        Self { address, ended, thread: Some(thread) }
    }

    fn reference(&self) -> String {
        format!("{}/slow:1", self.address)
    }
}

impl Drop for SlowRegistry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers one request with manifest, configuration or, slowly, the layer.
fn answer(mut stream: TcpStream, bodies: &[Vec<u8>; 3]) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let [manifest, config, layer] = bodies;
    let (status, kind, body) = if path.contains("/manifests/") {
        (200, "application/vnd.oci.image.manifest.v1+json", manifest.as_slice())
    } else if path.ends_with(&Digest::of(config).to_string()) {
        (200, "application/octet-stream", config.as_slice())
    } else if path.ends_with(&Digest::of(layer).to_string()) {
        (200, "application/octet-stream", layer.as_slice())
    } else {
        (if path == "/v2/" { 200 } else { 404 }, "application/json", b"{}".as_slice())
    };
    let length = body.len();
    stream.write_all(
        format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n")
            .as_bytes(),
    )?;
    if length <= 1 << 20 {
        return stream.write_all(body);
    }
    for piece in body.chunks(length.div_ceil(PIECES)) {
        // Time itself is what a bar waits for: a transfer that takes none has no progress to show.
        std::thread::sleep(PAUSE);
        stream.write_all(piece)?;
    }
    Ok(())
}

/// Pulls on a terminal of its own; what follows the command goes to the terminal's shell. Gives all that the terminal was sent.
fn pull_on_a_terminal(instance: &Instance, reference: &str, more: &str) -> Finished {
    let program = env!("CARGO_BIN_EXE_atoll");
    let line =
        format!("stty rows 33 cols 101; '{program}' image pull --plain-http '{reference}' {more}");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    command.env("ATOLL_DATA_DIR", instance.data_dir()).env("TERM", "xterm");
    finish(command, b"")
}

/// What a person sees in the end: carriage returns, cleared lines and movements upwards carried out.
fn screen(sent: &str) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0_usize, 0_usize);
    let mut letters = sent.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                assert_eq!(letters.next(), Some('['), "a control sequence");
                let mut number = String::new();
                let last = letters
                    .by_ref()
                    .inspect(|letter| number.push(*letter))
                    .find(char::is_ascii_alphabetic);
                let count = number.trim_end_matches(char::is_alphabetic).parse().unwrap_or(1);
                match last {
                    Some('K') if number.starts_with('2') => lines[row].clear(),
                    Some('K') => lines[row].truncate(column),
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    // Colours, and whether the cursor is shown.
                    Some('m' | 'h' | 'l') => {}
                    other => panic!("a sequence {number:?} that ends with {other:?}"),
                }
            }
            letter => {
                if lines[row].len() <= column {
                    lines[row].resize(column + 1, ' ');
                }
                lines[row][column] = letter;
                column += 1;
            }
        }
        if lines.len() <= row {
            lines.resize(row + 1, Vec::new());
        }
    }
    let text = lines.into_iter().map(|line| line.into_iter().collect::<String>());
    text.map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_pull_shows_its_progress_to_a_terminal_and_leaves_no_trace_of_it() {
    if Command::new("script").arg("--version").output().is_err() {
        return skipped("progress", "script (bsdutils) is not installed");
    }
    let Some(instance) = instance_with_image("progress") else { return };
    let registry = SlowRegistry::start(1);
    let reference = registry.reference();
    let pulled = pull_on_a_terminal(&instance, &reference, "");
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    let sent = pulled.text();
    // Bytes of bytes, more than once, and they grow.
    let done: Vec<&str> = sent
        .split("] ")
        .skip(1)
        .filter_map(|rest| rest.split_once('/').map(|(done, _)| done))
        .collect();
    assert!(done.len() >= 2 && done.first() != done.last(), "{done:?} of {sent:?}");
    assert!(sent.contains("1.00 MiB") || sent.contains("1.0 MiB"), "the total: {sent:?}");
    let left = screen(&sent);
    assert!(left.len() == 1 && left[0].contains(&reference), "only the image: {left:?}: {sent:?}");
    let (hidden, shown) =
        (sent.matches("\u{1b}[?25l").count(), sent.matches("\u{1b}[?25h").count());
    assert_eq!(hidden, shown, "the cursor is there again: {sent:?}");

    // What is written to a file is for programs, though the terminal is there.
    let registry = SlowRegistry::start(2);
    let file = tempfile::NamedTempFile::new().unwrap();
    let redirect = format!("2> '{}'", file.path().display());
    let pulled = pull_on_a_terminal(&instance, &registry.reference(), &redirect);
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "");
    assert_eq!(screen(&pulled.text()).len(), 1, "{pulled:?}");
    assert!(!pulled.text().contains("] "), "{pulled:?}");
    instance.end();
}

#[test]
fn a_pull_without_a_terminal_says_what_it_got_and_nothing_else() {
    let Some(instance) = instance_with_image("no_progress") else { return };
    let registry = SlowRegistry::start(3);
    let reference = registry.reference();
    let mut command = atoll(["image", "pull", "--plain-http", &reference]);
    command.env("ATOLL_DATA_DIR", instance.data_dir()).env_remove("NO_COLOR").env("TERM", "xterm");
    let pulled = finish(command, b"");
    let text = pulled.succeeded();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&reference) && !text.contains(['\r', '\u{1b}']), "{text:?}");
    assert_eq!(pulled.stderr, "", "nothing for a person who is not there");
    instance.end();
}
