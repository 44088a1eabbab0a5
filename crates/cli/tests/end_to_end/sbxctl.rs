//! The binary called as sbxctl, beside the calls and columns that sandboxd-o documents.

use std::os::unix::process::CommandExt;

use crate::support::{Finished, IMAGE, Instance, finish, instance_with_image};

fn sbxctl(instance: &Instance, arguments: &[&str], input: &str) -> Finished {
    let record = std::fs::read(instance.data_dir().join("server.json")).expect("a server");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let secret = std::fs::read_to_string(instance.data_dir().join("token")).expect("a token");
    let mut command = instance.command(arguments);
    command.arg0("/usr/local/bin/sbxctl");
    command.env("SBXCTL_SERVER", record["address"].as_str().expect("an address"));
    command.env("SBX_SHARED_SECRET", secret.trim());
    finish(command, input.as_bytes())
}

#[test]
fn called_as_sbxctl_it_takes_its_verbs_and_shows_its_columns() {
    let Some(instance) = instance_with_image("called_as_sbxctl") else { return };
    let call = |arguments: &[&str]| sbxctl(&instance, arguments, "");
    assert_eq!(call(&["get", "sbx"]).succeeded(), "RESOURCE: sandbox\nNo resources found\n");
    let nodes: serde_json::Value =
        serde_json::from_str(&call(&["get", "nodes", "-o", "json"]).succeeded()).expect("JSON");
    let node = nodes["nodes"][0]["id"].as_str().expect("a node").to_owned();
    let manifest = format!(
        "apiVersion: sandboxd.o/v1\nkind: Sandbox\nid: one\nspec:\n  ttl_seconds: 600\n  containers:\n  - name: a\n    image: {IMAGE}\n    args: [sh, -c, 'echo from a; sleep 1000']\n    resource: {{cpu: 100m, memory: 64Mi}}\n  - name: b\n    image: {IMAGE}\n    args: [sh, -c, 'echo from b; sleep 1000']\n    resource: {{cpu: 100m, memory: 64Mi}}\n"
    );
    let created = sbxctl(&instance, &["c", "-f", "-"], &manifest).succeeded();
    assert!(created.contains("\"id\": \"one\""), "{created}");
    let external =
        format!("kind: External\nid: ext\nspec: {{node_id: {node}, external: play.example.org}}\n");
    assert!(
        sbxctl(&instance, &["create", "-f", "-"], &external).succeeded().contains("\"ok\": true")
    );
    instance.atoll(["wait", "sandbox/one", "--for", "running", "--timeout", "60s"]).succeeded();
    let table = call(&["g", "s,n,e"]).succeeded();
    let lines: Vec<Vec<&str>> = table.lines().map(|it| it.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["RESOURCE:", "sandbox"]);
    assert_eq!(lines[1], ["NAME", "PHASE", "NODE", "EXTERNAL", "CREATED"]);
    assert_eq!(lines[2][..4], ["one", "Running", node.as_str(), "play.example.org"]);
    assert_eq!(lines[3], ["RESOURCE:", "node"]);
    assert_eq!(lines[4], ["NAME", "STATE", "SCHEDULABLE", "IP", "PORT", "EXTERNAL", "UPDATED"]);
    assert_eq!(lines[5][..4], [node.as_str(), "Ready", "true", "127.0.0.1"]);
    assert_eq!(lines[7], ["ID", "NODE_ID", "EXTERNAL", "UPDATED"]);
    assert_eq!(lines[8][..3], ["ext", node.as_str(), "play.example.org"]);
    let wide = call(&["get", "sandboxes", "-o", "wide"]).succeeded();
    assert!(wide.contains("EXPIRE_AT") && wide.contains("a,b"), "{wide}");
    let spec = call(&["spec", "sandbox/one"]).succeeded();
    assert!(spec.starts_with("apiVersion: sandboxd.o/v1\nkind: Sandbox\nid: one\n"), "{spec}");
    crate::support::wait_until("both have written", || {
        let log = call(&["logs", "sandbox/one"]).succeeded();
        log.contains("[a] from a\n") && log.contains("[b] from b\n")
    });
    assert_eq!(call(&["l", "sandbox/one", "b"]).succeeded(), "from b\n");
    assert!(call(&["get", "node/nobody"]).stderr.contains("nobody"));
    call(&["d", "e/ext"]).succeeded();
    assert!(call(&["delete", "sandbox/one"]).succeeded().contains("\"deleted\": \"one\""));
    assert!(call(&["delete", "sandbox/one", "--force"]).stderr.contains("nodes only"));
    let cordon = call(&["cordon", &format!("node/{node}")]);
    cordon.ended_with(1);
    cordon.complains("does not take PATCH");
    for wrong in
        [&["get", "pods"][..], &["delete", "sandbox/one"], &["--secret", "wrong", "get", "s"]]
    {
        call(wrong).ended_with(1);
    }
    instance.end();
}

#[test]
fn the_configuration_file_counts_less_than_environment_and_flags() {
    let Some(instance) = instance_with_image("sbxctl_configuration") else { return };
    let file = instance.data_dir().join("sbxctl.json");
    let text = r#"{"server": "http://127.0.0.1:1", "shared_secret": "wrong", "timeout": "5s", "output": "json", "limit": 100}"#;
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("a path");
    let listed = sbxctl(&instance, &["-c", file, "get", "sandboxes"], "").succeeded();
    assert_eq!(listed.trim(), "{\n  \"sandboxes\": []\n}");
    let table = sbxctl(&instance, &["-c", file, "-o", "wide", "get", "sandboxes"], "").succeeded();
    assert!(table.starts_with("RESOURCE: sandbox"), "{table}");
    let server = ["-c", file, "--server", "http://127.0.0.1:1", "get", "s"];
    sbxctl(&instance, &server, "").ended_with(1);
    sbxctl(&instance, &["-c", "/nowhere.json", "get", "s"], "").ended_with(1);
    instance.end();
}
