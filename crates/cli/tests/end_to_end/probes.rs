//! Readiness probes: what is shown as ready is, and what never gets there is ended with a reason.

use serde_json::Value;

use crate::support::world::on_a_host;
use crate::support::{IMAGE, Instance, in_each_class, wait_until};

fn create(instance: &Instance, text: &str) {
    instance.atoll_with_input(["create", "-f", "-"], text.as_bytes()).succeeded();
}

fn status(instance: &Instance, name: &str) -> Value {
    instance.sandbox(name).unwrap()["status"].clone()
}

/// A container that is ready while /tmp/ready exists, by its own probe, which needs no network.
fn with_command(class: &str, name: &str, command: &str) -> String {
    format!(
        "kind: Sandbox
id: {name}
spec:
  class: {class}
  containers:
    - name: main
      image: {IMAGE}
      args: [sleep, '1000']
      readiness_probe:
        {{protocol: exec, command: {command}, initial_delay_seconds: 3600, period_seconds: 1, timeout_seconds: 1, success_threshold: 1, failure_threshold: 3}}
"
    )
}

#[test]
fn a_sandbox_runs_once_its_probe_passes() {
    in_each_class("a_sandbox_runs_once_its_probe_passes", |instance, class| {
        let name = format!("slow-{class}");
        create(instance, &with_command(class, &name, "[test, -e, /tmp/ready]"));
        wait_until("its container runs", || {
            status(instance, &name)["containers"][0]["state"] == "running"
        });
        assert_eq!(status(instance, &name)["phase"], "Scheduled");
        let touch = ["exec", &name, "--", "touch", "/tmp/ready"];
        instance.atoll(touch).succeeded();
        // Its first declared try is an hour away: an early one found it.
        instance.atoll(["wait", &format!("sandbox/{name}"), "--for=ready"]).succeeded();
        let status = status(instance, &name);
        assert_eq!((&status["phase"], &status["ready"]), (&"Running".into(), &true.into()));
        let phases = status["timeline"]["phases"].as_array().unwrap();
        assert!(phases.iter().any(|it| it["name"] == "ready"), "{phases:?}");
        instance.kill_server();
        instance.up();
        assert_eq!(crate::probes::status(instance, &name)["ready"], true, "after a restart");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn a_sandbox_that_never_gets_ready_is_ended_with_the_reason() {
    on_a_host("a_sandbox_that_never_gets_ready", |instance, class, _| {
        let probe = |name: &str, probe: &str, args: &str| {
            let text = format!(
                "kind: Sandbox
id: {name}
spec:
  class: {class}
  readiness_probe: {{{probe}, initial_delay_seconds: 1, period_seconds: 1, timeout_seconds: 1, success_threshold: 1, failure_threshold: 2}}
  containers: [{{name: main, image: {IMAGE}, args: {args}}}]
"
            );
            create(instance, &text);
            wait_until("it has failed", || status(instance, name)["phase"] == "Failed");
            let status = status(instance, name);
            assert_eq!(status["reason"], "NeverReady", "{status}");
            assert!(status["ip"].is_null(), "{status}");
            let why = status["last_error"].as_str().unwrap().to_owned();
            assert!(why.contains("failed 2 times"), "{why}");
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
            why
        };
        let closed = probe("closed", "protocol: tcp, port: 81", "[sleep, '1000']");
        assert!(closed.ends_with("port 81: Connection refused (os error 111)"), "{closed}");
        let silent = "[nc, -ll, -p, '80', -e, sleep, '1000']";
        let silent = probe("silent", "protocol: http, port: 80, path: /", silent);
        assert!(silent.contains("no answer"), "{silent}");
        let wrong = "[httpd, -f, -p, '80', -h, /tmp]";
        let wrong = probe("wrong", "protocol: http, port: 80, path: /nothing", wrong);
        assert!(wrong.contains("404"), "{wrong}");
        let endless = "[nc, -ll, -p, '80', -e, yes]";
        let endless = probe("endless", "protocol: http, port: 80, path: /", endless);
        assert!(!endless.is_empty());
    });
}
