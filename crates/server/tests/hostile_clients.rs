//! Clients that are slow, many, or speak HTTP in odd ways: each is answered precisely or cut off, and nobody else notices.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a failed expectation is a failed test"
)]

mod support;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Lines, PATIENCE, TestServer, answer, error, manifest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn address(server: &TestServer) -> &str {
    server.address.strip_prefix("http://").unwrap()
}

async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect(address(server)).await.unwrap()
}

/// A request's head, with the token.
fn head(server: &TestServer, line: &str, headers: &str) -> String {
    format!("{line}\r\nhost: x\r\nauthorization: Bearer {}\r\n{headers}\r\n", server.token)
}

/// Sends bytes and reads until the other side closes.
async fn exchange(server: &TestServer, bytes: &[u8]) -> String {
    let mut stream = connect(server).await;
    // It may have answered and closed before all is sent.
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("no end").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn assert_untouched(server: &TestServer) {
    let (status, body) = server.get("/api/v1/sandboxes").await;
    assert_eq!((status, &body["items"]), (StatusCode::OK, &json!([])));
    assert!(server.host.running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_a_408_and_holds_up_nobody() {
    let server = TestServer::start().await;
    let mut slow = Vec::new();
    for framing in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut stream = connect(&server).await;
        let text = head(&server, "POST /api/v1/sandboxes HTTP/1.1", &format!("{framing}\r\n"));
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.write_all(b"2\r\n{ \r\n").await.unwrap();
        slow.push(stream);
    }
    server.create("one", &["sleep", "1000"]).await;
    for mut stream in slow {
        // The time limit for a body is 15 s.
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.expect("it stays open").unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("did not arrive within 15 s"), "{answer}");
    }
    server.delete("/api/v1/sandboxes/one").await;
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_bodies_at_a_time_are_all_read_in_the_end() {
    let server = TestServer::start().await;
    // Three megabytes each, and no manifest.
    let body = format!("{{\"x\":\"{}\"}}", "y".repeat(3 << 20));
    let posts = (0..24)
        .map(|_| answer(server.request(Method::POST, "/api/v1/sandboxes").body(body.clone())));
    for (status, answer) in futures::future::join_all(posts).await {
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert!(answer.to_string().len() < 1000, "the answer does not repeat the question");
    }
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_never_reads_holds_up_neither_others_nor_the_server() {
    let server = TestServer::start().await;
    let mut silent = connect(&server).await;
    let text = head(&server, "GET /api/v1/sandboxes?watch=true HTTP/1.1", "");
    silent.write_all(text.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    silent.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let response =
        server.request(Method::GET, "/api/v1/sandboxes?watch=true").send().await.unwrap();
    let mut lines = Lines::of(response);
    // More than the sockets between hold: each sandbox is shown several times, with its environment.
    let long = format!("LONG={}", "x".repeat(100_000));
    let rounds = 40;
    for round in 0..rounds {
        let mut body = manifest(&format!("s{round}"), &["sleep", "1000"]);
        body["spec"]["containers"][0]["env"] = json!([long]);
        let (status, answer) = server.post("/api/v1/sandboxes?wait=running", body).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        let (status, _) = server.delete(&format!("/api/v1/sandboxes/s{round}")).await;
        assert_eq!(status, StatusCode::OK);
    }
    let mut deleted = 0;
    while deleted < rounds {
        let line = lines.next().await.expect("the other watch goes on");
        deleted += usize::from(line["type"] == "DELETED");
    }
    // What it left unread, it can still read: all of it, or the news that some is gone.
    let last = format!("\"id\":\"s{}\"", rounds - 1);
    let reading = async {
        let (mut text, mut buffer) = (String::new(), vec![0; 1 << 16]);
        loop {
            let count = silent.read(&mut buffer).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            let whole =
                text.matches("\"type\":\"DELETED\"").count() == rounds && text.contains(&last);
            if whole || text.contains("\"type\":\"ERROR\"") {
                return;
            }
            assert!(count > 0, "it ends without a word");
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the rest does not come");
    assert_untouched(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_leave_room_for_one_more() {
    let server = TestServer::start().await;
    let mut open = Vec::new();
    for index in 0..1000 {
        let mut stream = connect(&server).await;
        // Some say nothing, some stop in the middle, some have had an answer and stay.
        match index % 3 {
            0 => {}
            1 => stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.unwrap(),
            _ => {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
                let mut first = [0; 15];
                stream.read_exact(&mut first).await.unwrap();
                assert_eq!(&first, b"HTTP/1.1 200 OK");
            }
        }
        open.push(stream);
    }
    server.create("one", &["sleep", "1000"]).await;
    server.delete("/api/v1/sandboxes/one").await;
    drop(open);
    assert_untouched(&server).await;
}

/// Two readings of where a request ends are how one request hides in another: there is one reading here, or none.
#[tokio::test(flavor = "multi_thread")]
async fn requests_whose_end_is_not_clear_are_refused_whole() {
    let server = TestServer::start().await;
    let hidden = {
        let body = manifest("hidden", &["sleep", "1000"]).to_string();
        let length = format!("content-length: {}\r\n", body.len());
        head(&server, "POST /api/v1/sandboxes HTTP/1.1", &length) + &body
    };
    let post = "POST /api/v1/registries/x/credentials HTTP/1.1";
    let inside = format!("content-length: {}\r\n", hidden.len());
    for (why, headers) in [
        ("two lengths", format!("{inside}content-length: 0\r\n")),
        ("a list of lengths", format!("content-length: {}, 0\r\n", hidden.len())),
        ("a signed length", format!("content-length: +{}\r\n", hidden.len())),
        ("a length that is none", "content-length: 0x10\r\n".to_owned()),
        ("chunks that are not last", format!("{inside}transfer-encoding: chunked, identity\r\n")),
        ("an encoding that is not known", format!("{inside}transfer-encoding: xchunked\r\n")),
        ("a space before the colon", format!("content-length : {}\r\n", hidden.len())),
        ("a folded header", format!("x: y\r\n content-length: {}\r\n", hidden.len())),
        ("a NUL in a header", format!("{inside}x: a\0b\r\n")),
    ] {
        let text = exchange(&server, (head(&server, post, &headers) + &hidden).as_bytes()).await;
        assert!(text.starts_with("HTTP/1.1 400"), "{why}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{why}: one answer, and the end: {text}");
        assert_untouched(&server).await;
    }
    for line in
        ["GET /healthz", "GET  /healthz HTTP/1.1", "GET /a b HTTP/1.1", "GET /healthz HTTP/9.9"]
    {
        let text = exchange(&server, head(&server, line, "").as_bytes()).await;
        assert!(!text.starts_with("HTTP/1.1 2"), "{line}: {text}");
    }
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    let text = exchange(&server, head(&server, "GET /healthz HTTP/1.1", &long).as_bytes()).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    let many = "a: b\r\n".repeat(5000);
    let text = exchange(&server, head(&server, "GET /healthz HTTP/1.1", &many).as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    assert_untouched(&server).await;
}

/// Ids in paths are looked up, never walked: whatever they hold, they are of no sandbox.
#[tokio::test(flavor = "multi_thread")]
async fn odd_ids_in_paths_are_not_found_on_any_route() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let long = "x".repeat(300);
    let odd = [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "a%00b",
        "%00",
        "a%0ab",
        "%1b%5b31m",
        "%f0%9f%8f%9d",
        "one%20",
        "%6fne%00",
        "ONE",
        "one%2f",
        &long,
    ];
    for id in odd {
        for (method, rest) in [
            (Method::GET, ""),
            (Method::DELETE, ""),
            (Method::GET, "?watch=true"),
            (Method::POST, "/stop"),
            (Method::POST, "/signal"),
            (Method::GET, "/processes"),
            (Method::GET, "/logs"),
            (Method::GET, "/files?path=/etc"),
            (Method::PUT, "/files?path=/etc"),
        ] {
            let line = format!("{method} /api/v1/sandboxes/{id}{rest} HTTP/1.1");
            let body = if rest == "/signal" { "{\"signal\":9}" } else { "" };
            let headers = format!("content-length: {}\r\nconnection: close\r\n", body.len());
            let text = exchange(&server, (head(&server, &line, &headers) + body).as_bytes()).await;
            assert!(text.starts_with("HTTP/1.1 404"), "{line}: {text}");
            let body = text.split("\r\n\r\n").nth(1).unwrap();
            let body = error(&serde_json::from_str::<Value>(body).unwrap());
            assert_eq!(body.code, "not_found", "{line}");
            assert!(
                body.error.len() < 400 && !body.error.contains(['\0', '\x1b', '\n']),
                "{line}: {body:?}"
            );
        }
    }
    // No text at all.
    let text = exchange(
        &server,
        head(&server, "GET /api/v1/sandboxes/%ff%fe HTTP/1.1", "connection: close\r\n").as_bytes(),
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    assert_eq!(server.sandbox("one").await.status.phase, "Running", "nothing was meant for it");
}
