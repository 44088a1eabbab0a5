//! When containers of a sandbox start, and what becomes of the others when one does not.

use serde_json::Value;

use crate::support::{IMAGE, Instance, in_each_class, wait_until};

fn create(instance: &Instance, text: &str) {
    instance.atoll_with_input(["create", "-f", "-"], text.as_bytes()).succeeded();
}

fn status(instance: &Instance, name: &str) -> Value {
    instance.sandbox(name).unwrap()["status"].clone()
}

fn delete(instance: &Instance, name: &str) {
    instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
}

/// A database that is ready while /tmp/ready exists, and a web server that depends on it and shares a volume with it.
fn shop(class: &str, name: &str, database: &str) -> String {
    format!(
        "kind: Sandbox
id: {name}
spec:
  class: {class}
  volumes: [{{name: shared, ephemeral_storage: 1Mi}}]
  containers:
    - name: web
      image: {IMAGE}
      depends_on: [db]
      args: [sh, -c, 'cat /shared/schema; sleep 1000']
      volume_mounts: [{{name: shared, mount_path: /shared}}]
    - name: db
      image: {IMAGE}
      args: [sh, -c, '{database}']
      volume_mounts: [{{name: shared, mount_path: /shared}}]
      readiness_probe:
        {{protocol: exec, command: [test, -e, /tmp/ready], initial_delay_seconds: 3600, period_seconds: 1, timeout_seconds: 1, success_threshold: 1, failure_threshold: 3}}
"
    )
}

#[test]
fn a_web_server_starts_when_its_database_is_ready() {
    in_each_class("a_web_server_starts_when_its_database_is_ready", |instance, class| {
        let name = format!("shop-{class}");
        create(instance, &shop(class, &name, "sleep 1000"));
        wait_until("the database runs", || {
            status(instance, &name)["containers"][1]["state"] == "running"
        });
        let held = status(instance, &name);
        let web = &held["containers"][0];
        assert_eq!((&held["phase"], &web["state"]), (&"Scheduled".into(), &"waiting".into()));
        assert_eq!(web["waiting_for"], serde_json::json!(["db"]), "{held}");
        let text = instance.atoll(["describe", &format!("sandbox/{name}")]).succeeded();
        assert!(
            text.lines().any(|line| line.contains("Waits for") && line.contains("db")),
            "{text}"
        );

        instance.kill_server();
        instance.up();
        let web = &status(instance, &name)["containers"][0];
        assert_eq!((&web["state"], &web["waiting_for"][0]), (&"waiting".into(), &"db".into()));
        let script = "echo tables > /shared/schema; touch /tmp/ready";
        instance.atoll(["exec", &name, "-c", "db", "--", "sh", "-c", script]).succeeded();
        instance.atoll(["wait", &format!("sandbox/{name}"), "--for=ready"]).succeeded();
        let ready = status(instance, &name);
        assert_eq!(ready["phase"], "Running");
        assert!(ready["containers"][0]["waiting_for"].is_null(), "{ready}");
        let log = || instance.atoll(["logs", &name, "web"]).succeeded();
        // It runs from its exec on; what it reads and writes comes after that.
        wait_until("the web server has written", || !log().is_empty());
        assert_eq!(log(), "tables\n", "it was started once, after what it depends on");
        // Started is started: another server does not start it again.
        instance.kill_server();
        instance.up();
        assert_eq!(status(instance, &name)["phase"], "Running");
        assert_eq!(log(), "tables\n");
        delete(instance, &name);
    });
}

#[test]
fn a_database_that_ends_before_it_is_ready_fails_the_sandbox() {
    in_each_class("a_database_that_ends_before_it_is_ready", |instance, class| {
        let name = format!("broken-{class}");
        create(instance, &shop(class, &name, "exit 3"));
        wait_until("it has failed", || status(instance, &name)["phase"] == "Failed");
        let status = status(instance, &name);
        assert_eq!(status["reason"], "DependencyFailed", "{status}");
        let why = status["last_error"].as_str().unwrap();
        assert!(why.contains("container web") && why.contains("depends on db"), "{why}");
        assert!(why.contains("exit code 3"), "{why}");
        delete(instance, &name);
    });
}
