//! The API over real HTTP: codes, shapes and what clients rely on.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a failed expectation is a failed test"
)]

mod support;

use atoll_wire::rest::Sandbox;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Lines, TestServer, answer, error, manifest};

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_created_runs_is_seen_and_goes() {
    let server = TestServer::start().await;
    let made = server.create("one", &["sleep", "1000"]).await;
    assert_eq!((made.status.phase.as_str(), made.status.ready), ("Running", true));
    assert_eq!(made.status.class.as_deref(), Some("sim"));
    assert_eq!(made.status.node_name.as_deref(), Some("test-node"));
    assert_eq!(made.status.containers[0].state, "running");
    assert_eq!(made.status.containers[0].image_digest.as_deref(), Some(support::DIGEST));
    let (status, body) = server.get("/api/v1/sandboxes").await;
    assert_eq!((status, body["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    assert_eq!(server.images.leases.lock().unwrap().len(), 1);
    let (status, body) = server.delete("/api/v1/sandboxes/one").await;
    assert_eq!((status, body), (StatusCode::OK, json!({"deleted": "one"})));
    assert_eq!(server.host.running(), Vec::<String>::new(), "nothing is left on the host");
    assert!(server.images.leases.lock().unwrap().is_empty());
    let (status, body) = server.get("/api/v1/sandboxes/one").await;
    assert_eq!((status, error(&body).code.as_str()), (StatusCode::NOT_FOUND, "not_found"));
    assert_eq!(server.events("one").await, ["Created", "Started", "Deleting", "Deleted"]);
    assert_eq!(server.create("one", &["true"]).await.id, "one", "the name is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_has_its_phases_in_order_and_they_sum_to_the_total() {
    let server = TestServer::start().await;
    let timeline =
        server.create("one", &["sleep", "1000"]).await.status.timeline.expect("a timeline");
    let names: Vec<&str> = timeline.phases.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        ["store", "queue", "image", "prepare", "spawn", "sandbox", "command", "publish"]
    );
    assert_eq!(timeline.phases.iter().map(|it| it.micros).sum::<u64>(), timeline.total_micros);
    let (_, metrics) = server.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("atoll_creation_phase_seconds_count{phase=\"publish\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("atoll_sandboxes{phase=\"Running\"} 1"));
    // In the metrics too: over several creations, and the same numbers.
    let mut micros = timeline.total_micros;
    for id in ["two", "three"] {
        micros += server.create(id, &["sleep", "1000"]).await.status.timeline.unwrap().total_micros;
    }
    let (_, metrics) = server.get("/metrics").await;
    let seconds = |name: &str| -> f64 {
        let lines = metrics.as_str().unwrap().lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    let (whole, parts) =
        (seconds("atoll_creation_seconds_sum"), seconds("atoll_creation_phase_seconds_sum"));
    assert!((whole - parts).abs() < 1e-9, "{whole} {parts}");
    assert!((whole - micros as f64 / 1e6).abs() < 1e-9, "{whole} s, {micros} us");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_as_they_were() {
    let server = TestServer::start().await;
    server.create("good", &["true"]).await;
    let good = server.wait("good", "ended").await;
    assert_eq!(
        (good.status.phase.as_str(), good.status.containers[0].exit_code),
        ("Succeeded", Some(0))
    );
    server.create("bad", &["exit", "3"]).await;
    let bad = server.wait("bad", "ended").await;
    assert_eq!(
        (bad.status.phase.as_str(), bad.status.reason.as_deref()),
        ("Failed", Some("Error"))
    );
    assert_eq!(bad.status.containers[0].exit_code, Some(3));
    assert_eq!(bad.status.last_error.as_deref(), Some("container main: exit code 3"));
    server.create("killed", &["kill", "-9", "1"]).await;
    let killed = server.wait("killed", "ended").await;
    assert_eq!(
        (killed.status.containers[0].exit_code, killed.status.containers[0].signal),
        (Some(137), Some(9))
    );
    server.create("memory", &["exhaust-memory"]).await;
    assert_eq!(server.wait("memory", "ended").await.status.reason.as_deref(), Some("OutOfMemory"));
    server.create("none", &["no-such-program"]).await;
    assert_eq!(server.wait("none", "ended").await.status.reason.as_deref(), Some("StartFailed"));
    let leases = server.images.leases.lock().unwrap().len();
    assert_eq!(leases, 0, "what is over needs no image");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_token() {
    let server = TestServer::start().await;
    let plain = |path: &str| server.client.get(format!("{}{path}", server.address));
    let (status, body) = answer(plain("/healthz")).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"ok": true})));
    for path in
        ["/api/v1/sandboxes", "/metrics", "/api/v1/node", "/nothing", "/api/v1/sandboxes/x/exec"]
    {
        let (status, body) = answer(plain(path)).await;
        assert_eq!(
            (status, body["error"].as_str()),
            (StatusCode::UNAUTHORIZED, Some("unauthorized")),
            "{path}"
        );
        let (status, _) = answer(plain(path).bearer_auth("0".repeat(64))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    // sandboxd-o's clients may leave out the scheme, or write it in lower case.
    for header in [server.token.clone(), format!("bearer {}", server.token)] {
        let (status, _) = answer(plain("/api/v1/version").header("authorization", header)).await;
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_one_shape_with_a_request_id() {
    let server = TestServer::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/api/v1/nothing", StatusCode::NOT_FOUND, "not_found"),
        (Method::PUT, "/api/v1/sandboxes", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::GET, "/api/v1/sandboxes/none", StatusCode::NOT_FOUND, "not_found"),
        (Method::DELETE, "/api/v1/sandboxes/..%2f..%2fetc", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/api/v1/sandboxes?wat=1", StatusCode::BAD_REQUEST, "malformed"),
        (Method::GET, "/api/v1/sandboxes/none/exec", StatusCode::BAD_REQUEST, "malformed"),
        (Method::GET, "/api/v1/images/inspect?reference=nope", StatusCode::NOT_FOUND, "not_found"),
    ] {
        let (found, body) = answer(server.request(method, path)).await;
        let body = error(&body);
        assert_eq!((found, body.code.as_str()), (status, code), "{path}: {body:?}");
        assert!(!body.error.is_empty() && body.request_id.contains('-'), "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_a_conflict_also_among_a_hundred_at_once() {
    let server = TestServer::start().await;
    let creates =
        (0..100).map(|_| server.post("/api/v1/sandboxes", manifest("same", &["sleep", "1000"])));
    let answers = futures::future::join_all(creates).await;
    let made = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(made, 1);
    for (status, body) in answers.iter().filter(|(status, _)| *status != StatusCode::CREATED) {
        assert_eq!((*status, error(body).code.as_str()), (StatusCode::CONFLICT, "already_exists"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_all_run_and_all_go() {
    let server = TestServer::start().await;
    let ids: Vec<String> = (0..100).map(|index| format!("s{index}")).collect();
    futures::future::join_all(ids.iter().map(|id| server.create(id, &["sleep", "1000"]))).await;
    assert_eq!(server.host.running().len(), 100);
    let (_, body) = server.get("/api/v1/sandboxes").await;
    let items: Vec<Sandbox> = serde_json::from_value(body["items"].clone()).unwrap();
    assert!(items.iter().all(|it| it.status.phase == "Running"));
    assert!(items.is_sorted_by_key(|it| it.created_at.clone()));
    let paths: Vec<String> = ids.iter().map(|id| format!("/api/v1/sandboxes/{id}")).collect();
    let answers = futures::future::join_all(paths.iter().map(|path| server.delete(path))).await;
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK), "{answers:?}");
    assert!(server.host.running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_with_what_is_there_and_resumes_where_it_was() {
    let server = TestServer::start().await;
    server.create("a", &["sleep", "1000"]).await;
    let mut lines = Lines::of(
        server.request(Method::GET, "/api/v1/sandboxes?watch=true").send().await.unwrap(),
    );
    let first = lines.next().await.unwrap();
    assert_eq!(
        (first["type"].as_str(), first["object"]["id"].as_str()),
        (Some("ADDED"), Some("a"))
    );
    let bookmark = lines.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let version = bookmark["resource_version"].as_u64().unwrap();
    server.create("b", &["sleep", "1000"]).await;
    server.delete("/api/v1/sandboxes/a").await;
    let resumed = format!("/api/v1/sandboxes?watch=true&resource_version={version}");
    let mut resumed = Lines::of(server.request(Method::GET, &resumed).send().await.unwrap());
    let until_gone = async |lines: &mut Lines| {
        let mut seen: Vec<(String, String, u64)> = Vec::new();
        loop {
            let line = lines.next().await.unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            seen.push((
                text(&line["type"]),
                text(&line["object"]["id"]),
                line["resource_version"].as_u64().unwrap(),
            ));
            if line["type"] == "DELETED" {
                return seen;
            }
        }
    };
    let seen = until_gone(&mut lines).await;
    assert_eq!(
        seen,
        until_gone(&mut resumed).await,
        "the same again, nothing missing, nothing twice"
    );
    assert_eq!((seen[0].0.as_str(), seen[0].1.as_str()), ("ADDED", "b"));
    assert!(seen.is_sorted_by_key(|it| it.2));
    let (status, body) = server.get("/api/v1/sandboxes?watch=true&resource_version=999999").await;
    assert_eq!((status, error(&body).code.as_str()), (StatusCode::GONE, "gone"));
}
