//! A server in a process of its own, which can be killed and configured by its environment. The process is this test program again.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atoll_runtime::sim::{SimHost, SimRuntime};
use atoll_server::{DataDir, ServerConfig};
use reqwest::StatusCode;
use support::{FakeImages, PATIENCE, TestServer, manifest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DIRECTORY: &str = "ATOLL_TEST_DATA_DIR";

/// In the child: serves for ever.
fn serve_if_child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ServerConfig {
        data_dir: DataDir::open(Path::new(&directory)).unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        node_name: "child".into(),
        runtimes: vec![Arc::new(SimRuntime::new(SimHost::new()))],
        missing_classes: Vec::new(),
        network: Err("started without".into()),
        sandbox_network: None,
        volume_disks: None,
        node_labels: std::collections::BTreeMap::new(),
        port_range: atoll_model::ports::DEFAULT_PORT_RANGE,
        egress_grants: Vec::new(),
        images: Arc::new(FakeImages::default()),
        concurrent_launches: None,
        create_limit: None,
        privileges: atoll_server::Privileges::default(),
        on_serving: Some(Box::new(|address| println!("serving {address}"))),
    };
    runtime.block_on(atoll_server::run(config, std::future::pending())).unwrap();
}

/// A server in its own process; killed when dropped.
struct Server {
    child: Child,
    address: String,
    token: String,
}

impl Server {
    fn start(test: &str, directory: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(DIRECTORY, directory)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving =
            lines.find_map(|line| line.unwrap().strip_prefix("serving ").map(str::to_owned));
        let address = serving.expect("the server ended before it served");
        std::thread::spawn(move || lines.for_each(drop));
        let token = std::fs::read_to_string(directory.join("token")).unwrap().trim().to_owned();
        Self { child, address, token }
    }

    fn kill(&mut self) {
        // Already dead is as good.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

/// Creates and deletes until the server is gone; what was acknowledged is in the sets.
async fn load(
    server_address: String,
    token: String,
    worker: usize,
    made: Arc<Mutex<BTreeSet<String>>>,
    gone: Arc<Mutex<BTreeSet<String>>>,
) {
    let client = client();
    for index in 0.. {
        let id = format!("w{worker}-{index}");
        let url = format!("{server_address}/api/v1/sandboxes");
        let body = manifest(&id, &["sleep", "1000"]).to_string();
        let Ok(answer) = client.post(&url).bearer_auth(&token).body(body).send().await else {
            return;
        };
        assert_eq!(answer.status(), StatusCode::CREATED);
        made.lock().unwrap().insert(id.clone());
        if index % 3 == 0 {
            // Asked for: it may be gone or not until it is acknowledged.
            made.lock().unwrap().remove(&id);
            let Ok(answer) = client.delete(format!("{url}/{id}")).bearer_auth(&token).send().await
            else {
                return;
            };
            assert_eq!(answer.status(), StatusCode::OK);
            gone.lock().unwrap().insert(id);
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    serve_if_child();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (made, gone) =
        (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(BTreeSet::new())));
    for round in 0..3_usize {
        let mut server =
            Server::start("what_was_acknowledged_survives_kill_9", directory.path(), &[]);
        let loads: Vec<_> = (0..4)
            .map(|worker| {
                let load = load(
                    server.address.clone(),
                    server.token.clone(),
                    round * 10 + worker,
                    Arc::clone(&made),
                    Arc::clone(&gone),
                );
                runtime.spawn(load)
            })
            .collect();
        // In the middle of it: the moment within the next requests is not chosen.
        let begun = Instant::now();
        while made.lock().unwrap().len() < 20 * (round + 1) {
            assert!(begun.elapsed() < PATIENCE, "there is hardly any load");
            std::thread::sleep(Duration::from_millis(5));
        }
        server.kill();
        for load in loads {
            runtime.block_on(load).unwrap();
        }
    }
    runtime.block_on(async {
        let server = TestServer::start_on(Arc::clone(&directory), SimHost::new()).await;
        let (_, body) = server.get("/api/v1/sandboxes").await;
        let found: BTreeSet<String> = body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["id"].as_str().unwrap().to_owned())
            .collect();
        let (made, gone) = (made.lock().unwrap().clone(), gone.lock().unwrap().clone());
        assert_eq!(
            made.difference(&found).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "acknowledged and lost"
        );
        assert_eq!(
            gone.intersection(&found).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "acknowledged as deleted and back"
        );
        for id in &found {
            let sandbox = server.wait(id, "running").await;
            assert!(
                matches!(sandbox.status.phase.as_str(), "Running" | "Failed"),
                "{id}: {}",
                sandbox.status.phase
            );
        }
        server.stop().await;
    });
}

/// Answers one request after the other with 200 and keeps their paths and bodies.
async fn collect(
    listener: tokio::net::TcpListener,
    requests: tokio::sync::mpsc::UnboundedSender<(String, Vec<u8>)>,
) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let requests = requests.clone();
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            while let Ok(count) = stream.read_buf(&mut bytes).await {
                let head = bytes.windows(4).position(|it| it == b"\r\n\r\n").map(|at| at + 4);
                let length = head.and_then(|head| {
                    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
                    text.split("content-length: ")
                        .nth(1)?
                        .split("\r\n")
                        .next()?
                        .parse::<usize>()
                        .ok()
                });
                if let (Some(head), Some(length)) = (head, length)
                    && bytes.len() >= head + length
                {
                    let path = String::from_utf8_lossy(&bytes[..head])
                        .split(' ')
                        .nth(1)
                        .unwrap_or_default()
                        .to_owned();
                    requests.send((path, bytes[head..head + length].to_vec())).ok();
                    bytes.drain(..head + length);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok();
                }
                if count == 0 {
                    return;
                }
            }
        });
    }
}

/// Fields of a protobuf message: number, value of a fixed64 (else 0), bytes of what has a length (else none).
/// SOURCE: protobuf.dev, encoding.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        while let Some((byte, rest)) = bytes.split_first() {
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (mut fixed, mut data) = (0, &bytes[..0]);
        match key & 7 {
            0 => drop(varint(&mut bytes)),
            1 => {
                fixed = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                bytes = &bytes[8..];
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                (data, bytes) = bytes.split_at(length);
            }
            5 => bytes = &bytes[4..],
            other => panic!("wire type {other}"),
        }
        found.push((key >> 3, fixed, data));
    }
    found
}

/// A span as it was exported.
#[derive(Debug, Default, Clone)]
struct Exported {
    name: String,
    id: Vec<u8>,
    parent: Vec<u8>,
    begin_nanos: u64,
    end_nanos: u64,
}

/// The spans of an export. SOURCE: opentelemetry-proto, trace.proto: resource_spans 1, scope_spans 2, spans 2, and a span's fields.
fn spans(export: &[u8]) -> Vec<Exported> {
    let within = |bytes, number| fields(bytes).into_iter().filter(move |it| it.0 == number);
    let mut found = Vec::new();
    for (_, _, resource) in within(export, 1) {
        for (_, _, scope) in within(resource, 2) {
            for (_, _, span) in within(scope, 2) {
                let mut exported = Exported::default();
                for (number, fixed, data) in fields(span) {
                    match number {
                        2 => exported.id = data.to_vec(),
                        4 => exported.parent = data.to_vec(),
                        5 => exported.name = String::from_utf8(data.to_vec()).unwrap(),
                        7 => exported.begin_nanos = fixed,
                        8 => exported.end_nanos = fixed,
                        _ => {}
                    }
                }
                found.push(exported);
            }
        }
    }
    found
}

#[test]
fn a_creation_is_a_tree_of_spans_at_the_configured_collector() {
    serve_if_child();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(collect(listener, sender));
        let environment =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
        let server = Server::start(
            "a_creation_is_a_tree_of_spans_at_the_configured_collector",
            directory.path(),
            &environment,
        );
        let create = client()
            .post(format!("{}/api/v1/sandboxes?wait=running", server.address))
            .bearer_auth(&server.token)
            .body(manifest("traced", &["sleep", "1000"]).to_string());
        let created = create.send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
        let created: serde_json::Value =
            serde_json::from_str(&created.text().await.unwrap()).unwrap();
        let timeline = &created["sandbox"]["status"]["timeline"];
        let (mut told, mut exported) = (Vec::new(), Vec::new());
        let all = [
            "sandbox.create",
            "traced",
            "store",
            "queue",
            "image",
            "prepare",
            "spawn",
            "sandbox",
            "command",
            "publish",
            "atoll.class",
        ];
        let has =
            |told: &[u8], word: &str| told.windows(word.len()).any(|it| it == word.as_bytes());
        while !all.iter().all(|word| has(&told, word)) {
            let (path, body) = tokio::time::timeout(PATIENCE, requests.recv())
                .await
                .expect("no spans came")
                .unwrap();
            assert_eq!(path, "/v1/traces");
            exported.extend(spans(&body));
            told.extend(body);
        }
        // Children that follow one another without a gap, from the root's begin to its end, each as long as the API says.
        let root = exported.iter().find(|it| it.name == "sandbox.create").unwrap();
        let mut children: Vec<_> = exported.iter().filter(|it| it.parent == root.id).collect();
        children.sort_by_key(|it| (it.begin_nanos, it.end_nanos));
        assert_eq!(children.len(), 8, "{exported:?}");
        let mut at = root.begin_nanos;
        for phase in timeline["phases"].as_array().unwrap() {
            let child = children.iter().find(|it| phase["name"] == it.name.as_str()).unwrap();
            assert_eq!(child.begin_nanos, at, "{child:?}");
            at += phase["micros"].as_u64().unwrap() * 1000;
            assert_eq!(child.end_nanos, at, "{child:?}");
        }
        assert_eq!(root.end_nanos, at);
        assert_eq!(timeline["total_micros"], (at - root.begin_nanos) / 1000);
    });
}

#[test]
fn a_second_server_on_a_data_directory_is_refused() {
    serve_if_child();
    let directory = tempfile::tempdir().unwrap();
    let first =
        Server::start("a_second_server_on_a_data_directory_is_refused", directory.path(), &[]);
    let mut second = Command::new(std::env::current_exe().unwrap())
        .args(["a_second_server_on_a_data_directory_is_refused", "--exact", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    second.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(!second.wait().unwrap().success());
    assert!(told.contains("Locked") && told.contains(&first.child.id().to_string()), "{told}");
    drop(first);
    // The kernel gave the lock back.
    DataDir::open(directory.path()).unwrap();
}
