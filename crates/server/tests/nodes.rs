//! This machine as a node, sandboxes that ask for labels, and lives that are made longer.

#![allow(clippy::unwrap_used, reason = "test programs fail by panics")]

mod support;

use atoll_wire::rest::Sandbox;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{TestServer, manifest};

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_is_the_only_node_and_tells_what_is_spoken_for() {
    let server = TestServer::start().await;
    let (status, nodes) = server.get("/api/v1/nodes").await;
    assert_eq!((status, nodes["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let (_, node) = server.get("/api/v1/nodes/test-node").await;
    assert_eq!(node["node"]["state"], "Ready");
    assert_eq!(node["node"]["ip"], "127.0.0.1");
    assert_eq!(node["node"]["resources"]["used_cpu_milli"], 0);
    let mut body = manifest("one", &["sleep", "1000"]);
    body["spec"]["containers"][0]["resource"] = json!({"cpu": "250m", "memory": "64Mi"});
    server.post("/api/v1/sandboxes?wait=running", body).await;
    let (_, node) = server.get("/api/v1/nodes/test-node").await;
    let resources = &node["node"]["resources"];
    assert_eq!(resources["used_cpu_milli"], 250);
    assert_eq!(resources["used_memory_bytes"], 64 << 20);
    let number = |name: &str| resources[name].as_i64().unwrap();
    assert_eq!(number("available_cpu_milli"), number("allocatable_cpu_milli") - 250);
    let (status, error) = server.get("/api/v1/nodes/other").await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_labels_waits_until_a_node_has_them() {
    let server = TestServer::start().await;
    let mut body = manifest("picky", &["sleep", "1000"]);
    body["spec"]["node_selector"] = json!({"zone": "a"});
    let (status, _) = server.post("/api/v1/sandboxes", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let waits = |it: &Sandbox| it.status.reason.as_deref() == Some("NoNode");
    let it = server.until("picky", waits).await;
    assert_eq!(it.status.phase, "Pending");
    let why = it.status.last_error.unwrap();
    assert!(why.contains("zone=a"), "{why}");
    let (directory, host) = server.stop().await;
    let server = TestServer::start_labelled(directory, host, &[("zone", "a")]).await;
    let (status, it) = server.get("/api/v1/sandboxes/picky?wait=running").await;
    assert_eq!((status, &it["sandbox"]["status"]["reason"]), (StatusCode::OK, &Value::Null));
    assert_eq!(it["sandbox"]["status"]["phase"], "Running");
    let (_, node) = server.get("/api/v1/nodes/test-node").await;
    assert_eq!(node["node"]["metadata"]["labels"], json!({"zone": "a"}));
    let mut wrong = manifest("wrong", &["true"]);
    wrong["spec"]["node_selector"] = json!({" ": "a"});
    let (status, error) = server.post("/api/v1/sandboxes", wrong).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(error["fields"][0]["path"].as_str().unwrap().starts_with("spec.node_selector"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_made_longer_or_shorter_and_that_outlives_a_restart() {
    let server = TestServer::start().await;
    let mut body = manifest("leased", &["sleep", "1000"]);
    body["spec"]["ttl_seconds"] = json!(3600);
    server.post("/api/v1/sandboxes?wait=running", body).await;
    let patch = async |server: &TestServer, seconds: Value| {
        let body = json!({"spec": {"ttl_seconds": seconds}});
        let request = server.request(Method::PATCH, "/api/v1/sandboxes/leased").json(&body);
        let response = request.send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let (status, it) = patch(&server, json!(0)).await;
    assert_eq!((status, &it["sandbox"]["status"]["expire_at"]), (StatusCode::OK, &Value::Null));
    for wrong in [json!(-1), json!("soon"), json!(1e300)] {
        assert_eq!(patch(&server, wrong).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let (_, it) = patch(&server, json!(2)).await;
    assert!(it["sandbox"]["status"]["expire_at"].is_string());
    let server = server.restart().await;
    let (status, _) = server.get("/api/v1/sandboxes/leased?wait=deleted&timeout_seconds=15").await;
    assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{status}");
    let (status, _) = patch(&server, json!(5)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
