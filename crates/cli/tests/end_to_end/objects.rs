//! Objects: create, get, describe, wait, events, delete, logs, attach.

use crate::support::{IMAGE, Instance, in_each_class, instance_with_image};

fn manifest(name: &str, class: &str, script: &str) -> String {
    format!(
        "apiVersion: sandboxd.o/v1\nkind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, \"{script}\"]\n      resource: {{memory: 64Mi}}\n"
    )
}

fn create(instance: &Instance, text: &str) {
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

#[test]
fn several_documents_become_several_sandboxes_that_can_be_read_in_each_form() {
    in_each_class("create_and_get", |instance, class| {
        let names = [format!("a-{class}"), format!("b-{class}")];
        let text = format!(
            "{}---\n{}",
            manifest(&names[0], class, "sleep 1000"),
            manifest(&names[1], class, "sleep 1000")
        );
        create(instance, &text);
        let table = instance.atoll(["get", "sandboxes"]).succeeded();
        assert!(table.starts_with("NAME"), "{table}");
        for name in &names {
            let line = table.lines().find(|line| line.starts_with(name.as_str())).expect("a row");
            assert!(line.contains("Running") && line.contains(class), "{line}");
        }
        let wide = instance.atoll(["get", "sbx", "-o", "wide"]).succeeded();
        assert!(wide.contains("LAST ERROR"), "{wide}");
        let one = instance.atoll(["get", &format!("sandbox/{}", names[0]), "-o", "json"]).json();
        assert_eq!(one["spec"]["containers"][0]["resource"]["memory"], "64Mi");
        let yaml =
            instance.atoll(["get", &format!("sandbox/{}", names[0]), "-o", "yaml"]).succeeded();
        assert!(yaml.contains("phase: Running"), "{yaml}");
        let described = instance.atoll(["describe", &format!("sandbox/{}", names[0])]).succeeded();
        for expected in ["Timeline", "command", "total", "Running", "Events", "memory 64Mi"] {
            assert!(described.contains(expected), "{expected} is missing in\n{described}");
        }
        let timeline = &one["status"]["timeline"];
        let phases: u64 = timeline["phases"]
            .as_array()
            .expect("phases")
            .iter()
            .map(|phase| phase["micros"].as_u64().expect("a number"))
            .sum();
        assert_eq!(Some(phases), timeline["total_micros"].as_u64(), "{timeline}");
        let events = instance.atoll(["events", &format!("sandbox/{}", names[0])]).succeeded();
        assert!(events.contains("Started") && !events.contains(&names[1]), "{events}");
        let both: Vec<String> = names.iter().map(|name| format!("sandbox/{name}")).collect();
        let mut delete = vec!["delete".to_owned()];
        delete.extend(both);
        let deleted = instance.atoll(&delete).succeeded();
        assert_eq!(deleted.lines().count(), 2, "{deleted}");
        instance.has_no_sandboxes();
    });
}

#[test]
fn waiting_ends_with_the_state_or_with_the_news_that_it_cannot_come() {
    in_each_class("wait", |instance, class| {
        let name = format!("short-{class}");
        let reference = format!("sandbox/{name}");
        instance
            .atoll_with_input(["create", "-f", "-"], manifest(&name, class, "exit 0").as_bytes())
            .succeeded();
        instance.atoll(["wait", &reference, "--for", "succeeded", "--timeout", "60s"]).succeeded();
        let never = instance.atoll(["wait", &reference, "--for", "failed", "--timeout", "60s"]);
        never.ended_with(1);
        never.complains("cannot become failed").complains("Succeeded");
        let begun = std::time::Instant::now();
        let late = instance.atoll(["wait", &reference, "--for", "deleted", "--timeout", "300ms"]);
        late.ended_with(1);
        late.complains("not deleted in time");
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
        instance.atoll(["delete", &reference]).succeeded();
        instance.atoll(["wait", &reference, "--for", "deleted", "--timeout", "60s"]).succeeded();
        instance.atoll(["wait", &reference, "--for", "ready"]).complains(&name);
    });
}

#[test]
fn logs_follow_until_the_end_and_attach_gives_the_exit_code() {
    in_each_class("logs_and_attach", |instance, class| {
        let name = format!("writer-{class}");
        let script =
            "echo one; echo two; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo three; exit 5";
        create(instance, &manifest(&name, class, script));
        let mut follow = instance.begin(["logs", "-f", &name]);
        follow.line_with("two");
        let mut attach = instance.begin(["attach", &name]);
        let tail = instance.atoll(["logs", "--tail", "1", "--timestamps", &name]).succeeded();
        assert!(tail.ends_with(" two\n") && tail.starts_with("20"), "{tail}");
        attach_is_connected(instance, &name);
        instance.atoll(["exec", &name, "--", "touch", "/tmp/go"]).succeeded();
        assert_eq!(follow.finish().succeeded(), "one\ntwo\nthree\n");
        attach.line_with("three");
        attach.finish().ended_with(5);
        instance.atoll(["logs", &name, "other"]).complains("other");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

/// An attach shows output from when it is connected: an exec that was asked for later runs later.
fn attach_is_connected(instance: &Instance, name: &str) {
    for _ in 0..3 {
        instance.atoll(["exec", name, "--", "true"]).succeeded();
    }
}

#[test]
fn several_containers_are_told_apart() {
    in_each_class("several_containers", |instance, class| {
        let name = format!("pair-{class}");
        let text = format!(
            "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: first\n      image: {IMAGE}\n      args: [sh, -c, 'echo from-first; sleep 1000']\n    - name: second\n      image: {IMAGE}\n      args: [sh, -c, 'echo from-second; sleep 1000']\n"
        );
        create(instance, &text);
        for container in ["first", "second"] {
            let mut follow = instance.begin(["logs", "-f", &name, container]);
            follow.line_with(&format!("from-{container}"));
            let own = format!("echo {container} > /tmp/name; cat /tmp/name");
            let exec = instance.atoll(["exec", "-c", container, &name, "--", "sh", "-c", &own]);
            assert_eq!(exec.succeeded(), format!("{container}\n"));
        }
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn what_is_wrong_with_a_manifest_is_said_with_its_place() {
    let Some(instance) = instance_with_image("bad_manifests") else { return };
    let refuse = |text: &str, expected: &[&str]| {
        let finished = instance.atoll_with_input(["create", "-f", "-"], text.as_bytes());
        assert_eq!(finished.code, Some(1), "{finished:?}");
        for word in expected {
            finished.complains(word);
        }
    };
    refuse("kind: [", &["document 1"]);
    refuse("", &["is empty"]);
    let good = manifest("good", "container", "true");
    refuse(&good.replace("memory:", "memroy:"), &["spec.containers", "resource.memroy"]);
    refuse(&good.replace("64Mi", "1e400"), &["spec.containers[0].resource.memory"]);
    refuse(&good.replace("id: good", "id: ../good"), &["id"]);
    refuse(
        &good.replace("spec:\n", "spec:\n  egress: true\n"),
        &["spec.egress", "cannot be enforced"],
    );
    let publish = ["run", "--class", "container", "-p", "80", IMAGE, "--", "true"];
    instance.atoll(publish).complains("spec.ports").complains("cannot be enforced");
    refuse(&format!("{good}---\nkind: ["), &["document 2"]);
    instance.has_no_sandboxes();
    instance.end();
}

#[test]
fn changes_are_shown_as_they_happen() {
    let Some(instance) = instance_with_image("watch") else { return };
    let mut watch = instance.begin(["get", "sandboxes", "-w", "-o", "json"]);
    let mut events = instance.begin(["events", "-f"]);
    instance.atoll(["run", "--name", "seen", IMAGE, "--", "true"]).succeeded();
    watch.line_with("ADDED");
    watch.line_with("DELETED");
    events.line_with("Started");
    events.line_with("Deleted");
    instance.end();
}

#[test]
fn all_can_be_deleted_at_once_and_what_is_not_there_is_told() {
    let Some(instance) = instance_with_image("delete") else { return };
    let text = ["x", "y", "z"].map(|name| manifest(name, "sim", "sleep 1000")).join("---\n");
    create(&instance, &text);
    instance.atoll(["delete", "sandboxes"]).complains("--all");
    let some = instance.atoll(["delete", "sandbox/x", "sandbox/unknown"]);
    assert_eq!(some.ended_with(1), "sandbox/x deleted\n");
    some.complains("unknown");
    instance.atoll(["delete", "--ignore-not-found", "sandbox/x"]).succeeded();
    // A node's name is no sandbox's, whatever that is called.
    instance.atoll(["delete", "node/y"]).ended_with(1);
    assert!(instance.sandbox("y").is_some());
    assert_eq!(instance.atoll(["delete", "sandboxes", "--all"]).succeeded().lines().count(), 2);
    instance.has_no_sandboxes();
    instance.end();
}
