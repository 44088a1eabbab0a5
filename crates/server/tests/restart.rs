//! Restarts: what was acknowledged is there, what runs goes on, what is half-made is finished or cleaned, and the state never lies.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::sync::Arc;

use atoll_runtime::sim::{SimHost, SimLatency};
use reqwest::StatusCode;
use serde_json::json;
use support::{PATIENCE, TestServer, manifest};

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_and_is_adopted() {
    let server = TestServer::start().await;
    let before = server.create("one", &["sleep", "1000"]).await;
    let server = server.restart().await;
    let after = server.sandbox("one").await;
    assert_eq!(
        (after.status.phase.as_str(), after.status.ready, &after.uid),
        ("Running", true, &before.uid)
    );
    assert_eq!(after.status.timeline.map(|it| it.phases.len()), Some(8), "the timeline is kept");
    assert!(after.status.conditions.iter().any(|it| it.kind == "Adopted" && it.status == "True"));
    assert_eq!(after.status.containers[0].started_at, before.status.containers[0].started_at);
    assert_eq!(server.images.leases.lock().unwrap().len(), 1, "its image is leased again");
    let (status, _) = server.delete("/api/v1/sandboxes/one").await;
    assert_eq!((status, server.host.running().len()), (StatusCode::OK, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_while_no_server_ran_is_told_as_it_was() {
    let server = TestServer::start().await;
    let made = server.create("one", &["sleep", "1000"]).await;
    let (directory, host) = server.stop().await;
    assert!(host.end_container(&made.uid, "main", atoll_wire::record::ExitReason::OutOfMemory));
    let server = TestServer::start_on(directory, host).await;
    let after = server.wait("one", "ended").await;
    assert_eq!(
        (after.status.phase.as_str(), after.status.reason.as_deref()),
        ("Failed", Some("OutOfMemory"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_ends_in_failed_with_a_reason_and_a_clean_host() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let (directory, host) = server.stop().await;
    host.reboot();
    let server = TestServer::start_on(directory, host).await;
    let after = server.sandbox("one").await;
    assert_eq!(
        (after.status.phase.as_str(), after.status.reason.as_deref()),
        ("Failed", Some("Lost"))
    );
    assert_eq!(after.status.last_error.as_deref(), Some("the host was started anew"));
    assert_eq!(after.status.containers[0].exit_code, None, "nobody knows it: no guess");
    assert_eq!(after.status.containers[0].reason.as_deref(), Some("Unknown"));
    let (status, _) = server.delete("/api/v1/sandboxes/one").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_directory_is_quarantined_and_the_others_go_on() {
    let server = TestServer::start().await;
    let bad = server.create("bad", &["sleep", "1000"]).await;
    server.create("good", &["sleep", "1000"]).await;
    let (directory, host) = server.stop().await;
    assert!(host.corrupt(&bad.uid, "launch.json is cut"));
    let server = TestServer::start_on(directory, host).await;
    let after = server.sandbox("bad").await;
    assert_eq!(
        (after.status.phase.as_str(), after.status.reason.as_deref()),
        ("Failed", Some("Quarantined"))
    );
    assert!(after.status.last_error.unwrap().contains("launch.json is cut"));
    assert!(server.events("bad").await.contains(&"Quarantined".to_owned()));
    assert_eq!(server.sandbox("good").await.status.phase, "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_made_is_finished() {
    let server = TestServer::start().await;
    server.host.set_latency(SimLatency { launch: PATIENCE, ..SimLatency::default() });
    for id in ["a", "b", "c"] {
        let (status, _) = server.post("/api/v1/sandboxes", manifest(id, &["sleep", "1000"])).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    server.until("a", |it| it.status.phase == "Scheduled").await;
    let (directory, host) = server.stop().await;
    host.set_latency(SimLatency::default());
    let server = TestServer::start_on(directory, host).await;
    for id in ["a", "b", "c"] {
        assert_eq!(server.wait(id, "running").await.status.phase, "Running");
    }
    assert_eq!(server.host.running().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_launched_but_not_yet_said_to_run_is_followed() {
    let server = TestServer::start().await;
    server.host.set_latency(SimLatency {
        start: std::time::Duration::from_millis(400),
        ..SimLatency::default()
    });
    let (_, body) = server.post("/api/v1/sandboxes", manifest("one", &["sleep", "1000"])).await;
    let uid = body["sandbox"]["uid"].as_str().unwrap().to_owned();
    server.until("one", |it| it.status.phase == "Scheduled").await;
    let server = server.restart().await;
    assert_eq!(server.wait("one", "running").await.status.phase, "Running");
    assert_eq!(server.host.running(), [uid], "the same one, and only that");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_on_the_host_are_removed() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let (_, host) = server.stop().await;
    assert_eq!(host.running().len(), 1);
    // The same host, but a store that knows nothing of it.
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let server = TestServer::start_on(directory, host).await;
    assert!(server.host.running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_shim_is_found_again_and_a_lost_sandbox_is_said_to_be_lost() {
    let server = TestServer::start().await;
    let found = server.create("found", &["sleep", "1000"]).await;
    let lost = server.create("lost", &["sleep", "1000"]).await;
    assert!(server.host.lose_shim(&found.uid));
    let adopted =
        |it: &atoll_wire::rest::Sandbox| it.status.conditions.iter().any(|it| it.kind == "Adopted");
    let again = server.until("found", |it| it.status.phase == "Running" && adopted(it)).await;
    assert_eq!(again.uid, found.uid);
    let started = server.events("found").await.iter().filter(|it| *it == "Started").count();
    assert_eq!(started, 1, "it went on: it did not start again");
    assert!(server.host.lose_sandbox(&lost.uid, "killed with its shim"));
    let over = server.wait("lost", "ended").await;
    assert_eq!(
        (over.status.phase.as_str(), over.status.reason.as_deref()),
        ("Failed", Some("Lost"))
    );
    assert!(server.events("lost").await.contains(&"Unreachable".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_recorded_is_finished() {
    let server = TestServer::start().await;
    let made = server.create("one", &["sleep", "1000"]).await;
    let (directory, host) = server.stop().await;
    // As a crash between the record and the removal leaves it.
    let database = rusqlite::Connection::open(directory.path().join("store/atoll.db")).unwrap();
    let sql = "UPDATE sandboxes SET body = CAST(replace(CAST(body AS TEXT), '\"phase\":\"Running\"', '\"phase\":\"Deleting\"') AS BLOB)";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    drop(database);
    let server = TestServer::start_on(directory, host).await;
    let (status, _) = server.get("/api/v1/sandboxes/one?wait=deleted&timeout_seconds=15").await;
    assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{status}");
    assert!(!server.host.running().contains(&made.uid));
}

#[tokio::test(flavor = "multi_thread")]
async fn ttl_and_detachment_end_a_sandbox_also_over_a_restart() {
    let server = TestServer::start().await;
    let body = |id: &str, field: &str, seconds: u64| {
        let mut body = manifest(id, &["sleep", "1000"]);
        body["spec"][field] = json!(seconds);
        body
    };
    server.post("/api/v1/sandboxes", body("short", "ttl_seconds", 1)).await;
    let (status, _) = server.get("/api/v1/sandboxes/short?wait=deleted&timeout_seconds=15").await;
    assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{status}");
    server.post("/api/v1/sandboxes?wait=running", body("over", "ttl_seconds", 2)).await;
    server.post("/api/v1/sandboxes?wait=running", body("alone", "detach_ttl_seconds", 2)).await;
    let server = server.restart().await;
    for id in ["over", "alone"] {
        let (status, _) =
            server.get(&format!("/api/v1/sandboxes/{id}?wait=deleted&timeout_seconds=15")).await;
        assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{id}: {status}");
    }
    let (_, events) = server.get("/api/v1/events").await;
    assert!(events.to_string().contains("no client is attached any more"));
    assert!(server.host.running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_was_set_while_no_server_ran_keeps_nobody_beyond_its_time_to_live() {
    let server = TestServer::start().await;
    for (id, seconds) in [("back", 5), ("forth", 3600), ("right", 3600)] {
        let mut body = manifest(id, &["sleep", "1000"]);
        body["spec"]["ttl_seconds"] = json!(seconds);
        let (status, _) = server.post("/api/v1/sandboxes?wait=running", body).await;
        assert_eq!(status, StatusCode::CREATED, "{id}");
    }
    let right = server.sandbox("right").await.status.expire_at;
    let (directory, host) = server.stop().await;
    // What the clock said before it was set, seen from after.
    let database = rusqlite::Connection::open(directory.path().join("store/atoll.db")).unwrap();
    for (id, noted) in
        [("back", "2100-01-01T00:00:00.000000Z"), ("forth", "2001-01-01T00:00:00.000000Z")]
    {
        let sql = "UPDATE sandboxes SET body = CAST(json_set(CAST(body AS TEXT), '$.sandbox.status.expire_at', ?1) AS BLOB) WHERE name = ?2";
        assert_eq!(database.execute(sql, [noted, id]).unwrap(), 1);
    }
    drop(database);
    let server = TestServer::start_on(directory, host).await;
    // What is shown is when it goes.
    let told = |at: &String| at.as_str() < "2100";
    server.until("back", |it| it.status.expire_at.as_ref().is_some_and(told)).await;
    for id in ["forth", "back"] {
        let (status, _) =
            server.get(&format!("/api/v1/sandboxes/{id}?wait=deleted&timeout_seconds=15")).await;
        assert!(status == StatusCode::OK || status == StatusCode::NOT_FOUND, "{id}: {status}");
    }
    let after = server.sandbox("right").await;
    assert_eq!((after.status.phase.as_str(), after.status.expire_at), ("Running", right));
    assert_eq!(server.host.running(), [after.uid]);
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_the_server_down_leaves_nothing() {
    let server = TestServer::start().await;
    for id in ["a", "b", "c"] {
        server.create(id, &["sleep", "1000"]).await;
    }
    let host: Arc<SimHost> = Arc::clone(&server.host);
    let directory = Arc::clone(&server.directory);
    assert!(directory.path().join("server.json").exists());
    let (status, _) = server.post("/api/v1/shutdown", json!({"delete_sandboxes": true})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    server.ended().await;
    assert!(host.running().is_empty());
    assert!(!directory.path().join("server.json").exists());
    let server = TestServer::start_on(directory, host).await;
    let (_, body) = server.get("/api/v1/sandboxes").await;
    assert_eq!(body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_grow_over_restarts_and_old_watches_are_told() {
    let server = TestServer::start().await;
    server.create("one", &["sleep", "1000"]).await;
    let (_, body) = server.get("/api/v1/sandboxes").await;
    let version = body["resource_version"].as_u64().unwrap();
    let server = server.restart().await;
    let (_, body) = server.get("/api/v1/sandboxes").await;
    assert!(body["resource_version"].as_u64().unwrap() >= version);
    let (status, body) = server.get("/api/v1/sandboxes?watch=true&resource_version=1").await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::GONE, Some("gone")));
}
