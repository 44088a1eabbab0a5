//! Tests that mount: each runs again in a process with mounts of its own, which end with it.

use std::path::Path;
use std::process::Command;

const MARK: &str = "ATOLL_TEST_OWN_MOUNTS";

/// `true` in the process that has mounts of its own. Else runs the test in one, and gives `false` when it passed.
pub fn has_own_mounts(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its own mount namespace");
    false
}

/// A memory file system of this size.
pub fn mount_tmpfs(path: &Path, megabytes: u32) {
    mount("tmpfs", path, &format!("size={megabytes}m,mode=0700"));
}

/// The layers as overlayfs merges them, two at least.
pub fn mount_overlay(layers: &[std::path::PathBuf], path: &Path) {
    let lower: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    mount("overlay", path, &format!("lowerdir={}", lower.join(":")));
}

fn mount(kind: &str, path: &Path, options: &str) {
    std::fs::create_dir_all(path).unwrap();
    let status =
        Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(path).status().unwrap();
    assert!(status.success(), "mount -t {kind} -o {options}");
}
