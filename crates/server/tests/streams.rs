//! Exec, attach, logs and files over real connections.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a failed expectation is a failed test"
)]

mod support;

use atoll_wire::rest::StreamMessage;
use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{PATIENCE, TestServer, answer, error, manifest};
use tokio_tungstenite::tungstenite::{self, Message};

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(server: &TestServer, path: &str) -> Result<Socket, tungstenite::Error> {
    use tungstenite::client::IntoClientRequest;
    let mut request = format!("{}{path}", server.address.replace("http://", "ws://"))
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {}", server.token).parse().unwrap());
    tokio_tungstenite::connect_async(request).await.map(|(socket, _)| socket)
}

async fn text(socket: &mut Socket, value: Value) {
    socket.send(Message::Text(value.to_string().into())).await.unwrap();
}

/// All that comes until the other side closes: standard output, standard error, messages.
async fn gather(socket: &mut Socket) -> (String, String, Vec<StreamMessage>) {
    let (mut out, mut err, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.expect("nothing came") {
            Some(Ok(Message::Binary(data))) if data[0] == 1 => out.extend_from_slice(&data[1..]),
            Some(Ok(Message::Binary(data))) if data[0] == 2 => err.extend_from_slice(&data[1..]),
            Some(Ok(Message::Text(text))) => messages.push(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(_))) | None | Some(Err(_)) => break,
            Some(Ok(other)) => panic!("{other:?}"),
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), messages)
}

async fn exec(server: &TestServer, request: Value) -> (String, String, Vec<StreamMessage>) {
    let mut socket = connect(server, "/api/v1/sandboxes/one/exec").await.unwrap();
    text(&mut socket, request).await;
    gather(&mut socket).await
}

fn exited(code: i32) -> StreamMessage {
    StreamMessage::Exited { code, reason: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_a_process_with_output_input_and_exit_code() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let (out, _, messages) = exec(&server, json!({"command": ["echo", "hello"]})).await;
    assert_eq!((out.as_str(), messages), ("hello\n", vec![StreamMessage::Started, exited(0)]));
    let (_, _, messages) = exec(&server, json!({"command": ["exit", "7"]})).await;
    assert_eq!(messages.last(), Some(&exited(7)));
    let (_, _, messages) = exec(&server, json!({"command": ["no-such-program"]})).await;
    assert!(matches!(messages[..], [StreamMessage::StartFailed { code: 127, .. }]), "{messages:?}");
    let mut socket = connect(&server, "/api/v1/sandboxes/one/exec").await.unwrap();
    text(&mut socket, json!({"command": ["cat"], "stdin": true})).await;
    socket.send(Message::Binary(b"\0typed\n".to_vec().into())).await.unwrap();
    text(&mut socket, json!({"type": "stdin_end"})).await;
    let (out, _, messages) = gather(&mut socket).await;
    assert_eq!((out.as_str(), messages.last()), ("typed\n", Some(&exited(0))));
    let mut socket = connect(&server, "/api/v1/sandboxes/one/exec").await.unwrap();
    text(&mut socket, json!({"command": ["sleep", "1000"]})).await;
    text(&mut socket, json!({"type": "signal", "signal": 9})).await;
    assert_eq!(gather(&mut socket).await.2.last(), Some(&exited(137)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_process_has_the_environment_of_its_container() {
    let server = TestServer::start().await;
    let mut body = manifest("one", &["sleep", "1000"]);
    body["spec"]["containers"][0]["env"] = json!(["A=spec", "B=spec"]);
    server.post("/api/v1/sandboxes?wait=running", body).await;
    let check = async |server: &TestServer| {
        let (out, _, _) =
            exec(server, json!({"command": ["env"], "env": ["B=exec", "C=exec"], "tty": true}))
                .await;
        let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
        for entry in
            ["FROM=image", "A=spec", "B=exec", "C=exec", "HOSTNAME=one", "HOME=/root", "TERM=xterm"]
        {
            assert!(lines.contains(&entry), "{entry} in {lines:?}");
        }
        assert!(!lines.contains(&"B=spec"));
    };
    check(&server).await;
    let server = server.restart().await;
    check(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_said() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    for request in [
        json!({"command": []}),
        json!({"command": ["true"], "container": "none"}),
        json!({"command": ["true"], "user": "stranger"}),
        json!({"command": ["true"], "env": ["NOVALUE"]}),
        json!({"command": ["true"], "work_dir": "relative"}),
        json!({"comand": ["true"]}),
        json!("not an object"),
    ] {
        let (_, _, messages) = exec(&server, request.clone()).await;
        assert!(matches!(messages[..], [StreamMessage::Error { .. }]), "{request}: {messages:?}");
    }
    server.create("over", &["true"]).await;
    server.wait("over", "ended").await;
    let mut socket = connect(&server, "/api/v1/sandboxes/over/exec").await.unwrap();
    text(&mut socket, json!({"command": ["true"]})).await;
    let (_, _, messages) = gather(&mut socket).await;
    assert!(
        matches!(&messages[..], [StreamMessage::Error { message }] if message.contains("Succeeded")),
        "{messages:?}"
    );
    match connect(&server, "/api/v1/sandboxes/none/exec").await {
        Err(tungstenite::Error::Http(response)) => {
            assert_eq!(response.status(), StatusCode::NOT_FOUND)
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_gets_all_output_from_the_first_byte() {
    let server = TestServer::start().await;
    let mut body = manifest("one", &["sh", "-c", "echo first; sleep 1"]);
    body["spec"]["containers"][0]["await_attach"] = json!(true);
    body["spec"]["detach_ttl_seconds"] = json!(1);
    let (status, _) = server.post("/api/v1/sandboxes", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let mut socket = connect(&server, "/api/v1/sandboxes/one/attach").await.unwrap();
    text(&mut socket, json!({"from_start": true})).await;
    let (out, _, messages) = gather(&mut socket).await;
    assert_eq!((out.as_str(), messages.last()), ("first\n", Some(&exited(0))));
    drop(socket);
    let (status, _) = server.get("/api/v1/sandboxes/one?wait=deleted&timeout_seconds=15").await;
    assert!(
        status == StatusCode::OK || status == StatusCode::NOT_FOUND,
        "bound to its client: {status}"
    );
}

async fn attach(
    server: &TestServer,
    id: &str,
    request: Value,
) -> (String, String, Vec<StreamMessage>) {
    let mut socket = connect(server, &format!("/api/v1/sandboxes/{id}/attach")).await.unwrap();
    text(&mut socket, request).await;
    gather(&mut socket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_after_the_end_still_gets_all_output_and_the_exit() {
    let server = TestServer::start().await;
    let kept = |id: &str, args: &[&str]| {
        let mut body = manifest(id, args);
        body["spec"]["containers"][0]["await_attach"] = json!(true);
        body
    };
    for (id, args) in [
        ("quick", &["sh", "-c", "echo first; echo second; exit 3"][..]),
        ("absent", &["no-such-program"]),
    ] {
        let (status, _) = server.post("/api/v1/sandboxes", kept(id, args)).await;
        assert_eq!(status, StatusCode::CREATED);
        server.wait(id, "ended").await;
    }
    let check = async |server: &TestServer| {
        let from_start = json!({"from_start": true});
        let (out, _, messages) = attach(server, "quick", from_start.clone()).await;
        assert_eq!((out.as_str(), messages), ("first\nsecond\n", vec![exited(3)]));
        let (out, _, messages) = attach(server, "quick", json!({})).await;
        assert_eq!((out.as_str(), messages), ("", vec![exited(3)]), "nothing comes from now on");
        let (_, _, messages) = attach(server, "absent", from_start).await;
        assert!(
            matches!(&messages[..], [StreamMessage::StartFailed { code: 127, .. }]),
            "{messages:?}"
        );
    };
    check(&server).await;
    // The same after the server that saw the end is gone.
    let server = server.restart().await;
    check(&server).await;
    assert_eq!(server.sandbox("quick").await.status.phase, "Failed");
    assert!(!server.events("quick").await.contains(&"Killed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_commands_are_read_whole_whenever_their_clients_come() {
    let server = TestServer::start().await;
    let run = async |index: usize| {
        let id = format!("quick-{index}");
        let mut body = manifest(&id, &["echo", "ready"]);
        body["spec"]["containers"][0]["await_attach"] = json!(true);
        let (status, _) = server.post("/api/v1/sandboxes", body).await;
        assert_eq!(status, StatusCode::CREATED);
        attach(&server, &id, json!({"from_start": true})).await
    };
    for (out, _, messages) in futures::future::join_all((0..100).map(run)).await {
        assert_eq!((out.as_str(), messages.last()), ("ready\n", Some(&exited(0))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_the_output_also_after_the_end_and_a_restart() {
    let server = TestServer::start().await;
    let follow = |server: &TestServer, id: &str, query: &str| {
        answer(server.request(Method::GET, &format!("/api/v1/sandboxes/{id}/logs{query}")))
    };
    server.create("one", &["echo", "hello"]).await;
    let (status, text) = follow(&server, "one", "?follow=true").await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::OK, Some("hello\n")),
        "it ends with its container"
    );
    let (_, records) = follow(&server, "one", "?format=records").await;
    assert!(records.as_str().unwrap().ends_with(" stdout F hello\n"), "{records}");
    let (_, none) = follow(&server, "one", "?tail=0").await;
    assert_eq!(none, "");
    let (status, body) = follow(&server, "one", "?container=none").await;
    assert_eq!((status, error(&body).code.as_str()), (StatusCode::NOT_FOUND, "not_found"));
    let (status, _) = follow(&server, "one", "?tail=-1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    server.wait("one", "ended").await;
    let server = server.restart().await;
    let (_, text) = follow(&server, "one", "").await;
    assert_eq!(text, "hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_come_out() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let tar = vec![7_u8; 3 << 20];
    let path = "/api/v1/sandboxes/one/files?path=/data";
    let (status, body) = answer(server.request(Method::PUT, path).body(tar.clone())).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"ok": true})));
    let response = server.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    assert_eq!(response.bytes().await.unwrap().len(), tar.len());
    for bad in
        ["?path=relative", "?path=/a/../b", "?path=/a&container=none", "?path=/a&user=stranger", ""]
    {
        let (status, _) =
            answer(server.request(Method::GET, &format!("/api/v1/sandboxes/one/files{bad}"))).await;
        assert!(status.is_client_error(), "{bad}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_signal_reach_the_workload() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let (status, processes) = server.get("/api/v1/sandboxes/one/processes").await;
    assert_eq!(status, StatusCode::OK);
    assert!(!processes["items"].as_array().unwrap().is_empty());
    let (status, _) = server.post("/api/v1/sandboxes/one/signal", json!({"signal": 99})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, body) =
        server.post("/api/v1/sandboxes/one/stop", json!({"grace_seconds": 1})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let over = server.wait("one", "ended").await;
    assert_eq!(over.status.containers[0].reason.as_deref(), Some("Stopped"), "the record stays");
    server.create("two", &["sleep", "1000"]).await;
    let (status, _) =
        server.post("/api/v1/sandboxes/two/signal", json!({"signal": 9, "everyone": true})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(server.wait("two", "ended").await.status.containers[0].exit_code, Some(137));
    let (status, _) = server.post("/api/v1/sandboxes/two/signal", json!({"signal": 9})).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_pulled_and_kept_while_used() {
    let server = TestServer::start().await;
    let lines = |text: Value| -> Vec<Value> {
        let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let archive = vec![1_u8; 5 << 20];
    let request =
        server.request(Method::POST, "/api/v1/images/import?reference=mine").body(archive);
    let (status, text) = answer(request).await;
    assert_eq!(status, StatusCode::OK);
    assert!(lines(text).last().unwrap()["done"].is_array());
    assert_eq!(
        *server.images.imported.lock().unwrap(),
        [(Some("mine:latest".to_owned()), 5 << 20)]
    );
    let (_, text) = server.post("/api/v1/images/pull", json!({"reference": "absent"})).await;
    assert_eq!(lines(text).last().unwrap()["error"]["code"], "image_pull");
    let (status, _) = server
        .post("/api/v1/images/pull", json!({"reference": "h.example/x", "plain_http": true}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    for (body, plainly) in [
        (json!({"reference": "127.0.0.1:5000/x"}), false),
        (json!({"reference": "127.0.0.1:5000/x", "plain_http": true}), true),
    ] {
        server.post("/api/v1/images/pull", body).await;
        assert_eq!(server.images.pulled_plainly.lock().unwrap().last(), Some(&plainly));
    }
    server.create("one", &["sleep", "1000"]).await;
    let (_, image) = server.get("/api/v1/images/inspect?reference=busybox").await;
    assert_eq!(image["used_by"], json!(["one"]));
    let (status, body) = server.delete("/api/v1/images?reference=busybox").await;
    assert_eq!((status, error(&body).code.as_str()), (StatusCode::CONFLICT, "conflict"));
    server.delete("/api/v1/sandboxes/one").await;
    let (status, _) = server.delete("/api/v1/images?reference=busybox").await;
    assert_eq!(status, StatusCode::OK);
}
