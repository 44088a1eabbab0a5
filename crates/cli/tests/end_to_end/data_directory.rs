//! What lies in a data directory is the instance's own: other users of the host reach nothing of it, and what is put in a file's place
//! leads atoll nowhere.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    IMAGE, Instance, archive, finish, import, in_each_class, in_each_class_of, skipped, wait_until,
};

const SECRET: &str = "a secret of the host\n";

fn create(instance: &Instance, class: &str, name: &str, script: &str) {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  volumes: [{{name: shared, ephemeral_storage: 1Mi}}]\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n      volume_mounts: [{{name: shared, mount_path: /shared}}]\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

fn log_of(instance: &Instance, name: &str) -> PathBuf {
    let sandbox = instance.sandbox(name).expect("it is there");
    let uid = sandbox["uid"].as_str().unwrap();
    instance.data_dir().join("sandboxes").join(uid).join("logs/main.log")
}

/// GO-2026-5622, with the rights of whoever may write to one sandbox's directory: a log that became a link was read by the daemon.
#[test]
fn a_log_that_was_replaced_by_a_link_shows_nothing_of_the_host() {
    in_each_class("log_link", |instance, class| {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let name = format!("logged-{class}");
        create(
            instance,
            class,
            &name,
            "echo own; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo more; exit 3",
        );
        create(instance, class, "neighbour", "echo fine; sleep 1000");
        for (name, text) in [(name.as_str(), "own\n"), ("neighbour", "fine\n")] {
            wait_until("it is logged", || instance.atoll(["logs", name]).text() == text);
        }
        let log = log_of(instance, &name);
        let refused = || {
            for arguments in
                [&["logs", &name][..], &["logs", "-f", &name], &["logs", "--tail", "1", &name]]
            {
                let finished = instance.atoll(arguments);
                finished.ended_with(1);
                finished.complains("something else stands in its place");
                let told = format!("{}{}", finished.text(), finished.stderr);
                assert!(!told.contains(SECRET.trim()), "{told}");
            }
            assert_eq!(instance.atoll(["logs", "neighbour"]).succeeded(), "fine\n");
            assert_eq!(std::fs::read_to_string(&secret).unwrap(), SECRET, "nor is it written");
        };
        std::fs::remove_file(&log).unwrap();
        symlink(&secret, &log).unwrap();
        refused();
        // What the sandbox says goes on being taken, and how it ends is known.
        // It may be over before this is told so.
        instance.atoll(["exec", &name, "--", "touch", "/tmp/go"]);
        let reference = format!("sandbox/{name}");
        instance.atoll(["wait", &reference, "--for", "failed", "--timeout", "60s"]).succeeded();
        refused();
        let ended = instance.sandbox(&name).expect("its record stays");
        assert_eq!(ended["status"]["containers"][0]["exit_code"], 3, "{ended}");
        // The rotated half, and a directory on the way.
        let logs = log.parent().unwrap().to_owned();
        std::fs::remove_file(&log).unwrap();
        symlink(&secret, logs.join("main.log.1")).unwrap();
        refused();
        std::fs::remove_dir_all(&logs).unwrap();
        std::fs::rename(&secret, outside.path().join("main.log")).unwrap();
        symlink(outside.path(), &logs).unwrap();
        let secret = outside.path().join("main.log");
        instance.atoll(["logs", &name]).complains("something else stands in its place");
        for name in [&name, "neighbour"] {
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        }
        assert_eq!(
            std::fs::read_to_string(secret).unwrap(),
            SECRET,
            "nothing is removed through a link"
        );
    });
}

/// What nobody, who has no rights but those that everybody has, can read, write, or enter below a directory.
fn open_to_nobody(directory: &Path) -> String {
    let mut find = Command::new("setpriv");
    find.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "find"]);
    find.arg(directory).args(["-mindepth", "1"]);
    find.args(["(", "-readable", "-o", "-writable", "-o", "-executable", ")", "-print"]);
    // It complains of what it cannot enter, which is as it should be.
    finish(find, b"").text()
}

/// GO-2025-4100, where the directory is older than the instance and open to all: what the instance puts there is not.
#[test]
fn other_users_of_the_host_reach_nothing_of_an_instance() {
    if !rustix::process::geteuid().is_root() {
        return skipped("other_users", "needs root");
    }
    let Some(archive) = archive() else {
        return skipped("other_users", "busybox-static is not installed");
    };
    let instance = Instance::not_started();
    let directory = instance.data_dir();
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&directory, mode(0o755)).unwrap();
    instance.up();
    import(&instance, archive);
    in_each_class_of(&instance, "other_users", |instance, class| {
        create(
            instance,
            class,
            &format!("private-{class}"),
            "echo > /shared/mine; echo logged; sleep 1000",
        );
    });
    // The search finds what there is to find.
    let open = directory.join("open");
    std::fs::write(&open, "").unwrap();
    std::fs::set_permissions(&open, mode(0o604)).unwrap();
    assert_eq!(open_to_nobody(&directory).trim(), open.display().to_string(), "and nothing else");
    std::fs::remove_file(&open).unwrap();
    for entry in std::fs::read_dir(&directory).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.mode() & 0o7777, wanted, "{}", entry.path().display());
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{}", entry.path().display());
    }
    instance.end();
}
