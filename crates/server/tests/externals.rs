//! Externals as sandboxd-o's clients use them, and creations that are sent twice.

#![allow(clippy::unwrap_used, reason = "test programs fail by panics")]

mod support;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{TestServer, answer, error, manifest};

fn external(id: &str, node: &str, external: &str) -> Value {
    json!({"id": id, "spec": {"node_id": node, "external": external}})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_is_shown_with_its_node_and_its_sandboxes_and_survives_a_restart() {
    let server = TestServer::start().await;
    let sandbox = server.create("one", &["sleep", "1000"]).await;
    assert_eq!(sandbox.status.external, None);
    let (_, node) = server.get("/api/v1/nodes/test-node").await;
    assert_eq!(node["node"]["resources"]["external"], "(none)");
    let put =
        |value: &'static str| server.post("/api/v1/externals", external("ext", "test-node", value));
    assert_eq!(put("10.1.2.3").await, (StatusCode::OK, json!({"ok": true})));
    assert_eq!(put("play.example.org").await, (StatusCode::OK, json!({"ok": true})));
    let server = server.restart().await;
    let (status, body) = server.get("/api/v1/externals").await;
    assert_eq!((status, body["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let (_, one) = server.get("/api/v1/externals/ext").await;
    let one = &one["external"];
    assert_eq!(one, &body["items"][0]);
    assert_eq!(
        (&one["node_id"], &one["external"]),
        (&json!("test-node"), &json!("play.example.org"))
    );
    assert!(one["created_at"].as_str() < one["updated_at"].as_str(), "{one}");
    let (_, node) = server.get("/api/v1/nodes/test-node").await;
    assert_eq!(node["node"]["resources"]["external"], "play.example.org");
    assert_eq!(server.sandbox("one").await.status.external.as_deref(), Some("play.example.org"));
    let (_, list) = server.get("/api/v1/sandboxes").await;
    assert_eq!(list["items"][0]["status"]["external"], "play.example.org");
    let named = |it: &atoll_wire::rest::Sandbox| it.status.external.is_some();
    server.until("one", named).await;
    let deleted = server.delete("/api/v1/externals/ext").await;
    assert_eq!(deleted, (StatusCode::OK, json!({"deleted": "ext"})));
    assert_eq!(server.sandbox("one").await.status.external, None);
    for gone in
        [server.get("/api/v1/externals/ext").await, server.delete("/api/v1/externals/ext").await]
    {
        assert_eq!((gone.0, &gone.1["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn externals_and_nodes_belong_to_each_other_alone() {
    let server = TestServer::start().await;
    let attempts = (0..8).map(|index| {
        server.post("/api/v1/externals", external(&format!("e{index}"), "test-node", "10.0.0.1"))
    });
    let answers = futures::future::join_all(attempts).await;
    let made = answers.iter().filter(|it| it.0 == StatusCode::OK).count();
    let refused = answers.iter().filter(|it| it.0 == StatusCode::CONFLICT).count();
    assert_eq!((made, refused), (1, 7), "one node, one external: {answers:?}");
    let (_, body) = server.get("/api/v1/externals").await;
    assert_eq!(body["items"].as_array().unwrap().len(), 1);
    for (wrong, field) in [
        (external("x", "elsewhere", "10.0.0.1"), "spec.node_id"),
        (external("x", "test-node", " "), "spec.external"),
        (external("x", "test-node", &"x".repeat(256)), "spec.external"),
        (external("../x", "test-node", "10.0.0.1"), "id"),
        (json!({"id": "x", "spec": {"node_id": "test-node"}}), "external"),
        (
            json!({"kind": "Node", "id": "x", "spec": {"node_id": "test-node", "external": "y"}}),
            "kind",
        ),
    ] {
        let (status, body) = server.post("/api/v1/externals", wrong.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}: {body}");
        let body = error(&body);
        assert!(
            body.error.contains(field) || body.fields.iter().any(|it| it.path == field),
            "{body:?}"
        );
    }
    let yaml = "apiVersion: sandboxd.o/v1\nkind: external\nid: other\nspec: {node_id: test-node, external: y}\n";
    let request = server.request(Method::POST, "/api/v1/externals");
    let request = request.header("content-type", "application/yaml").body(yaml);
    assert_eq!(answer(request).await.0, StatusCode::CONFLICT, "read, and the node is taken");
}

async fn create_with_key(server: &TestServer, key: &str, body: &Value) -> (StatusCode, Value) {
    let request = server.request(Method::POST, "/api/v1/sandboxes");
    answer(request.header("idempotency-key", key).body(body.to_string())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_sent_again_makes_no_second_sandbox() {
    let server = TestServer::start().await;
    let nameless = json!({"spec": {"containers": [{"name": "main", "image": "busybox"}]}});
    let attempts = (0..8).map(|_| create_with_key(&server, "key-1", &nameless));
    let answers = futures::future::join_all(attempts).await;
    assert!(answers.iter().all(|it| it.0 == StatusCode::CREATED), "{answers:?}");
    let uid = answers[0].1["sandbox"]["uid"].clone();
    assert!(answers.iter().all(|it| it.1["sandbox"]["uid"] == uid), "{answers:?}");
    // Over a restart, and beside another key with the same body.
    let server = server.restart().await;
    assert_eq!(create_with_key(&server, "key-1", &nameless).await.1["sandbox"]["uid"], uid);
    assert_ne!(create_with_key(&server, "key-2", &nameless).await.1["sandbox"]["uid"], uid);
    let (status, body) = create_with_key(&server, "key-1", &manifest("other", &["true"])).await;
    assert_eq!((status, &body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("key_reused")));
    assert_eq!(server.get("/api/v1/sandboxes/other").await.0, StatusCode::NOT_FOUND);
    // A name that is taken is no replay; a refused creation leaves its key free.
    let taken = create_with_key(&server, "key-3", &manifest("named", &["sleep", "9"])).await;
    assert_eq!(taken.0, StatusCode::CREATED);
    let again = create_with_key(&server, "key-4", &manifest("named", &["sleep", "9"])).await;
    assert_eq!((again.0, &again.1["code"]), (StatusCode::CONFLICT, &json!("already_exists")));
    assert_eq!(
        create_with_key(&server, "key-4", &manifest("free", &["true"])).await.0,
        StatusCode::CREATED
    );
    // What is deleted does not come again.
    assert_eq!(server.delete("/api/v1/sandboxes/named").await.0, StatusCode::OK);
    let gone = create_with_key(&server, "key-3", &manifest("named", &["sleep", "9"])).await;
    assert_eq!((gone.0, &gone.1["code"]), (StatusCode::GONE, &json!("gone")));
    let (status, body) = create_with_key(&server, "two words", &nameless).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error(&body).error.contains("Idempotency-Key"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_what_a_key_made_keeps_nobody_from_it() {
    let server = TestServer::start().await;
    let body = manifest("long", &["sleep", "1000"]);
    assert_eq!(create_with_key(&server, "key", &body).await.0, StatusCode::CREATED);
    let path = "/api/v1/sandboxes?wait=deleted&timeout_seconds=60";
    let waiting = server.request(Method::POST, path).header("idempotency-key", "key");
    let waiting = tokio::spawn(answer(waiting.body(body.to_string())));
    // Time for the first to have its turn; whoever is late proves less, and fails never.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(create_with_key(&server, "key", &body).await.0, StatusCode::CREATED);
    assert!(!waiting.is_finished(), "it waits for the deletion");
    assert_eq!(server.delete("/api/v1/sandboxes/long").await.0, StatusCode::OK);
    waiting.await.unwrap();
}
