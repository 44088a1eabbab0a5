//! The API's description: served to everybody, and true of what the server takes.

#![allow(clippy::unwrap_used, reason = "test programs fail by panics")]

mod support;

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use support::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn anybody_may_read_the_description_and_the_page() {
    let server = TestServer::start().await;
    let get = |path: &str| server.client.get(format!("{}{path}", server.address)).send();
    let mut documents = Vec::new();
    for path in ["/openapi.json", "/swagger/doc.json"] {
        let answer = get(path).await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
        documents.push(answer.json::<Value>().await.unwrap());
    }
    assert_eq!(documents[0]["openapi"], "3.1.0");
    assert_eq!(documents[0], documents[1]);
    for path in ["/docs", "/swagger/index.html", "/swagger/any/thing"] {
        let answer = get(path).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert!(
            answer.headers()["content-security-policy"]
                .to_str()
                .unwrap()
                .starts_with("default-src 'none'")
        );
        assert!(answer.text().await.unwrap().contains("/openapi.json"));
    }
    for path in ["/api/v1/sandboxes", "/swagger", "/docs/x", "/openapi.json/x", "//docs"] {
        assert_eq!(get(path).await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_described_methods_are_those_that_the_server_takes() {
    let server = TestServer::start().await;
    let (_, document) = server.get("/openapi.json").await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let described: BTreeSet<String> =
            methods.as_object().unwrap().keys().map(|it| it.to_uppercase()).collect();
        let real = path.replace(['{', '}'], "");
        // SOURCE: RFC 9110, 15.5.6: 405 names the methods that there are.
        let answer = server.request(Method::TRACE, &real).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path} is no route");
        let allowed: BTreeSet<String> = answer.headers()["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .filter(|it| *it != "HEAD")
            .map(str::to_owned)
            .collect();
        assert_eq!(described, allowed, "{path}");
    }
}
