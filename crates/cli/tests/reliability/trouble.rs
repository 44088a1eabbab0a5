//! Damage and shortage: a clear word about the sandbox concerned, and nothing else harmed.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{IMAGE, Instance, instance_with_image, processes_of, wait_until};

fn create(instance: &Instance, name: &str) -> String {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: container\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, 'echo begun; sleep 1000']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    let sandbox = instance.sandbox(name).expect("it runs");
    sandbox["uid"].as_str().expect("a uid").to_owned()
}

fn has_container(instance: &Instance, test: &str) -> bool {
    let there = instance.available_classes().iter().any(|class| class == "container");
    if !there {
        crate::support::skipped(&format!("container/{test}"), "the class is not available here");
    }
    there
}

#[test]
fn a_damaged_sandbox_is_set_aside_and_the_others_go_on() {
    let Some(instance) = instance_with_image("quarantine") else { return };
    if !has_container(&instance, "quarantine") {
        return;
    }
    let damaged = create(&instance, "damaged");
    create(&instance, "whole");
    instance.kill_server();
    let directory = instance.data_dir().join("sandboxes").join(&damaged);
    for name in ["launch.json", "shim.json"] {
        fs::write(directory.join(name), b"\0\0{").unwrap();
    }
    instance.up();
    instance.atoll(["exec", "whole", "--", "true"]).succeeded();
    let status = instance.sandbox("damaged").expect("its record stays")["status"].clone();
    assert!(
        status["phase"] == "Failed" || status["phase"] == "Unknown" || status["phase"] == "Running",
        "{status}"
    );
    instance.atoll(["delete", "sandbox/damaged"]).succeeded();
    instance.atoll(["exec", "whole", "--", "true"]).succeeded();
    instance.end();
}

#[test]
fn after_a_reboot_what_ran_has_failed_with_a_reason_and_nothing_is_left() {
    let Some(instance) = instance_with_image("reboot") else { return };
    if !has_container(&instance, "reboot") {
        return;
    }
    let uid = create(&instance, "ran");
    instance.kill_server();
    // All processes die, and the records are of another boot: what a host that was started anew finds.
    wait_until("everything is dead", || {
        let pids = processes_of(&instance.data_dir());
        for pid in &pids {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        pids.is_empty()
    });
    let record = instance.data_dir().join("sandboxes").join(&uid).join("shim.json");
    let text = fs::read_to_string(&record).unwrap();
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let other = "00000000-0000-4000-8000-000000000000";
    assert!(text.contains(own.trim()), "the record names its boot: {text}");
    fs::write(&record, text.replace(own.trim(), other)).unwrap();
    instance.up();
    let status = instance.sandbox("ran").expect("its record stays")["status"].clone();
    assert_eq!(status["phase"], "Failed", "{status}");
    assert!(status["reason"].is_string(), "{status}");
    let left = instance.leftovers();
    // The new server's own pools are no leftovers: only what carries the sandbox's uid is.
    let of_it = |text: &String| text.contains(&uid);
    assert!(!left.mounts.iter().any(of_it) && !left.loops.iter().any(of_it), "{left:#?}");
    instance.end();
}

#[test]
fn without_runsc_the_class_is_missing_and_says_what_to_install() {
    let Some(mut instance) = instance_with_image("no_runsc") else { return };
    instance.atoll(["down"]).succeeded();
    let nothing = tempfile::tempdir().unwrap();
    for name in ["mkfs.ext4", "ip"] {
        for directory in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
            let program = std::path::Path::new(directory).join(name);
            if program.exists() && !nothing.path().join(name).exists() {
                std::os::unix::fs::symlink(&program, nothing.path().join(name)).unwrap();
            }
        }
    }
    let path = nothing.path().display().to_string();
    let finds_it_elsewhere = ["/usr/local/bin/runsc", "/usr/bin/runsc", "/usr/sbin/runsc"]
        .iter()
        .any(|usual| std::path::Path::new(usual).exists());
    instance.set_server_environment("PATH", &path);
    let _ = fs::remove_file(instance.data_dir().join("gvisor-host.json"));
    instance.up();
    if finds_it_elsewhere {
        crate::support::skipped("no_runsc", "runsc is found in its usual place whatever PATH says");
    } else {
        let refused = instance.atoll(["run", "--class", "gvisor", IMAGE, "--", "true"]);
        refused.ended_with(125);
        refused.complains("runsc");
    }
    instance.end();
}

#[test]
fn a_sandbox_that_fills_its_disk_harms_itself_alone() {
    let Some(instance) = instance_with_image("disk_full") else { return };
    if !has_container(&instance, "disk_full") {
        return;
    }
    create(&instance, "neighbour");
    let fills = instance.atoll([
        "run",
        "--class",
        "container",
        "--disk",
        "16Mi",
        IMAGE,
        "--",
        "sh",
        "-c",
        "dd if=/dev/zero of=/tmp/x bs=1M count=64 2>&1; echo still here",
    ]);
    assert!(fills.succeeded().contains("still here"), "{fills:?}");
    assert!(fills.text().contains("space"), "{fills:?}");
    instance.atoll(["exec", "neighbour", "--", "sh", "-c", "echo fine > /tmp/f"]).succeeded();
    instance.end();
}
