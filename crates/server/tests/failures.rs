//! What a runtime says when it cannot: each failure ends in a phase, a reason for programs and the runtime's own words for people, in
//! the sandbox's status and in its events, and leaves nothing on the host.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod support;

use atoll_runtime::sim::SimLaunchFault;
use reqwest::StatusCode;
use support::{TestServer, error, manifest};

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_fails_says_whose_fault_it_is_and_why() {
    let server = TestServer::start().await;
    let host = "no control group can be made: mount cgroup2";
    let refused = "container main: /data is a file system of the kernel";
    let failed = "container main: its disk cannot be mounted";
    for (id, fault, reason, words) in [
        ("host", SimLaunchFault::Host(host.into()), "HostError", host),
        ("refused", SimLaunchFault::Refused(refused.into()), "StartFailed", refused),
        ("failed", SimLaunchFault::Failed(failed.into()), "StartFailed", failed),
    ] {
        server.host.fail_next_launch(fault);
        let path = "/api/v1/sandboxes?wait=running";
        let (status, body) = server.post(path, manifest(id, &["sleep", "1000"])).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let told = server.wait(id, "ended").await.status;
        assert_eq!((told.phase.as_str(), told.reason.as_deref()), ("Failed", Some(reason)), "{id}");
        let last = told.last_error.unwrap();
        assert!(last.contains(words), "{id}: {last}");
        assert!(!told.ready, "{id}");
        let events = server.events(id).await;
        assert!(events.contains(&"Failed".to_owned()), "{id}: {events:?}");
        assert!(server.host.running().is_empty(), "{id}: nothing of it runs");
    }
    // None of them spoils the next.
    assert_eq!(server.create("good", &["sleep", "1000"]).await.status.phase, "Running");
    for id in ["host", "refused", "failed", "good"] {
        assert_eq!(server.delete(&format!("/api/v1/sandboxes/{id}")).await.0, StatusCode::OK);
    }
    assert!(server.images.leases.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_is_not_here_is_refused_with_its_field_and_what_to_install() {
    let server = TestServer::start().await;
    let mut body = manifest("one", &["true"]);
    body["spec"]["class"] = "gvisor".into();
    let (status, answer) = server.post("/api/v1/sandboxes", body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let told = error(&answer);
    assert_eq!(told.fields.len(), 1, "{answer}");
    assert_eq!(told.fields[0].path, "spec.class");
    assert!(told.fields[0].message.contains("runsc is not installed"), "{answer}");
    assert_eq!(server.get("/api/v1/sandboxes/one").await.0, StatusCode::NOT_FOUND);
}
