//! The host's disk is full below the data directory: what is new is refused in clear words, what runs goes on, and room heals it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

use crate::support::{IMAGE, Instance, archive, skipped};

/// Room for the programs, an image, a few sandboxes and what unpacking leaves free; quick to fill.
const DISK: &std::ffi::CStr = c"size=640m,mode=0700";

/// Gives this thread, and what it starts, a small disk of its own at that place, which nobody else sees and which ends with them.
fn small_disk(place: &Path) -> Result<(), String> {
    let said = |error: rustix::io::Errno| error.to_string();
    atoll_sys::clone::unshare(UnshareFlags::NEWNS).map_err(|error| error.to_string())?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(said)?;
    mount("tmpfs", place, "tmpfs", MountFlags::empty(), DISK).map_err(said)
}

/// Takes all the room there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let mut step = 1 << 20;
    while step > 0 {
        match file.write(&vec![0; step]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => step /= 2,
            Err(error) => panic!("{error}"),
        }
    }
}

fn manifest(name: &str) -> String {
    format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: container\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n"
    )
}

#[test]
fn a_full_disk_refuses_what_is_new_and_harms_nothing_that_runs() {
    if !rustix::process::geteuid().is_root() {
        return skipped("container/host_disk_full", "needs root");
    }
    let Some(archive) = archive() else {
        return skipped("container/host_disk_full", "busybox-static is not installed");
    };
    let instance = Instance::not_started();
    let data_dir = instance.data_dir();
    if let Err(why) = small_disk(&data_dir) {
        return skipped("container/host_disk_full", &format!("no disk of its own: {why}"));
    }
    instance.up();
    if !instance.available_classes().iter().any(|class| class == "container") {
        return skipped("container/host_disk_full", "the class is not available here");
    }
    instance.atoll_with_input(["image", "import", "-", IMAGE], archive).succeeded();
    let create = |name: &str| {
        let text = manifest(name);
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes())
    };
    create("neighbour").succeeded();
    instance.atoll(["exec", "neighbour", "--", "sh", "-c", "echo kept > /tmp/kept"]).succeeded();

    let ballast = data_dir.join("ballast");
    fill(&ballast);
    let refused = create("late");
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let says = refused.stderr.to_lowercase();
    assert!(says.contains("disk") || says.contains("space"), "it says what is short: {refused:?}");
    let works = instance.atoll(["exec", "neighbour", "--", "cat", "/tmp/kept"]);
    assert_eq!(works.succeeded(), "kept\n", "what runs goes on");
    let shown = instance.sandbox("neighbour").expect("it is there");
    assert_eq!(shown["status"]["phase"], "Running", "{shown}");

    fs::remove_file(&ballast).unwrap();
    if instance.sandbox("late").is_some() {
        instance.atoll(["delete", "sandbox/late"]).succeeded();
    }
    create("after").succeeded();
    for name in ["neighbour", "after"] {
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    }
    instance.has_no_sandboxes();
    instance.end();
}
