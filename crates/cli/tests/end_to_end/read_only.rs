//! What is read-only stays so for root inside, whatever it mounts: the file systems are read-only where root inside has no say.

use std::fs::OpenOptions;
use std::io::ErrorKind;

use crate::support::{IMAGE, Instance, in_each_class, processes_of};

/// Tries everything that makes a read-only mount writable where it can be done from inside, and writes after each of them. `$1`: who tries.
/// Says what was allowed.
const ATTACK: &str = r#"
view=/tmp/view-$1
mkdir -p $view
write() {
  echo evil >> $1/victim; echo evil > $1/evil; mkdir $1/evil-directory; ln $1/victim $1/evil-link
  mv $1/victim $1/evil; rm -f $1/victim
}
for place in / /etc /shared /sealed; do
  for options in remount,rw remount,bind,rw remount,rw,noatime; do
    mount -o $options $place && echo "$1: $options $place"
    mount -o $options none $place && echo "$1: $options none at $place"
    write $place
  done
  mount -o bind $place $view && {
    mount -o remount,bind,rw $view && echo "$1: remount a bind of $place"
    write $view
    umount $view
  }
done 2>/dev/null
true
"#;

/// Changes what describes a file, not what it holds.
const DESCRIBE: &str = "for place in / /etc /etc/passwd /sealed /shared /shared/victim; do
  chmod 777 $place; chown 1:1 $place; touch -d '2001-01-01 00:00:00' $place
done 2>/dev/null; true";

fn create(instance: &Instance, class: &str) {
    let text = format!(
        r"
kind: Sandbox
id: sealed
spec:
  class: {class}
  volumes: [{{name: shared, ephemeral_storage: 1Mi}}]
  containers:
    - name: owner
      image: {IMAGE}
      args: [sh, -c, 'echo original > /shared/victim; sleep 1000']
      volume_mounts: [{{name: shared, mount_path: /shared}}]
    - name: reader
      image: {IMAGE}
      args: [sleep, '1000']
      read_only: true
      tmpfs: [{{mount_path: /sealed, options: ro}}]
      volume_mounts: [{{name: shared, mount_path: /shared, read_only: true}}]
"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
}

fn inside(instance: &Instance, container: &str, script: &str) -> String {
    instance.atoll(["exec", "-c", container, "sealed", "--", "sh", "-c", script]).succeeded()
}

/// Attacks as root, then as root of a user namespace and of a mount namespace of its own, where these can be had.
fn attack(instance: &Instance) -> String {
    let script = format!(
        "cat > /tmp/attack <<'EOF'\n{ATTACK}\nEOF\nsh /tmp/attack plain
         unshare -Urm sh /tmp/attack user-namespace 2>/dev/null; unshare -m sh /tmp/attack mount-namespace 2>/dev/null; true"
    );
    inside(instance, "reader", &script)
}

/// Names and contents in the places that the reader must not change; the volume as its owner sees it.
fn contents(instance: &Instance) -> [String; 2] {
    let own = inside(instance, "reader", "ls -A / /etc /sealed; cat /etc/passwd");
    [own, inside(instance, "owner", "ls -A /shared; cat /shared/victim")]
}

/// Modes, owners and times there: of the root, and of what is in memory.
fn descriptions(instance: &Instance) -> [String; 2] {
    let root = inside(instance, "reader", "stat -c '%n %a %u %g %y' / /etc /etc/passwd");
    let own = inside(instance, "reader", "stat -c '%n %a %u %g %y' /sealed");
    let volume = inside(instance, "owner", "stat -c '%n %a %u %g %y' /shared /shared/victim");
    [root, own + &volume]
}

/// What processes of the host have of the reader's files, where the host itself must keep them: paths through these processes' roots.
fn on_the_host(instance: &Instance, class: &str) -> Vec<String> {
    let read = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut found = Vec::new();
    for pid in processes_of(&instance.data_dir()) {
        let command = read(pid, "cmdline");
        let places: &[&str] = match class {
            "container" if read(pid, "mountinfo").contains(" /sealed ") => {
                &["/evil", "/etc/passwd", "/shared/victim", "/shared/evil", "/sealed/evil"]
            }
            "gvisor" if command.contains("\0gofer\0") && command.contains("container.reader") => {
                &["/evil", "/etc/passwd", "/dev/.atoll-guest"]
            }
            _ => &[],
        };
        found.extend(places.iter().map(|place| format!("/proc/{pid}/root{place}")));
    }
    found
}

/// BoxLite's CVE-2026-46695: a guest remounted what only the guest itself had called read-only.
#[test]
fn what_is_read_only_stays_so_whatever_root_inside_mounts() {
    in_each_class("read_only_places", |instance, class| {
        create(instance, class);
        let (kept, described) = (contents(instance), descriptions(instance));
        assert!(kept[1].ends_with("original\n"), "{kept:?}");
        let allowed = attack(instance);
        assert_eq!(contents(instance), kept, "it was allowed {allowed:?}");
        inside(instance, "reader", DESCRIBE);
        let now = descriptions(instance);
        assert_eq!(now[0], described[0]);
        // What is in memory: the conformance suite's `read_only_volume_as_it_was` declares that class gvisor cannot.
        if class == "container" {
            assert_eq!(now[1], described[1]);
        }
        let paths = on_the_host(instance, class);
        assert!(!paths.is_empty(), "some process of the host has the files");
        for path in paths {
            // Even root of the host writes nothing through the mounts that the sandbox has.
            let create = path.ends_with("/evil");
            let error = OpenOptions::new().write(true).create(create).truncate(false).open(&path);
            let error = error.expect_err(&path);
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{path}: {error}");
        }
        instance.atoll(["delete", "sandbox/sealed"]).succeeded();
    });
}
