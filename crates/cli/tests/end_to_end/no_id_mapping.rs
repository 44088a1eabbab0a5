//! A data directory whose file system has no id-mapped mounts, as in a container of another manager (overlayfs): sandboxes run with the
//! host's ids, which is told, and root in them is still no root of the host.

use std::fs;
use std::path::Path;

use atoll_sys::capabilities::CapabilitySet;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

use crate::support::{IMAGE, Instance, archive, import, skipped};

/// Gives this thread, and what it starts, an overlay at that place, which nobody else sees and which ends with them.
fn overlay(place: &Path) -> Result<(), String> {
    let said = |error: rustix::io::Errno| error.to_string();
    atoll_sys::clone::unshare(UnshareFlags::NEWNS).map_err(|error| error.to_string())?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(said)?;
    mount("tmpfs", place, "tmpfs", MountFlags::empty(), c"size=1g,mode=0700").map_err(said)?;
    let layer = |name: &str| {
        let directory = place.join(name);
        fs::create_dir(&directory).map(|()| format!("{name}dir={}", directory.display()))
    };
    let layers: Result<Vec<_>, _> = ["lower", "upper", "work"].into_iter().map(layer).collect();
    let options = layers.map_err(|error| error.to_string())?.join(",");
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    mount("overlay", place, "overlay", MountFlags::empty(), options.as_c_str()).map_err(said)
}

fn started(test: &str) -> Option<Instance> {
    let (true, Some(archive)) = (rustix::process::geteuid().is_root(), archive()) else {
        skipped(test, "needs root and busybox-static");
        return None;
    };
    let instance = Instance::not_started();
    if let Err(why) = overlay(&instance.data_dir()) {
        skipped(test, &format!("no overlay for a data directory: {why}"));
        return None;
    }
    if atoll_runtime::container_host::id_mapping(&instance.data_dir()).is_ok() {
        skipped(test, "this kernel id-maps overlays too");
        return None;
    }
    instance.up();
    if !instance.available_classes().iter().any(|class| class == "container") {
        skipped(test, "the class is not available here");
        return None;
    }
    import(&instance, archive);
    Some(instance)
}

/// What a shell in the sandbox says.
#[track_caller]
fn says(instance: &Instance, script: &str) -> String {
    instance.atoll(["exec", "main", "--", "sh", "-c", script]).succeeded()
}

/// A disk of this host, as `major minor`.
fn host_disk() -> Option<String> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    disks
        .filter_map(|disk| fs::read_to_string(disk.path().join("dev")).ok())
        .map(|numbers| numbers.trim().replace(':', " "))
        .next()
}

#[test]
fn without_id_mapped_mounts_sandboxes_run_with_the_hosts_ids_and_without_its_powers() {
    let Some(instance) = started("container/no_id_mapping") else { return };
    let nodes = instance.atoll(["get", "nodes", "-o", "json"]).json();
    let classes = nodes["items"][0]["classes"].as_array().unwrap().clone();
    let class = classes.iter().find(|class| class["name"] == "container").unwrap();
    let detail = class["detail"].as_str().unwrap();
    assert!(detail.contains("no user namespace"), "what is missing is told: {detail}");
    assert!(instance.server_log().contains("has no id-mapped mounts"), "and why");

    let text = format!(
        "kind: Sandbox\nid: main\nspec:\n  class: container\n  volumes:\n    - {{name: shared, ephemeral_storage: 8Mi}}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n      volume_mounts:\n        - {{name: shared, mount_path: /shared}}\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    assert_eq!(says(&instance, "tr -s ' ' </proc/self/uid_map").trim(), "0 0 4294967295");

    // Owners are what they are in a sandbox with ids of its own.
    let owners = "stat -c %u:%g /bin/busybox; cd $0; touch a; chown 123:45 a; chmod 4755 a; stat -c '%u:%g %a' a";
    for place in ["/tmp", "/shared", "/root"] {
        let owners = owners.replace("$0", place);
        assert_eq!(says(&instance, &owners), "0:0\n123:45 4755\n", "{place}");
    }
    let nobody = ["exec", "main", "--", "su", "nobody", "-s", "/bin/sh", "-c"];
    let as_nobody = |script| instance.atoll(nobody.into_iter().chain([script]));
    let own = as_nobody("cd /tmp && touch mine && stat -c %U mine && rm -f a; ls a");
    assert_eq!(own.succeeded(), "nobody\na\n", "its own it may, another's it may not");

    // So they are in a named volume.
    instance.atoll(["create", "volume", "data", "--size", "16Mi"]).succeeded();
    let with_volume = |script| {
        let run = ["run", "--class", "container", "-v", "data:/data", IMAGE, "--", "sh", "-c"];
        instance.atoll(run.into_iter().chain([script])).succeeded()
    };
    assert_eq!(with_volume("touch /data/a; chown 123:45 /data/a; echo made"), "made\n");
    assert_eq!(with_volume("stat -c %u:%g /data /data/a"), "0:0\n123:45\n");

    harmless(&instance);

    // The next server finds it again, with the same ids.
    instance.kill_server();
    instance.up();
    assert_eq!(says(&instance, "stat -c %u:%g /tmp/a"), "123:45\n");
    instance.atoll(["delete", "sandbox/main"]).succeeded();
    instance.has_no_sandboxes();
    instance.end();
}

/// Root inside has the host's id here: everything that the id alone would open is shut by something else.
fn harmless(instance: &Instance) {
    let capabilities = says(instance, "grep CapEff /proc/self/status | cut -f2");
    let expected = format!("{:016x}\n", CapabilitySet::container_default().mask());
    assert_eq!(capabilities, expected, "not more than anywhere");
    // Each would do nothing, or what is so already, if it were not refused.
    let refused = [
        "mount -t tmpfs tmpfs /tmp",
        "unshare -m true",
        "nsenter -t 1 -m true",
        "v=$(cat /proc/sys/kernel/core_pattern) && echo \"$v\" >/proc/sys/kernel/core_pattern",
        "echo h >/proc/sysrq-trigger",
        "chmod 755 /sys/kernel",
        "head -c 4 /proc/kcore | grep ELF",
        "hostname $(hostname)",
    ];
    for script in refused {
        let ran = instance.atoll(["exec", "main", "--", "sh", "-c", script]);
        assert!(ran.code.is_some_and(|code| code != 0 && code < 126), "{script}: {ran:?}");
    }
    if let Some(numbers) = host_disk() {
        let read = format!("mknod /tmp/disk b {numbers} && dd if=/tmp/disk of=/dev/null count=1");
        let ran = instance.atoll(["exec", "main", "--", "sh", "-c", &read]);
        assert_ne!(ran.code, Some(0), "a disk of the host: {ran:?}");
    }
    let seen = says(instance, "ls -d /proc/[0-9]* | wc -l");
    assert!(seen.trim().parse::<usize>().unwrap() < 10, "its own processes alone: {seen}");
}
