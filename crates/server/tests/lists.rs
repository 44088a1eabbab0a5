//! Lists by pages and labels, limits of creations, ids of requests.

#![allow(clippy::unwrap_used, reason = "test programs fail by panics")]

mod support;

use atoll_wire::rest::{Page, Sandbox};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{TestServer, error, manifest};

async fn create_labelled(server: &TestServer, id: &str, labels: Value) {
    let mut body = manifest(id, &["sleep", "1000"]);
    body["metadata"] = json!({"labels": labels});
    let (status, answer) = server.post("/api/v1/sandboxes", body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
}

async fn page(server: &TestServer, query: &str) -> Page<Sandbox> {
    let (status, body) = server.get(&format!("/api/v1/sandboxes{query}")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_value(body).unwrap()
}

fn ids(page: &Page<Sandbox>) -> Vec<&str> {
    page.items.iter().map(|it| it.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_what_stays_exactly_once_whatever_comes_and_goes() {
    let server = TestServer::start().await;
    for id in ["f", "e", "d", "c", "b", "a"] {
        create_labelled(&server, id, json!({})).await;
    }
    let all = page(&server, "").await;
    assert_eq!((ids(&all), &all.next_cursor), (vec!["f", "e", "d", "c", "b", "a"], &None));
    let first = page(&server, "?limit=2").await;
    assert_eq!(ids(&first), ["f", "e"]);
    // What the cursor names goes, something before it goes, something new comes.
    for id in ["e", "f", "c"] {
        assert_eq!(server.delete(&format!("/api/v1/sandboxes/{id}")).await.0, StatusCode::OK);
    }
    create_labelled(&server, "new", json!({})).await;
    let cursor = first.next_cursor.unwrap();
    let second = page(&server, &format!("?limit=2&cursor={cursor}")).await;
    assert_eq!(ids(&second), ["d", "b"]);
    let cursor = second.next_cursor.unwrap();
    let last = page(&server, &format!("?limit=2&cursor={cursor}")).await;
    assert_eq!((ids(&last), &last.next_cursor), (vec!["a", "new"], &None));
    let rest = page(&server, &format!("?cursor={cursor}")).await;
    assert_eq!(ids(&rest), ["a", "new"], "without a limit all that is left");
    for wrong in [
        "?limit=0",
        "?limit=1001",
        "?limit=-1",
        "?limit=x",
        "?cursor=x",
        "?cursor=2026-01-01T00:00:00Z,a",
        "?cursor=9,../x",
        "?watch=true&limit=1",
        "?watch=true&cursor=x",
    ] {
        let (status, body) = server.get(&format!("/api/v1/sandboxes{wrong}")).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("malformed")),
            "{wrong}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_pages_too() {
    let server = TestServer::start().await;
    for id in ["a", "b", "c"] {
        server.create(id, &["sleep", "1000"]).await;
    }
    let (_, all) = server.get("/api/v1/events").await;
    let all = all["items"].as_array().unwrap().clone();
    let (mut seen, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let (status, body) = server.get(&format!("/api/v1/events{query}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let items = body["items"].as_array().unwrap();
        assert!((1..=2).contains(&items.len()));
        seen.extend(items.clone());
        let Some(cursor) = body["next_cursor"].as_str() else { break };
        query = format!("?limit=2&cursor={cursor}");
    }
    assert_eq!(seen[..all.len()], all[..], "later ones may have been added");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_choose_and_pages_are_of_what_was_chosen() {
    let server = TestServer::start().await;
    create_labelled(&server, "web1", json!({"app": "web", "stage": "test"})).await;
    create_labelled(&server, "db", json!({"app": "db"})).await;
    create_labelled(&server, "web2", json!({"app": "web"})).await;
    create_labelled(&server, "bare", json!({})).await;
    for (query, expected) in [
        ("label=app=web", vec!["web1", "web2"]),
        ("label_selector=app%3Dweb", vec!["web1", "web2"]),
        ("label_selector=app=web,stage!=test", vec!["web2"]),
        ("label_selector=stage", vec!["web1"]),
        ("label_selector=!app", vec!["bare"]),
        ("label_selector=app!=web", vec!["db", "bare"]),
        ("label=app=web&label_selector=!stage", vec!["web2"]),
        ("label_selector=", vec!["web1", "db", "web2", "bare"]),
    ] {
        assert_eq!(ids(&page(&server, &format!("?{query}")).await), expected, "{query}");
    }
    let first = page(&server, "?label_selector=app=web&limit=1").await;
    let cursor = first.next_cursor.as_deref().unwrap();
    let next = page(&server, &format!("?label_selector=app=web&limit=1&cursor={cursor}")).await;
    assert_eq!((ids(&first), ids(&next)), (vec!["web1"], vec!["web2"]));
    assert_eq!(next.next_cursor, None);
    let (status, body) = server.get("/api/v1/sandboxes?label_selector=a=b=c").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error(&body).error.contains("label_selector"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn creations_beyond_the_limit_are_told_when_to_come_back() {
    let server = TestServer::start_limited(1, 2).await;
    let mut refused = None;
    for attempt in 0..50 {
        // Refused before it is read: a body that is none would be 400.
        let request = server.request(Method::POST, "/api/v1/sandboxes").body("no document");
        let answer = request.send().await.unwrap();
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some((attempt, answer));
            break;
        }
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
    let (attempt, answer) = refused.expect("none was refused");
    assert!(attempt >= 2, "a burst of two is let through");
    assert_eq!(answer.headers()["retry-after"], "1");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], "too_many");
    assert_eq!(
        server.get("/api/v1/sandboxes").await.0,
        StatusCode::OK,
        "only creations are limited"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_name_its_request() {
    let server = TestServer::start().await;
    for (given, kept) in [("trace-1_a.B", true), ("", false), ("no spaces", false), ("a/b", false)]
    {
        let request = server.request(Method::GET, "/api/v1/sandboxes/none");
        let answer = request.header("x-request-id", given).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(id == given, kept, "{given:?} {id:?}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(error(&body).request_id, id);
    }
    let long = "x".repeat(65);
    let request = server.request(Method::GET, "/healthz").header("x-request-id", &long);
    assert_ne!(request.send().await.unwrap().headers()["x-request-id"], long);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_are_answered_when_the_server_ends_and_watches_end_whole() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let watch = server.request(Method::GET, "/api/v1/sandboxes?watch=true").send().await.unwrap();
    let mut lines = support::Lines::of(watch);
    assert_eq!(lines.next().await.unwrap()["type"], "ADDED");
    // A body that is still on its way when the end is asked for.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let text = manifest("late", &["sleep", "1000"]).to_string().into_bytes();
    let (begin, rest) = text.split_at(10);
    sender.send(Ok(begin.to_vec())).await.unwrap();
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let request = server.request(Method::POST, "/api/v1/sandboxes/one/stop").body(body);
    let under_way = tokio::spawn(request.send());
    // The server has begun to read once the channel has room again.
    sender.reserve().await.unwrap();
    let stopping = tokio::spawn(server.stop());
    while let Some(line) = lines.next().await {
        assert!(line["type"].is_string(), "a line is whole: {line}");
    }
    sender.send(Ok(rest.to_vec())).await.unwrap();
    drop(sender);
    let answer = under_way.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "it was read to its end");
    stopping.await.unwrap();
}
