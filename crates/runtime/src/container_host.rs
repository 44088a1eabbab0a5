//! What this host offers class `container`, and what is missing: found by trying, told in words that say what to do.
//!
//! Owns one [`HostReport`]. Changes nothing on the host that outlives the call, installs nothing.

use std::fs;
use std::path::Path;

use atoll_model::causes::with_causes;
use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_sys::id_map::try_id_map;
use atoll_sys::network_namespace;

use crate::disk::{self, DiskChoice};

/// Kernel versions: the oldest that works at all (mount_setattr, close_range, openat2, clone3 into a group), and the oldest with
/// overlays over id-mapped layers. SOURCE: mount_setattr(2); Linux 5.19 release notes, overlayfs.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
const OLDEST_ID_MAPPED_OVERLAY: (u32, u32) = (5, 19);
/// Any id would do for a try; this one is nobody's.
const PROBE_ID: u32 = 0x7000_0000;

/// How one need is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFinding {
    /// Met; how.
    Works(String),
    /// Not met; sandboxes run all the same, with less. What is missing, what follows and what to do.
    Weaker(String),
    /// Not met; class `container` is not there. What is missing and what to do.
    Missing(String),
}

/// One need of class `container`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCheck {
    /// A word or two.
    pub name: &'static str,
    /// What was found.
    pub finding: HostFinding,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// In the order in which a person would look.
    pub checks: Vec<HostCheck>,
}

impl HostReport {
    /// How class `container` isolates here, for people; or everything that is missing.
    ///
    /// # Errors
    /// What is missing and what to do, joined by semicolons.
    pub fn container(&self) -> Result<String, String> {
        let missing: Vec<&str> = self.findings(|finding| match finding {
            HostFinding::Missing(text) => Some(text.as_str()),
            _ => None,
        });
        if !missing.is_empty() {
            return Err(missing.join("; "));
        }
        let works = self.findings(|finding| match finding {
            HostFinding::Works(text) => Some(text.as_str()),
            HostFinding::Weaker(_) => None,
            HostFinding::Missing(_) => None,
        });
        let weaker = self.checks.iter().filter_map(|check| match &check.finding {
            HostFinding::Weaker(_) => Some(format!("no {}", check.name)),
            _ => None,
        });
        let parts: Vec<String> = works.into_iter().map(str::to_owned).chain(weaker).collect();
        Ok(parts.join(", "))
    }

    fn findings<'a>(&'a self, pick: impl Fn(&'a HostFinding) -> Option<&'a str>) -> Vec<&'a str> {
        self.checks.iter().filter_map(|check| pick(&check.finding)).collect()
    }
}

/// Looks, and tries what can only be tried. `data_dir` must exist; takes about 30 ms and blocks.
#[must_use]
pub fn report(data_dir: &Path, disks_choice: DiskChoice) -> HostReport {
    let check = |name, finding| HostCheck { name, finding };
    let mut checks = vec![
        check("root", root()),
        check("kernel", kernel()),
        check("control groups", control_groups()),
        check("system call filter", system_call_filter()),
        check("overlay", overlay()),
        check("network namespaces", network()),
        check("disks", disks(data_dir, disks_choice)),
    ];
    checks.push(check(
        "user namespace",
        match id_mapping(data_dir) {
            Ok(()) => HostFinding::Works("user namespace with ids of its own".into()),
            Err(why) => HostFinding::Weaker(format!(
                "{why}; until then root in a sandbox is the host's root without its capabilities"
            )),
        },
    ));
    HostReport { checks }
}

/// Whether sandboxes can have a network here (egress, published ports, probes), found by trying its rules.
///
/// Gives the chains of other tools that refuse to forward, and that atoll leaves as they are.
///
/// # Errors
/// What is missing and what to do.
pub fn egress() -> Result<Vec<String>, String> {
    let found = atoll_network::probe().and_then(|()| atoll_network::closed_chains());
    let closed = found.map_err(|error| with_causes(&error))?;
    Ok(closed.iter().map(ToString::to_string).collect())
}

/// Whether layers below `data_dir` can be shown under a sandbox's own ids.
///
/// # Errors
/// What is missing and what to do.
pub fn id_mapping(data_dir: &Path) -> Result<(), String> {
    match kernel_version() {
        Some(version) if version < OLDEST_ID_MAPPED_OVERLAY => {
            let (major, minor) = OLDEST_ID_MAPPED_OVERLAY;
            return Err(format!("id-mapped layers need Linux {major}.{minor}: use a newer kernel"));
        }
        _ => {}
    }
    try_id_map(data_dir, PROBE_ID).map_err(|error| with_causes(&error))
}

fn root() -> HostFinding {
    match rustix::process::geteuid().is_root() {
        true => HostFinding::Works("root".into()),
        false => HostFinding::Missing("atoll does not run as root: start it as root".into()),
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    parse_version(rustix::system::uname().release().to_str().ok()?)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel() -> HostFinding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match kernel_version() {
        Some(version) if version < OLDEST_KERNEL => HostFinding::Missing(format!(
            "Linux {release} is too old: use {}.{} or later",
            OLDEST_KERNEL.0, OLDEST_KERNEL.1
        )),
        _ => HostFinding::Works(format!("Linux {release}")),
    }
}

fn control_groups() -> HostFinding {
    let layout = match CgroupLayout::detect() {
        Ok(layout) => layout,
        Err(error) => return HostFinding::Missing(with_causes(&error)),
    };
    if !layout.missing().is_empty() {
        return HostFinding::Missing(format!(
            "no control group controllers for {}: mount cgroup2 at /sys/fs/cgroup, or enable them on the kernel's command line",
            layout.missing().join(", ")
        ));
    }
    let probe = format!("probe-{}", std::process::id());
    match CgroupRoot::open(&layout, &probe).and_then(|root| root.remove()) {
        Ok(()) => HostFinding::Works(format!("cgroup {}", layout.name())),
        Err(error) => HostFinding::Missing(format!(
            "control groups cannot be made: {}; under systemd use the unit that comes with atoll (Delegate=yes)",
            with_causes(&error)
        )),
    }
}

fn system_call_filter() -> HostFinding {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    match fs::read_to_string(path) {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => {
            HostFinding::Works("seccomp".into())
        }
        _ => HostFinding::Missing(
            "the kernel has no system call filters: use one built with CONFIG_SECCOMP_FILTER"
                .into(),
        ),
    }
}

fn overlay() -> HostFinding {
    let listed = fs::read_to_string("/proc/filesystems").is_ok_and(|text| {
        text.lines().any(|line| line.split_whitespace().last() == Some("overlay"))
    });
    match listed || Path::new("/sys/module/overlay").exists() {
        true => HostFinding::Works("overlayfs".into()),
        false => HostFinding::Missing("overlayfs is not loaded: modprobe overlay".into()),
    }
}

fn network() -> HostFinding {
    // A thread of its own, which ends in the namespace it makes.
    match std::thread::spawn(network_namespace::prepare).join() {
        Ok(Ok(_)) => HostFinding::Works("network namespaces".into()),
        Ok(Err(error)) => HostFinding::Missing(with_causes(&error)),
        Err(_) => HostFinding::Missing("making a network namespace broke off".into()),
    }
}

fn disks(data_dir: &Path, choice: DiskChoice) -> HostFinding {
    match disk::choose(data_dir, choice) {
        Ok(chosen) => HostFinding::Works(chosen.detail),
        Err(why) => HostFinding::Missing(format!("sandboxes' disks cannot be bounded: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_whole_and_what_is_weaker_in_the_detail() {
        let check = |name, finding| HostCheck { name, finding };
        let mut report = HostReport {
            checks: vec![
                check("root", HostFinding::Works("root".into())),
                check("user namespace", HostFinding::Weaker("old kernel".into())),
            ],
        };
        assert_eq!(report.container(), Ok("root, no user namespace".into()));
        for text in ["buy a disk", "load overlay"] {
            report.checks.push(check("x", HostFinding::Missing(text.into())));
        }
        assert_eq!(report.container(), Err("buy a disk; load overlay".into()));
    }

    #[test]
    fn kernel_versions_are_read_whatever_follows() {
        assert_eq!(parse_version("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_version("5.19-rc1+"), Some((5, 19)));
        assert_eq!(parse_version("odd"), None);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let report = report(directory.path(), DiskChoice::Auto);
        assert_eq!(report.checks.len(), 8);
        let root = matches!(&report.checks[0].finding, HostFinding::Works(_));
        assert_eq!(root, rustix::process::geteuid().is_root());
        let names = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(names).collect();
        assert!(
            left.iter().all(|name| name.to_string_lossy().starts_with("template-")),
            "{left:?}"
        );
    }
}
