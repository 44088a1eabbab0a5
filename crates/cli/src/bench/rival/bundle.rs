//! The root file system and OCI configuration that rivals get: the layers of the image that atoll uses, under an overlay.

use std::path::{Path, PathBuf};

use anyhow::Context;
use atoll_wire::shim::ContainerPlan;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A root file system made of an image's layers; unmounted and removed when dropped.
pub(super) struct Root {
    directory: TempDir,
}

impl Root {
    /// Mounts the layers.
    pub(super) fn mount(plan: &ContainerPlan) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("atoll-bench-").tempdir()?;
        let below = |name: &str| directory.path().join(name);
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(below(name))?;
        }
        let layers: Vec<String> =
            plan.layers.iter().map(|layer| layer.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers.join(":"),
            below("upper").display(),
            below("work").display()
        );
        atoll_sys::mount::mount_overlay(&below("root"), &options, false)
            .with_context(|| format!("cannot mount an overlay with {options}"))?;
        Ok(Self { directory })
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A directory for what belongs to it.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Fails when it was never mounted.
        let _ = atoll_sys::mount::detach(&self.path());
    }
}

/// Where programs are looked for inside. SOURCE: docker's default.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Quota period of a CPU limit. SOURCE: the kernel's default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Capabilities of a container by default. SOURCE: runc spec.
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// An OCI configuration with atoll's own limits. SOURCE: OCI runtime specification; mounts as `runc spec` has them.
pub(super) fn configuration(
    plan: &ContainerPlan,
    root: &Path,
    command: &[String],
    cgroups_path: &str,
    network_namespace: Option<&Path>,
) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let network = match network_namespace {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": command,
            "env": [format!("PATH={PATH}")],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": root, "readonly": false },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, network,
            ],
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": plan.limits.memory_bytes },
                "pids": { "limit": plan.limits.pids },
                "cpu": {
                    "quota": plan.limits.cpu_millis * CPU_PERIOD_MICROS / 1000,
                    "period": CPU_PERIOD_MICROS,
                },
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}
