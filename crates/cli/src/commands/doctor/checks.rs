//! The questions. Each looks at one thing and says what follows from it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use atoll_sys::cgroup::CgroupLayout;
use atoll_sys::disk_image::{self, DiskBackend};
use rustix::process::geteuid;

use super::{Check, Verdict};
use crate::output::human_bytes;

/// Oldest kernel that has all that is used: mount_setattr, CLONE_INTO_CGROUP, idmapped overlay layers. SOURCE: kernel 5.19's overlayfs.
const OLDEST_KERNEL: (u32, u32) = (5, 19);
/// Oldest runsc that can checkpoint network servers.
const OLDEST_RUNSC: u32 = 20_240_101;
/// Free space below which images of ordinary size do not fit. Guess.
const LOW_SPACE_BYTES: u64 = 2 << 30;

/// Asks everything.
pub(super) fn all(data_dir: &Path) -> Vec<Check> {
    let mut checks = vec![
        kernel(),
        processors_and_memory(),
        root(),
        cgroups(),
        overlay(),
        user_namespaces(),
        seccomp(),
        landlock(),
        make_ext4(),
        runsc(),
    ];
    if geteuid().is_root() {
        checks.push(disk_limits(data_dir));
    }
    checks.push(space(data_dir));
    checks
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let found = format!("{release} ({})", uname.machine().to_string_lossy());
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Check::good("kernel", found);
    }
    Check::bad(
        "kernel",
        Verdict::Missing,
        found,
        "sandboxes need system calls that this kernel lacks",
        format!("Install Linux {}.{} or newer.", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
    )
}

fn processors_and_memory() -> Check {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0);
    Check::good("processors, memory", format!("{processors}, {}", human_bytes(memory_kib * 1024)))
}

fn root() -> Check {
    if geteuid().is_root() {
        return Check::good("privileges", "root");
    }
    Check::bad(
        "privileges",
        Verdict::Missing,
        format!("user id {}", geteuid().as_raw()),
        "namespaces, cgroups and mounts need root",
        "Run `atoll up` as root. (This report is incomplete without.)",
    )
}

fn cgroups() -> Check {
    let layout = match CgroupLayout::detect() {
        Ok(layout) => layout,
        Err(error) => {
            return Check::bad(
                "cgroups",
                Verdict::Missing,
                error.to_string(),
                "limits cannot be enforced",
                "Mount cgroup2 at /sys/fs/cgroup.",
            );
        }
    };
    let missing = layout.missing();
    if missing.is_empty() {
        return Check::good("cgroups", format!("{}: memory, cpu, pids", layout.name()));
    }
    Check::bad(
        "cgroups",
        Verdict::Missing,
        format!("{} without {}", layout.name(), missing.join(", ")),
        "limits cannot be enforced",
        "Enable these controllers: boot without cgroup_disable=, and see cgroup.controllers.",
    )
}

fn overlay() -> Check {
    let known = read("/proc/filesystems").lines().any(|line| line.trim_start() == "overlay");
    if known {
        return Check::good("overlayfs", "there");
    }
    Check::bad(
        "overlayfs",
        Verdict::Missing,
        "not known to the kernel",
        "images cannot be mounted",
        "Load it: `modprobe overlay`.",
    )
}

fn user_namespaces() -> Check {
    let limit = read("/proc/sys/user/max_user_namespaces");
    if limit.parse::<u64>().is_ok_and(|limit| limit > 0) {
        return Check::good("user namespaces", "there");
    }
    Check::bad(
        "user namespaces",
        Verdict::Limited,
        if limit.is_empty() { "not in this kernel" } else { "turned off" },
        "root inside a sandbox of class container is root outside, with few capabilities",
        "Allow them: `sysctl user.max_user_namespaces=10000`.",
    )
}

fn seccomp() -> Check {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    if actions.split_whitespace().any(|action| action == "errno") {
        return Check::good("seccomp", "filters");
    }
    Check::bad(
        "seccomp",
        Verdict::Missing,
        "no filters",
        "system calls cannot be denied",
        "Use a kernel with CONFIG_SECCOMP_FILTER.",
    )
}

fn landlock() -> Check {
    let active = read("/sys/kernel/security/lsm");
    let listed = active.split(',').any(|module| module == "landlock");
    let compiled = read("/proc/kallsyms").contains("landlock_create_ruleset");
    if listed || compiled {
        return Check::good("Landlock", "there");
    }
    Check::bad(
        "Landlock",
        Verdict::Missing,
        "not active",
        "images cannot be unpacked safely",
        "Boot with `lsm=landlock,…` on the kernel's command line (Linux 5.13 or newer).",
    )
}

/// The first file of that name in PATH, or where administrators' programs lie.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn make_ext4() -> Check {
    match program("mkfs.ext4") {
        Some(path) => Check::good("mkfs.ext4", path.display().to_string()),
        None => Check::bad(
            "mkfs.ext4",
            Verdict::Missing,
            "not found",
            "disks of sandboxes cannot be limited",
            "Install the package e2fsprogs.",
        ),
    }
}

fn runsc() -> Check {
    const REMEDY: &str = "Install gVisor's runsc of 2024 or newer (Debian: package runsc from backports; else gvisor.dev).";
    const CONSEQUENCE: &str = "class gvisor cannot be had";
    let Some(path) = program("runsc") else {
        return Check::bad("runsc", Verdict::Limited, "not found", CONSEQUENCE, REMEDY);
    };
    let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let line = text.lines().next().unwrap_or("did not tell its version").to_owned();
    let found = format!("{}: {line}", path.display());
    match release_date(&text) {
        Some(date) if date >= OLDEST_RUNSC => Check::good("runsc", found),
        _ => Check::bad("runsc", Verdict::Limited, found, CONSEQUENCE, REMEDY),
    }
}

/// The date in `runsc version release-20240729.0`, as a number.
fn release_date(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|digits| digits.len() == 8 && digits.starts_with("20"))
        .find_map(|digits| digits.parse().ok())
}

/// The directory itself, or the nearest one above it that exists.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

fn disk_limits(data_dir: &Path) -> Check {
    let probe = nearest_existing(data_dir);
    let Ok(probe) = tempfile::tempdir_in(&probe) else {
        return Check::bad(
            "disk limits",
            Verdict::Missing,
            format!("{} cannot be written to", probe.display()),
            "atoll cannot keep its state there",
            "Choose another --data-dir.",
        );
    };
    match disk_image::detect(probe.path()) {
        DiskBackend::LoopExt4 => Check::good("disk limits", "ext4 images on loop devices"),
        DiskBackend::Unsupported(error) => Check::bad(
            "disk limits",
            Verdict::Missing,
            error.to_string(),
            "disks of sandboxes cannot be limited, so they are refused",
            "Load the loop driver (`modprobe loop`) and install e2fsprogs.",
        ),
    }
}

fn space(data_dir: &Path) -> Check {
    let directory = nearest_existing(data_dir);
    let Ok(stat) = rustix::fs::statvfs(&directory) else {
        return Check::bad(
            "space",
            Verdict::Limited,
            format!("{} cannot be looked at", directory.display()),
            "it is not known whether images fit",
            "Choose another --data-dir.",
        );
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} free for {}", human_bytes(free), data_dir.display());
    if free >= LOW_SPACE_BYTES {
        return Check::good("space", found);
    }
    Check::bad(
        "space",
        Verdict::Limited,
        found,
        "larger images do not fit",
        "Free some space, or choose another --data-dir.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_a_release_is_found_in_both_forms() {
        assert_eq!(release_date("runsc version release-20240729.0\nspec: 1.1.0"), Some(20_240_729));
        assert_eq!(release_date("runsc version 0.0~20221219.0"), Some(20_221_219));
        assert_eq!(release_date("runsc version unknown"), None);
    }

    #[test]
    fn a_directory_to_be_is_measured_where_it_will_lie() {
        assert_eq!(nearest_existing(Path::new("/proc/not/there")), Path::new("/proc"));
    }
}
