//! Damage and shortage: a clear word about the sandbox concerned, and nothing else harmed.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::restarts::{kill, shim_pid};
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
    let shim = shim_pid(&instance, "damaged");
    instance.kill_server();
    kill(&instance, shim);
    let directory = instance.data_dir().join("sandboxes").join(&damaged);
    fs::write(directory.join("launch.json"), b"\0\0{").unwrap();
    instance.up();
    instance.atoll(["exec", "whole", "--", "true"]).succeeded();
    let status = instance.sandbox("damaged").expect("its record stays")["status"].clone();
    assert_eq!((&status["phase"], &status["reason"]), (&"Failed".into(), &"Quarantined".into()));
    let told = instance.atoll(["events", "sandbox/damaged"]).succeeded();
    assert!(told.contains("Quarantined"), "{told}");
    // Whole and aside, with a note why; nothing of it runs or is left elsewhere.
    let aside: Vec<_> = fs::read_dir(instance.data_dir().join("quarantine"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(
        matches!(&aside[..], [one] if one.file_name().unwrap().to_string_lossy().starts_with(&damaged)),
        "{aside:?}"
    );
    assert_eq!(fs::read(aside[0].join("launch.json")).unwrap(), b"\0\0{");
    assert!(aside[0].join("logs/main.log").exists(), "its output can still be looked at");
    let note = fs::read_to_string(aside[0].join("quarantine-reason.txt")).unwrap();
    assert!(note.contains("launch.json"), "{note}");
    assert!(!directory.exists());
    nothing_left_of(&instance, &damaged);
    instance.atoll(["delete", "sandbox/damaged"]).succeeded();
    instance.atoll(["exec", "whole", "--", "true"]).succeeded();
    instance.end();
}

/// Nothing of a sandbox is on the host but, maybe, its directory.
fn nothing_left_of(instance: &Instance, uid: &str) {
    let of_it = |text: &str| text.contains(uid);
    wait_until("nothing of it is left", || {
        let left = instance.leftovers();
        !left.groups.iter().any(|group| of_it(&group.to_string_lossy()))
            && !left.mounts.iter().any(|mount| of_it(mount))
            && !left.loops.iter().any(|device| of_it(device))
            && !left.processes.iter().any(|process| of_it(process))
    });
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
    assert_eq!(status["reason"], "Lost", "{status}");
    assert!(status["last_error"].as_str().is_some_and(|why| why.contains("anew")), "{status}");
    assert!(status["containers"][0]["exit_code"].is_null(), "nobody knows it: {status}");
    // Before anybody deletes it: what stays is the record and what it had said.
    nothing_left_of(&instance, &uid);
    assert_eq!(instance.atoll(["logs", "ran"]).succeeded(), "begun\n");
    instance.atoll(["delete", "sandbox/ran"]).succeeded();
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
    instance.set_server_environment("PATH", &path);
    if let Err(why) = hide_runsc() {
        return crate::support::skipped("no_runsc", &format!("runsc cannot be hidden: {why}"));
    }
    let _ = fs::remove_file(instance.data_dir().join("gvisor-host.json"));
    instance.up();
    assert!(!instance.available_classes().iter().any(|class| class == "gvisor"));
    let refused = instance.atoll(["run", "--class", "gvisor", IMAGE, "--", "true"]);
    refused.ended_with(125);
    refused.complains("runsc").complains("install");
    instance.has_no_sandboxes();
    if has_container(&instance, "no_runsc") {
        let other = instance.atoll(["run", "--class", "container", IMAGE, "--", "echo", "fine"]);
        assert_eq!(other.succeeded(), "fine\n");
    }
    instance.end();
}

/// Takes runsc away from this thread and from what it starts, and from nobody else.
fn hide_runsc() -> Result<(), String> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    let said = |error: rustix::io::Errno| error.to_string();
    atoll_sys::clone::unshare(rustix::thread::UnshareFlags::NEWNS)
        .map_err(|error| error.to_string())?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(said)?;
    for usual in ["/usr/local/bin/runsc", "/usr/bin/runsc", "/bin/runsc"] {
        // What is no regular file is no program.
        if std::path::Path::new(usual).is_file() {
            mount_bind("/dev/null", usual).map_err(said)?;
        }
    }
    Ok(())
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
