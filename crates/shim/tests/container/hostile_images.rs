//! Images made to lead the engine out of the container: symbolic links where something will be mounted or written, and files that
//! pose as the kernel's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use atoll_wire::shim::{TmpfsPlan, VolumeMountPlan, VolumePlan};

use super::harness::{Prepared, can_run};

fn tmpfs(path: &str) -> TmpfsPlan {
    TmpfsPlan {
        path: path.into(),
        size_bytes: 1 << 20,
        mode: 0o1777,
        read_only: false,
        no_exec: false,
    }
}

fn with_volume(prepared: &mut Prepared, path: &str) {
    prepared.launch.plan.volumes.push(VolumePlan {
        name: "shared".into(),
        size_bytes: 1 << 20,
        ..VolumePlan::default()
    });
    prepared.main().volume_mounts.push(VolumeMountPlan {
        volume: "shared".into(),
        path: path.into(),
        read_only: false,
    });
}

/// A directory of the host that no container may touch, and what leads there from inside if links were followed on the host.
fn bait(prepared: &Prepared) -> (std::path::PathBuf, String) {
    let bait = prepared.directory.path().join("bait");
    fs::create_dir(&bait).unwrap();
    fs::write(bait.join("hosts"), "of the host\n").unwrap();
    let climb = format!("../../../../../../..{}", bait.display());
    (bait, climb)
}

fn assert_untouched(bait: &Path) {
    let names: Vec<_> =
        fs::read_dir(bait).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["hosts"]);
    assert_eq!(fs::read_to_string(bait.join("hosts")).unwrap(), "of the host\n");
}

#[test]
fn cve_2025_52881_links_in_place_of_the_kernels_directories_are_refused() {
    if !can_run("cve-2025-52881") {
        return;
    }
    for place in ["proc", "dev", "sys"] {
        for target in ["/", "/tmp", "..", "/proc/self", "missing"] {
            let prepared = Prepared::new("true");
            symlink(target, prepared.layer().join(place)).unwrap();
            let reason = prepared.refusal();
            assert!(reason.contains("symbolic link"), "{place} -> {target}: {reason}");
        }
        let prepared = Prepared::new("true");
        fs::write(prepared.layer().join(place), "a file").unwrap();
        assert!(prepared.refusal().contains("something else than a directory"));
    }
}

#[test]
fn cve_2025_52881_nothing_of_a_plan_is_mounted_into_kernel_file_systems() {
    if !can_run("cve-2025-52881-mounts") {
        return;
    }
    for path in [
        "/proc/sys",
        "/proc/1",
        "/sys/fs/cgroup",
        "/sys/kernel",
        "/dev/pts",
        "/link",
        "/link/kernel",
    ] {
        for volume in [false, true] {
            let mut prepared = Prepared::new("true");
            symlink("/proc/sys", prepared.layer().join("link")).unwrap();
            if volume {
                with_volume(&mut prepared, path);
            } else {
                prepared.main().tmpfs.push(tmpfs(path));
            }
            let reason = prepared.refusal();
            assert!(reason.contains("file system of the kernel"), "{path}: {reason}");
        }
    }
    // A magic link is followed for nobody.
    let mut prepared = Prepared::new("true");
    symlink("/proc/self/root", prepared.layer().join("link")).unwrap();
    prepared.main().tmpfs.push(tmpfs("/link/inside"));
    assert!(prepared.refusal().contains("/link/inside"));
}

#[test]
fn cve_2025_31133_masks_are_the_engines_own_and_not_the_images_dev_null() {
    if !can_run("cve-2025-31133") {
        return;
    }
    let prepared = Prepared::new(
        "grep -e ' /proc/[a-z]* ' -e ' /dev ' /proc/self/mountinfo; cat /proc/keys /proc/timer_list; ls -l /dev/null",
    );
    let layer = prepared.layer();
    fs::create_dir(layer.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", layer.join("dev/null")).unwrap();
    let output = prepared.run().output;
    assert!(output.contains("1,   3 "), "{output}");
    for line in output.lines().filter(|line| line.contains(" /nothing ")) {
        assert!(line.contains(" ro,nosuid,nodev,noexec") && line.contains("- tmpfs"), "{line}");
    }
    assert!(
        output.contains(" /nothing /proc/keys ") || !Path::new("/proc/keys").exists(),
        "{output}"
    );
    assert_eq!(output.lines().filter(|line| line.contains("/dev ")).count(), 1, "{output}");
}

#[test]
fn cve_2025_52565_terminals_are_the_containers_own_and_no_console_is_bound() {
    if !can_run("cve-2025-52565") {
        return;
    }
    let prepared = Prepared::new(
        "ls /dev/pts; ls /dev/console 2>&1; stat -f -c %t /dev/pts; grep -c /dev/console /proc/self/mountinfo",
    );
    let layer = prepared.layer();
    fs::create_dir(layer.join("dev")).unwrap();
    symlink("/proc/sys/kernel", layer.join("dev/pts")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", layer.join("dev/console")).unwrap();
    let output = prepared.run().output;
    assert!(output.contains("/dev/console: No such file"), "{output}");
    // devpts. SOURCE: DEVPTS_SUPER_MAGIC in include/uapi/linux/magic.h.
    assert!(output.starts_with("ptmx\n") && output.contains("\n1cd1\n"), "{output}");
    assert!(output.ends_with("0\n"), "{output}");
}

#[test]
fn links_at_names_files_are_replaced_and_never_followed() {
    if !can_run("names-files") {
        return;
    }
    let prepared =
        Prepared::new("cat /etc/hosts /etc/hostname; ls -l /etc/hosts /etc/resolv.conf; hostname");
    let (bait, climb) = bait(&prepared);
    let etc = prepared.layer().join("etc");
    symlink(format!("{climb}/hosts"), etc.join("hosts")).unwrap();
    symlink("/proc/sys/kernel/hostname", etc.join("hostname")).unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    let output = prepared.run_keeping(|_| assert_untouched(&bait)).output;
    assert!(output.contains("127.0.0.1\tlocalhost"), "{output}");
    assert!(output.ends_with("island\n") && output.matches("island").count() == 3, "{output}");
    assert!(!output.contains("->"), "they are files: {output}");
}

#[test]
fn an_etc_that_leads_out_stays_inside() {
    if !can_run("etc-link") {
        return;
    }
    let prepared = Prepared::new("cat /etc/hosts");
    let (bait, climb) = bait(&prepared);
    let etc = prepared.layer().join("etc");
    fs::remove_dir_all(&etc).unwrap();
    symlink(&climb, &etc).unwrap();
    // Inside, the link leads to a directory that is not there: a refusal, and nothing on the host.
    let reason = prepared.refusal_keeping(|_| assert_untouched(&bait));
    assert!(reason.contains("/etc"), "{reason}");
}

#[test]
fn links_at_mount_targets_lead_to_places_inside_only() {
    if !can_run("mount-targets") {
        return;
    }
    for volume in [false, true] {
        let mut prepared =
            Prepared::new("touch /data/x; ls -d /real/x; grep -c ' /real ' /proc/self/mountinfo");
        symlink("../../../../real", prepared.layer().join("data")).unwrap();
        fs::create_dir(prepared.layer().join("real")).unwrap();
        if volume {
            with_volume(&mut prepared, "/data");
        } else {
            prepared.main().tmpfs.push(tmpfs("/data"));
        }
        assert_eq!(prepared.run().output, "/real/x\n1\n");

        let mut prepared = Prepared::new("touch /data/x");
        let (bait, climb) = bait(&prepared);
        symlink(&climb, prepared.layer().join("data")).unwrap();
        if volume {
            with_volume(&mut prepared, "/data/sub");
        } else {
            prepared.main().tmpfs.push(tmpfs("/data/sub"));
        }
        prepared.refusal_keeping(|_| assert_untouched(&bait));
    }
    // /tmp of a read-only root.
    let mut prepared = Prepared::new("touch /tmp/x && ls /other");
    fs::remove_dir(prepared.layer().join("tmp")).unwrap();
    symlink("/../../other", prepared.layer().join("tmp")).unwrap();
    fs::create_dir(prepared.layer().join("other")).unwrap();
    prepared.main().read_only_root = true;
    assert_eq!(prepared.run().output, "x\n");
}

#[test]
fn the_old_root_and_the_host_cannot_be_reached() {
    if !can_run("host-root") {
        return;
    }
    let script =
        "ls -d /../../../../host-marker /proc/1/root/host-marker /proc/1/cwd/host-marker 2>&1
        cat /proc/self/mountinfo; ls /proc/self/root/..";
    let prepared = Prepared::new(script);
    let host = prepared.directory.path().display().to_string();
    let output = prepared.run().output;
    assert_eq!(output.matches("No such file").count(), 3, "{output}");
    assert!(!output.contains(&host), "no path of the host is shown: {output}");
    assert!(!output.contains("ext4"), "no mount of the host is left: {output}");
    assert!(output.contains("root\n"), "{output}");
}

#[test]
fn an_image_that_holds_one_program_and_nothing_else_runs() {
    if !can_run("bare-image") {
        return;
    }
    let mut prepared = Prepared::new("unused");
    let bare = prepared.directory.path().join("bare");
    fs::create_dir(&bare).unwrap();
    fs::copy(prepared.layer().join("bin/probe"), bare.join("probe")).unwrap();
    prepared.main().layers = vec![bare];
    prepared.main().process.args = ["/probe", "fds"].map(String::from).into();
    assert_eq!(prepared.run().output, "fd 0\nfd 1\nfd 2\n");
}

#[test]
fn the_upper_of_many_layers_hides_the_lower_and_removed_files_stay_removed() {
    if !can_run("layers") {
        return;
    }
    let mut prepared = Prepared::new("cat /which; ls /gone /kept; ls /opaque");
    let mut layers = Vec::new();
    for number in 0..40 {
        let layer = prepared.directory.path().join(format!("layer-{number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("which"), format!("layer {number}\n")).unwrap();
        layers.push(layer);
    }
    fs::write(layers[39].join("gone"), "").unwrap();
    fs::write(layers[39].join("kept"), "").unwrap();
    fs::create_dir(layers[39].join("opaque")).unwrap();
    fs::write(layers[39].join("opaque/hidden"), "").unwrap();
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        layers[5].join("gone"),
        whiteout,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    fs::create_dir(layers[5].join("opaque")).unwrap();
    fs::write(layers[5].join("opaque/shown"), "").unwrap();
    rustix::fs::setxattr(
        layers[5].join("opaque"),
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    layers.push(prepared.layer());
    prepared.main().layers = layers;
    let output = prepared.run().output;
    assert!(output.starts_with("layer 0\n/kept\nshown\n"), "{output}");
    assert!(output.contains("/gone: No such file"), "{output}");
}
