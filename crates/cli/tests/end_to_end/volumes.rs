//! Named volumes: files that outlive sandboxes, servers and kills, with a limit, shared, refused while in use, gone without a trace.

use std::path::PathBuf;

use crate::support::{IMAGE, Instance, in_each_class, instance_with_image, wait_until};

/// The smallest there is.
const SIZE: &str = "16Mi";

fn create(instance: &Instance, name: &str) {
    instance.atoll(["create", "volume", name, "--size", SIZE]).succeeded();
}

fn run(instance: &Instance, class: &str, mount: &str, script: &str) -> crate::support::Finished {
    instance.atoll(["run", "--class", class, "-v", mount, IMAGE, "--", "sh", "-c", script])
}

fn volume(instance: &Instance, name: &str) -> serde_json::Value {
    instance.atoll(["get", &format!("volume/{name}"), "-o", "json"]).json()
}

/// Directories of volumes on the host.
fn on_host(instance: &Instance) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(instance.data_dir().join("volumes"));
    entries.map(|it| it.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[test]
fn files_outlive_sandboxes_and_belong_to_each_ones_own_root() {
    in_each_class("volume_persistence", |instance, class| {
        let name = format!("data-{class}");
        create(instance, &name);
        let mount = format!("{name}:/srv/data");
        let write = "echo kept > /srv/data/file && chown 1000:1000 /srv/data/file && mkdir /srv/data/own && ls -A /srv/data";
        let listed = run(instance, class, &mount, write).succeeded();
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["file", "own"], "it was empty");
        let read = "cat /srv/data/file; stat -c %u:%g /srv/data /srv/data/file /srv/data/own";
        let seen = run(instance, class, &mount, read).succeeded();
        assert_eq!(
            seen.split_whitespace().collect::<Vec<_>>(),
            ["kept", "0:0", "1000:1000", "0:0"]
        );
        let read_only = run(
            instance,
            class,
            &format!("{mount}:ro"),
            "cat /srv/data/file; touch /srv/data/x || mount -o remount,rw /srv/data || rm /srv/data/file",
        );
        assert_ne!(read_only.code, Some(0), "{read_only:?}");
        assert_eq!(read_only.text(), "kept\n");
        let shown = volume(instance, &name);
        assert_eq!(shown["status"]["phase"], "Ready", "{shown}");
        assert!(shown["status"]["used_bytes"].as_u64().is_some(), "{shown}");
        assert!(shown["status"].get("used_by").is_none(), "{shown}");
        let described = instance.atoll(["describe", &format!("volume/{name}")]).succeeded();
        assert!(described.contains("Ready") && described.contains(SIZE), "{described}");
        instance.atoll(["delete", &format!("volume/{name}")]).succeeded();
        assert_eq!(on_host(instance), [] as [PathBuf; 0]);
        instance.atoll(["get", &format!("volume/{name}")]).complains("there is no volume");
    });
}

#[test]
fn a_full_volume_is_full_for_its_users_alone() {
    in_each_class("volume_limit", |instance, class| {
        let (full, other) = (format!("full-{class}"), format!("other-{class}"));
        create(instance, &full);
        create(instance, &other);
        let script = "dd if=/dev/zero of=/full/zeros bs=1M count=64 2>&1; du -sm /full; echo fits > /other/file && cat /other/file && dd if=/dev/zero of=/root/here bs=1M count=20 2>/dev/null && echo root";
        let finished = instance.atoll([
            "run",
            "--class",
            class,
            "-v",
            &format!("{full}:/full"),
            "-v",
            &format!("{other}:/other"),
            IMAGE,
            "--",
            "sh",
            "-c",
            script,
        ]);
        let text = finished.succeeded();
        assert!(text.contains("No space left") || text.contains("quota exceeded"), "{text}");
        assert!(text.contains("fits\nroot"), "{text}");
        let shown = volume(instance, &full);
        let (used, limit) = (&shown["status"]["used_bytes"], &shown["status"]["limit_bytes"]);
        assert!(used.as_u64() <= Some(16 << 20) && used.as_u64() > Some(8 << 20), "{shown}");
        assert!(limit.as_u64() <= Some(16 << 20), "{shown}");
    });
}

fn user(name: &str, class: &str, volume: &str, script: &str) -> String {
    format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  volumes: [{{name: data, volume: {volume}}}]\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n      volume_mounts: [{{name: data, mount_path: /data}}]\n"
    )
}

#[test]
fn two_sandboxes_share_a_volume_that_cannot_be_deleted_meanwhile() {
    in_each_class("volume_shared", |instance, class| {
        let name = format!("shared-{class}");
        create(instance, &name);
        let (a, b) = (format!("a-{class}"), format!("b-{class}"));
        let text = format!(
            "{}---\n{}",
            user(&a, class, &name, "sleep 1000"),
            user(&b, class, &name, "sleep 1000")
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        // Looked at before it is there: what is not there must not be remembered.
        instance.atoll(["exec", &b, "--", "ls", "/data/new"]).ended_with(1);
        instance.atoll(["exec", &a, "--", "sh", "-c", "echo one > /data/new"]).succeeded();
        let seen = instance.atoll(["exec", &b, "--", "cat", "/data/new"]).succeeded();
        assert_eq!(seen, "one\n");
        instance.atoll(["exec", &b, "--", "sh", "-c", "echo two >> /data/new"]).succeeded();
        let seen = instance.atoll(["exec", &a, "--", "cat", "/data/new"]).succeeded();
        assert_eq!(seen, "one\ntwo\n");
        let refused = instance.atoll(["delete", &format!("volume/{name}")]);
        refused.ended_with(1);
        refused.complains("in use").complains(&a).complains(&b);
        let shown = volume(instance, &name);
        assert_eq!(shown["status"]["used_by"], serde_json::json!([a, b]), "{shown}");
        instance.atoll(["delete", &format!("sandbox/{a}"), &format!("sandbox/{b}")]).succeeded();
        instance.atoll(["delete", &format!("volume/{name}")]).succeeded();
    });
}

#[test]
fn a_sandbox_waits_for_a_volume_that_is_missing() {
    in_each_class("volume_missing", |instance, class| {
        let (name, sandbox) = (format!("late-{class}"), format!("waits-{class}"));
        let text = user(&sandbox, class, &name, "echo here > /data/file");
        instance.atoll_with_input(["create", "-f", "-"], text.as_bytes()).succeeded();
        wait_until("it says what it waits for", || {
            let status = instance.sandbox(&sandbox).expect("it is there")["status"].clone();
            status["phase"] == "Pending" && status["reason"] == "NoVolume"
        });
        let typed = run(instance, class, &format!("{name}:/data"), "true");
        typed.ended_with(125);
        typed.complains("atoll create volume");
        // A server that is killed goes on waiting.
        instance.kill_server();
        instance.up();
        create(instance, &name);
        let reference = format!("sandbox/{sandbox}");
        instance.atoll(["wait", &reference, "--for", "succeeded", "--timeout", "90s"]).succeeded();
        let seen = run(instance, class, &format!("{name}:/data:ro"), "cat /data/file").succeeded();
        assert_eq!(seen, "here\n");
        instance.atoll(["delete", &reference, &format!("volume/{name}")]).succeeded();
    });
}

#[test]
fn volumes_survive_a_killed_server_with_and_without_their_users() {
    in_each_class("volume_killed_server", |instance, class| {
        let (name, sandbox) = (format!("kept-{class}"), format!("lives-{class}"));
        create(instance, &name);
        let text = user(&sandbox, class, &name, "echo before > /data/file; sleep 1000");
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        instance.kill_server();
        instance.up();
        // In use by who went on, and one and the same file system for who comes now.
        instance.atoll(["delete", &format!("volume/{name}")]).complains(&sandbox).ended_with(1);
        let mount = format!("{name}:/data");
        let seen = run(instance, class, &mount, "cat /data/file; echo after > /data/file");
        assert_eq!(seen.succeeded(), "before\n");
        let seen = instance.atoll(["exec", &sandbox, "--", "cat", "/data/file"]).succeeded();
        assert_eq!(seen, "after\n");
        instance.atoll(["delete", &format!("sandbox/{sandbox}")]).succeeded();
        instance.kill_server();
        instance.up();
        assert_eq!(run(instance, class, &mount, "cat /data/file").succeeded(), "after\n");
        instance.atoll(["delete", &format!("volume/{name}")]).succeeded();
        assert_eq!(on_host(instance), [] as [PathBuf; 0]);
    });
}

/// Whatever a hostile sandbox puts into a volume harms nobody who mounts it, and can be removed.
#[test]
fn hostile_files_stay_harmless() {
    in_each_class("volume_hostile", |instance, class| {
        let name = format!("hostile-{class}");
        create(instance, &name);
        let mount = format!("{name}:/data");
        let script = "cd /data; ln -s /etc/shadow link; ln -s / up; mkfifo fifo; cp /bin/busybox busybox; chmod 6755 busybox; mknod disk b 254 0; mknod mem c 1 1; mkdir -p deep/deeper; chmod 0 deep; echo ok";
        let made = run(instance, class, &mount, script).succeeded();
        assert!(made.ends_with("ok\n"), "{made}");
        let script = "cd /data; head -c 1 disk >/dev/null 2>&1 && echo device; head -c 1 mem >/dev/null 2>&1 && echo memory; ./busybox id -u";
        let seen = instance
            .atoll([
                "run", "--class", class, "-u", "1000", "-v", &mount, IMAGE, "--", "sh", "-c",
                script,
            ])
            .succeeded();
        assert_eq!(seen, "1000\n", "nosuid and nodev hold");
        instance.atoll(["delete", &format!("volume/{name}")]).succeeded();
        assert_eq!(on_host(instance), [] as [PathBuf; 0]);
    });
}

/// Kills at any moment of making and removing: what is acknowledged holds, and nothing else is left.
#[test]
fn a_kill_while_a_volume_is_made_or_removed_leaves_nothing_behind() {
    let Some(instance) = instance_with_image("volume_kills") else { return };
    for (round, delay) in [0_u64, 3, 8, 15, 25, 40].into_iter().enumerate() {
        let name = format!("half-{round}");
        let making = instance.begin(["create", "volume", &name, "--size", SIZE]);
        std::thread::sleep(std::time::Duration::from_millis(delay));
        instance.kill_server();
        let made = making.finish();
        instance.up();
        let list = instance.atoll(["get", "volumes", "-o", "json"]).json();
        let known = list["items"].as_array().expect("items").clone();
        assert!(made.code != Some(0) || !known.is_empty(), "acknowledged and gone");
        assert_eq!(on_host(&instance).len(), known.len(), "{list}");
        assert!(known.iter().all(|it| it["status"]["phase"] == "Ready"), "{list}");
        if known.is_empty() {
            continue;
        }
        let removing = instance.begin(["delete", &format!("volume/{name}")]);
        std::thread::sleep(std::time::Duration::from_millis(delay));
        instance.kill_server();
        let removed = removing.finish();
        instance.up();
        let left = instance.atoll(["get", "volumes", "-o", "json"]).json();
        let left = left["items"].as_array().expect("items").len();
        assert!(removed.code != Some(0) || left == 0, "acknowledged and still there");
        assert_eq!(on_host(&instance).len(), left);
        if left > 0 {
            instance.atoll(["delete", &format!("volume/{name}")]).succeeded();
        }
    }
    assert_eq!(on_host(&instance), [] as [PathBuf; 0]);
    create(&instance, "stays");
    // Data of users is theirs to delete.
    let directory = on_host(&instance);
    instance.atoll(["down"]).succeeded();
    assert_eq!((on_host(&instance).len(), on_host(&instance)), (1, directory));
    instance.up();
    assert_eq!(volume(&instance, "stays")["status"]["phase"], "Ready");
    instance.end();
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let Some(instance) = instance_with_image("volume_bad_input") else { return };
    let refused = |text: &str, why: &str| {
        let refused = instance.atoll_with_input(["create", "-f", "-"], text.as_bytes());
        refused.ended_with(1);
        refused.complains(why);
    };
    refused("kind: Volume\nid: a\nspec: {size: 1Mi}\n", "spec.size");
    refused("kind: Volume\nid: a\nspec: {size: 0}\n", "spec.size");
    refused("kind: Volume\nid: a\nspec: {}\n", "size");
    refused("kind: Volume\nid: ../a\nspec: {size: 16Mi}\n", "id");
    refused("kind: Volume\nid: a\nspec: {size: 16Mi, mode: shared}\n", "unknown field");
    refused("kind: Volume\napiVersion: v1\nid: a\nspec: {size: 16Mi}\n", "apiVersion");
    create(&instance, "a");
    let twice = instance.atoll(["create", "volume", "a", "--size", SIZE]);
    twice.ended_with(1);
    twice.complains("exists already");
    assert_eq!(on_host(&instance).len(), 1);
    let events = instance.atoll(["events", "volume/a"]).succeeded();
    assert!(events.contains("Created"), "{events}");
    instance.atoll(["delete", "volumes", "--all"]).succeeded();
    instance.end();
}
