//! What clients send wrongly, or on purpose: a precise error, the right status, nothing half-made.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{TestServer, answer, error, manifest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing was made.
async fn assert_untouched(server: &TestServer) {
    let (_, body) = server.get("/api/v1/sandboxes").await;
    assert_eq!(body["items"], json!([]));
    assert!(server.host.running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_field_is_a_422_with_its_path() {
    let server = TestServer::start().await;
    let with = |field: &str, value: Value| {
        let mut body = manifest("x", &["true"]);
        let target = field.split('/').fold(&mut body, |value, step| match step.parse::<usize>() {
            Ok(index) => &mut value[index],
            Err(_) => &mut value[step],
        });
        *target = value;
        body
    };
    let many: Vec<Value> =
        (0..10_000).map(|index| json!({"name": format!("c{index}"), "image": "busybox"})).collect();
    for (field, value, path) in [
        ("id", json!("../../etc/passwd"), "id"),
        ("id", json!("x".repeat(300)), "id"),
        ("id", json!(""), "id"),
        ("spec/containers", json!(many), "spec.containers"),
        ("spec/containers", json!([]), "spec.containers"),
        (
            "spec/containers/0/resource",
            json!({"memory": "-1"}),
            "spec.containers[0].resource.memory",
        ),
        (
            "spec/containers/0/resource",
            json!({"memory": "1e400"}),
            "spec.containers[0].resource.memory",
        ),
        ("spec/containers/0/resource", json!({"cpu": "0"}), "spec.containers[0].resource.cpu"),
        ("spec/containers/0/resource", json!({"pids": -5}), "spec.containers[0].resource.pids"),
        ("spec/containers/0/image", json!("Not An Image"), "spec.containers[0].image"),
        ("spec/containers/0/memmory", json!(1), "spec.containers[0].memmory"),
        ("spec/ttl_seconds", json!(-1), "spec.ttl_seconds"),
        ("spec/ttl_seconds", json!("soon"), "spec.ttl_seconds"),
        ("spec/class", json!("gvisor"), "spec.class"),
        ("spec/egress", json!(true), "spec.egress"),
        ("spec/ports", json!([{"container_port": 80}]), "spec.ports"),
    ] {
        let (status, body) = server.post("/api/v1/sandboxes", with(field, value)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{field}: {body}");
        let body = error(&body);
        assert_eq!(body.fields[0].path, path, "{body:?}");
        let code =
            if matches!(field, "spec/egress" | "spec/ports") { "not_enforced" } else { "invalid" };
        assert_eq!(body.code, code, "{body:?}");
        assert!(body.error.len() < 500, "for people: {}", body.error);
    }
    let (_, body) = server
        .post("/api/v1/sandboxes", with("spec/containers/0/resource", json!({"memmory": "1Mi"})))
        .await;
    assert!(error(&body).error.contains("did you mean \"memory\"?"), "{body}");
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_quantities_are_a_422_with_their_path_and_odd_numbers_no_document() {
    let server = TestServer::start().await;
    let odd = [
        "-1",
        "-0.001",
        "0",
        "0.0",
        "0Mi",
        "-0",
        "NaN",
        "nan",
        "inf",
        "Infinity",
        "1e400",
        "1e-400",
        "1e99999999999",
        "1E2147483648",
        "0x10",
        "1_000",
        "1,5",
        "1.2.3",
        "1 Mi",
        " 64Mi",
        "64Mi ",
        "64mi",
        "64MiB",
        "\u{663}\u{662}Mi",
        "1\u{0}",
        "",
        "Mi",
        "e5",
        "--1",
        "+-1",
        "99999999999999999999999Ei",
    ];
    let long = "9".repeat(1 << 20);
    for text in odd.into_iter().chain([long.as_str()]) {
        for field in ["memory", "cpu", "ephemeral_storage"] {
            let mut body = manifest("x", &["true"]);
            body["spec"]["containers"][0]["resource"] = json!({field: text});
            let shown: String = text.chars().take(40).collect();
            let (status, body) = server.post("/api/v1/sandboxes", body).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{field}: {shown:?}: {body}");
            let body = error(&body);
            assert_eq!(body.fields.len(), 1, "{field}: {shown:?}: {body:?}");
            assert_eq!(body.fields[0].path, format!("spec.containers[0].resource.{field}"));
            assert!(body.error.len() < 500, "{body:?}");
        }
    }
    // A number that JSON or YAML can write and no machine can hold is no document; one that it can hold is a field.
    for (number, kind, expected) in [
        ("1e400", "application/json", 400),
        ("-1e400", "application/json", 400),
        ("NaN", "application/json", 400),
        ("Infinity", "application/json", 400),
        ("01", "application/json", 400),
        ("1.", "application/json", 400),
        ("-1", "application/json", 422),
        ("0", "application/json", 422),
        ("1e308", "application/json", 422),
        ("true", "application/json", 422),
        ("null", "application/json", 201),
        ("[1]", "application/json", 422),
        (".nan", "application/yaml", 400),
        (".inf", "application/yaml", 400),
        ("-.inf", "application/yaml", 400),
        ("-1", "application/yaml", 422),
        ("1e400", "application/yaml", 422),
        ("!!float 1", "application/yaml", 201),
    ] {
        let text = format!(
            "{{\"id\": \"n\", \"spec\": {{\"containers\": [{{\"name\": \"main\", \"image\": \"busybox\", \"resource\": {{\"cpu\": {number}}}}}]}}}}"
        );
        let request =
            server.request(Method::POST, "/api/v1/sandboxes").header("content-type", kind);
        let (status, body) = answer(request.body(text)).await;
        assert_eq!(status.as_u16(), expected, "{number} as {kind}: {body}");
        if status == StatusCode::CREATED {
            server.delete("/api/v1/sandboxes/n").await;
        } else {
            assert!(!error(&body).error.is_empty());
        }
    }
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_and_words_are_a_422_and_never_come_back_raw() {
    let server = TestServer::start().await;
    for id in [
        "a\u{0}b",
        "\u{1b}[31m",
        "a b",
        "a/b",
        "/",
        ".",
        "..",
        "%2e%2e",
        "\u{1f3dd}",
        "\u{202e}x",
        "a\n",
        "-",
        "A\u{0}",
    ] {
        let (status, body) = server.post("/api/v1/sandboxes", manifest(id, &["true"])).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{id:?}: {body}");
        let body = error(&body);
        assert_eq!(body.fields[0].path, "id", "{body:?}");
        assert!(!body.error.contains(['\0', '\u{1b}', '\u{202e}', '\n']), "{body:?}");
    }
    let nested = format!("{}1{}", "[".repeat(31), "]".repeat(31));
    for (what, text, expected) in [
        ("a key twice", r#"{"id": "a", "id": "b", "spec": {"containers": []}}"#.to_owned(), 400),
        ("a key twice, deep", r#"{"spec": {"containers": [{"name": "a", "name": "b", "image": "busybox"}]}}"#.to_owned(), 400),
        ("two documents", r#"{"spec": {"containers": []}} {}"#.to_owned(), 400),
        ("nested as far as is read", nested.clone(), 422),
        ("nested deeper", format!("[[[{nested}]]]"), 400),
        ("an argument with NUL", r#"{"spec": {"containers": [{"name": "a", "image": "busybox", "args": ["a\u0000b"]}]}}"#.to_owned(), 422),
        ("an environment with NUL", r#"{"spec": {"containers": [{"name": "a", "image": "busybox", "env": ["A=\u0000"]}]}}"#.to_owned(), 422),
        ("half of a letter", r#"{"id": "\ud800", "spec": {"containers": []}}"#.to_owned(), 400),
        ("null", "null".to_owned(), 422),
        ("a list", "[]".to_owned(), 422),
    ] {
        let request = server.request(Method::POST, "/api/v1/sandboxes");
        let (status, body) = answer(request.body(text)).await;
        assert_eq!(status.as_u16(), expected, "{what}: {body}");
        assert!(!error(&body).error.is_empty(), "{what}");
    }
    // Compressed bodies are not read: what a kilobyte stands for would have no bound.
    let request =
        server.request(Method::POST, "/api/v1/sandboxes").header("content-encoding", "gzip");
    let (status, body) = answer(request.body(b"\x1f\x8b\x08\x00\x00\x00\x00\x00".to_vec())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_a_path_does_not_take_is_a_405_everywhere() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    for (method, path) in [
        (Method::POST, "/healthz"),
        (Method::POST, "/metrics"),
        (Method::DELETE, "/api/v1/version"),
        (Method::PUT, "/api/v1/node"),
        (Method::GET, "/api/v1/shutdown"),
        (Method::DELETE, "/api/v1/sandboxes"),
        (Method::PUT, "/api/v1/sandboxes/one"),
        (Method::POST, "/api/v1/nodes"),
        (Method::DELETE, "/api/v1/nodes/test-node"),
        (Method::POST, "/api/v1/sandboxes/one"),
        (Method::GET, "/api/v1/sandboxes/one/stop"),
        (Method::GET, "/api/v1/sandboxes/one/signal"),
        (Method::POST, "/api/v1/sandboxes/one/exec"),
        (Method::POST, "/api/v1/sandboxes/one/logs"),
        (Method::POST, "/api/v1/sandboxes/one/files"),
        (Method::POST, "/api/v1/events"),
        (Method::PUT, "/api/v1/images"),
        (Method::GET, "/api/v1/images/pull"),
        (Method::GET, "/api/v1/images/import"),
        (Method::GET, "/api/v1/images/gc"),
        (Method::POST, "/api/v1/registries"),
        (Method::TRACE, "/api/v1/sandboxes"),
        (Method::from_bytes(b"FROBNICATE").unwrap(), "/api/v1/sandboxes"),
    ] {
        let response = server.request(method.clone(), path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(response.headers().contains_key("allow"), "{method} {path}: what it does take");
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(error(&body).code, "method_not_allowed", "{method} {path}");
    }
    assert_eq!(server.sandbox("one").await.status.phase, "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_document_is_a_400() {
    let server = TestServer::start().await;
    let post = |kind: &'static str, body: Vec<u8>| {
        answer(
            server
                .request(Method::POST, "/api/v1/sandboxes")
                .header("content-type", kind)
                .body(body),
        )
    };
    let bomb = format!(
        "a: &a [{}]\nb: &b [{}]\nc: [{}]\n",
        "x,".repeat(1000),
        "*a,".repeat(1000),
        "*b,".repeat(1000)
    );
    for (kind, body) in [
        ("application/json", b"{".to_vec()),
        ("application/json", Vec::new()),
        ("application/json", vec![b'['; 100_000]),
        ("application/json", b"\xff\xfe".to_vec()),
        ("application/yaml", b"a: [".to_vec()),
        ("application/yaml", b"a: 1\n---\nb: 2\n".to_vec()),
        ("application/yaml", bomb.into_bytes()),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let (status, body) = post(kind, body).await;
        assert_eq!(
            (status, error(&body).code.as_str()),
            (StatusCode::BAD_REQUEST, "malformed"),
            "{shown}: {body}"
        );
    }
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yaml_manifest_of_sandboxd_o_is_read() {
    let server = TestServer::start().await;
    let yaml = "apiVersion: sandboxd.o/v1\nkind: sandbox\nid: web-1\nspec:\n  ttl_seconds: 600\n  containers:\n    - name: web\n      image: busybox\n      args: [sleep, '1000']\n      env: [A=b]\n      resource: {cpu: 500m, memory: 64Mi, ephemeral_storage: 128Mi}\n";
    let post = |text: String| {
        answer(
            server
                .request(Method::POST, "/api/v1/sandboxes")
                .header("content-type", "application/yaml")
                .body(text),
        )
    };
    let (status, body) = post(yaml.to_owned()).await;
    assert_eq!(
        (status, body["sandbox"]["id"].as_str()),
        (StatusCode::CREATED, Some("web-1")),
        "{body}"
    );
    assert!(body["sandbox"]["status"]["expire_at"].is_string());
    let (status, _) = post(yaml.replace("kind: sandbox", "kind: Node")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, body) = post(yaml.replace("sandboxd.o/v1", "sandboxd.o/v9")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
}

/// Sends raw bytes and reads what comes until the other side closes.
async fn raw(server: &TestServer, bytes: &[u8]) -> String {
    let address = server.address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 65536];
    let mut length = 0;
    while let Ok(Ok(count)) =
        tokio::time::timeout(support::PATIENCE, stream.read(&mut answer[length..])).await
    {
        length += count;
        if count == 0 || length == answer.len() || answer[..length].ends_with(b"}") {
            break;
        }
    }
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_is_refused_before_it_is_sent_and_when_its_size_is_not_told() {
    let server = TestServer::start().await;
    let head = |length: &str| {
        format!(
            "POST /api/v1/sandboxes HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{length}\r\n\r\n",
            server.token
        )
    };
    let answer = raw(&server, head("content-length: 1073741824").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("\"code\":\"too_large\""), "{answer}");
    // In chunks: the server stops reading soon after the limit, whatever else comes.
    let mut stream =
        TcpStream::connect(server.address.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head("transfer-encoding: chunked").as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    let sending = async {
        for _ in 0..1024 {
            if stream.write_all(&chunk).await.is_err() {
                break;
            }
            sent += 1;
        }
    };
    tokio::time::timeout(support::PATIENCE, sending).await.ok();
    assert!(sent < 64, "{sent} MiB were taken");
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off_and_harm_nobody() {
    let server = TestServer::start().await;
    let address = server.address.strip_prefix("http://").unwrap().to_owned();
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /healthz HT").await.unwrap();
        slow.push(stream);
    }
    server.create("one", &["sleep", "1000"]).await;
    // The time limit for headers is 10 s.
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(18), slow[0].read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "a connection without a request stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_fails_its_sandbox_with_a_reason() {
    let server = TestServer::start().await;
    for (image, pull, reason) in
        [("nope", "missing", "ImagePull"), ("nope", "never", "ImageNotFound")]
    {
        let body = json!({"id": pull, "spec": {"containers": [{"name": "main", "image": image, "pull": pull}]}});
        let (status, body) = server.post("/api/v1/sandboxes?wait=running", body).await;
        assert_eq!(status, StatusCode::CREATED);
        let status = &body["sandbox"]["status"];
        assert_eq!(
            (status["phase"].as_str(), status["reason"].as_str()),
            (Some("Failed"), Some(reason)),
            "{status}"
        );
        assert!(status["last_error"].as_str().unwrap().contains("nope"), "{status}");
    }
    let (status, _) = server.delete("/api/v1/sandboxes/never").await;
    assert_eq!(status, StatusCode::OK);
    let remote =
        json!({"id": "remote", "spec": {"containers": [{"name": "main", "image": "remote"}]}});
    let (_, body) = server.post("/api/v1/sandboxes?wait=running", remote).await;
    assert_eq!(body["sandbox"]["status"]["phase"], "Running", "{body}");
    assert_eq!(*server.images.pulled.lock().unwrap(), ["nope:latest", "remote:latest"]);
    let events = server.events("remote").await;
    assert!(
        events.contains(&"Pulling".to_owned()) && events.contains(&"Pulled".to_owned()),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_hangs_holds_up_nobody_and_can_be_deleted() {
    let server = TestServer::start().await;
    for index in 0..20 {
        let body = json!({"id": format!("slow{index}"), "spec": {"containers": [{"name": "main", "image": "slow"}]}});
        let (status, _) = server.post("/api/v1/sandboxes", body).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    server.create("quick", &["sleep", "1000"]).await;
    let deletes = (0..20).map(|index| format!("/api/v1/sandboxes/slow{index}")).collect::<Vec<_>>();
    let answers = futures::future::join_all(deletes.iter().map(|path| server.delete(path))).await;
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK), "{answers:?}");
}
