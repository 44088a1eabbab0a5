//! Which class does not run which case, and why: declared here and nowhere else. Each reason begins
//! with `declared: `: `scripts/summarize-tests.py` takes every other skip of a required class for a failure.

use atoll_runtime::RuntimeClass;

const SIM_HAS_NO_LIMITS: &str = "declared: class sim models processes, not limits";
const SIM_HAS_NO_FILES: &str = "declared: class sim has no file systems, users or networks";
const SIM_HAS_NO_SHIM: &str = "declared: class sim has no shim, spawner or guest of its own";

/// Why a class does not run a case.
pub(crate) fn skipped(class: RuntimeClass, case: &str) -> Option<&'static str> {
    match (class, case) {
        (RuntimeClass::Sim, case) => skipped_by_sim(case),
        (RuntimeClass::Container, "sentry_killed") => {
            Some("declared: class container has no Sentry")
        }
        (RuntimeClass::Gvisor, "guest_killed") => Some(
            "declared: the guest is no process of the host; its death is that of its container",
        ),
        (RuntimeClass::Gvisor, "read_only_volume_as_it_was") => Some(
            "declared: runsc's file systems in memory are described anew, and their files cut, through read-only mounts (releases of 2024)",
        ),
        _ => None,
    }
}

fn skipped_by_sim(case: &str) -> Option<&'static str> {
    match case {
        "memory_limit" | "cpu_limit" | "pids_limit" | "disk_limit" | "disk_usage"
        | "inode_limit" | "sparse_file" | "zombies" | "shm_limit" | "log_limit" => {
            Some(SIM_HAS_NO_LIMITS)
        }
        "containers_share"
        | "read_only_root"
        | "users"
        | "tmpfs"
        | "shared_volume"
        | "read_only_volume_as_it_was"
        | "exec_terminal"
        | "transfers"
        | "slow_reader" => Some(SIM_HAS_NO_FILES),
        "spawner_killed" | "sentry_killed" | "host_started_anew" | "guest_silent" => {
            Some(SIM_HAS_NO_SHIM)
        }
        _ => None,
    }
}
