//! Which control group hierarchies this host has, read from text and never assumed.
//!
//! Owns the decision "which controller lives in which version"; touches nothing but the two kinds of file it reads.
//! Each controller is decided by itself, so pure v2, pure v1 and every hybrid in between come out of one rule: a controller
//! mounted as v1 is used there; else it is used in v2 when v2's root lists it; else it is missing.

use std::fs;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The interface a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// cgroup v1: one hierarchy for each mounted controller.
    V1,
    /// cgroup v2: the unified hierarchy.
    V2,
}

/// Where a controller can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The interface.
    pub version: Version,
    /// The mount point.
    pub mount_point: PathBuf,
}

/// The host's hierarchies, as far as atoll uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupLayout {
    /// The memory controller.
    pub memory: Option<Hierarchy>,
    /// The CPU controller (quota and weight).
    pub cpu: Option<Hierarchy>,
    /// The process-count controller.
    pub pids: Option<Hierarchy>,
    /// The v1 freezer; unused where there is a v2 mount, whose own freeze and kill are better.
    pub freezer: Option<Hierarchy>,
    /// The v2 mount, even one without controllers: it gives CLONE_INTO_CGROUP, `cgroup.kill`, `cgroup.freeze`,
    /// "is it empty" events and CPU usage.
    pub unified: Option<Hierarchy>,
}

impl CgroupLayout {
    /// Reads `/proc/self/mountinfo` and the v2 root's `cgroup.controllers`.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo =
            fs::read_to_string(path).map_err(|source| CgroupError::io("read", path, source))?;
        Ok(Self::from_text(&mountinfo, |v2_mount| {
            fs::read_to_string(v2_mount.join("cgroup.controllers")).unwrap_or_default()
        }))
    }

    /// The pure part of [`detect`](Self::detect): `mountinfo` as in proc_pid_mountinfo(5), `v2_controllers` gives the text
    /// of `cgroup.controllers` at a v2 mount point.
    pub fn from_text(mountinfo: &str, v2_controllers: impl Fn(&Path) -> String) -> Self {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let unified = pick(&mounts, |mount| mount.fs_type == "cgroup2")
            .map(|mount_point| Hierarchy { version: Version::V2, mount_point });
        let in_v2 = unified.as_ref().map(|v2| v2_controllers(&v2.mount_point)).unwrap_or_default();
        let v1 = |controller: &str| {
            pick(&mounts, |mount| {
                mount.fs_type == "cgroup"
                    && mount.super_options.split(',').any(|option| option == controller)
            })
            .map(|mount_point| Hierarchy { version: Version::V1, mount_point })
        };
        let either = |controller: &str| {
            let listed = in_v2.split_ascii_whitespace().any(|name| name == controller);
            v1(controller).or_else(|| unified.clone().filter(|_| listed))
        };
        Self {
            memory: either("memory"),
            cpu: either("cpu"),
            pids: either("pids"),
            freezer: v1("freezer"),
            unified,
        }
    }

    /// What limits need and the host does not have; empty when sandboxes can be limited.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        for (controller, name) in
            [(&self.memory, "memory"), (&self.cpu, "cpu"), (&self.pids, "pids")]
        {
            if controller.is_none() {
                missing.push(name);
            }
        }
        if self.unified.is_none() && self.freezer.is_none() {
            missing.push("freezer");
        }
        missing
    }

    /// A word for `doctor` and the node's status: `v2`, `v1` or `hybrid`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let controllers = [&self.memory, &self.cpu, &self.pids];
        let any_v1 = controllers.into_iter().flatten().any(|one| one.version == Version::V1);
        match (any_v1, self.unified.is_some()) {
            (false, _) => "v2",
            (true, true) => "hybrid",
            (true, false) => "v1",
        }
    }
}

/// One line of mountinfo, as far as it matters here.
struct Mount {
    root: String,
    mount_point: PathBuf,
    fs_type: String,
    super_options: String,
}

impl Mount {
    /// SOURCE: proc_pid_mountinfo(5): `id parent dev root point options optional... - type source super`.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let root = left.nth(3)?;
        let mount_point = left.next()?;
        let mut right = right.split(' ');
        let fs_type = right.next()?;
        let super_options = right.nth(1)?;
        Some(Self {
            root: root.to_owned(),
            mount_point: PathBuf::from(unescape(mount_point)),
            fs_type: fs_type.to_owned(),
            super_options: super_options.to_owned(),
        })
    }
}

/// The mount that shows the whole hierarchy, else the first that matches (a bind mount of a part).
fn pick(mounts: &[Mount], matches: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    let mut matching = mounts.iter().filter(|mount| matches(mount));
    let first = matching.clone().next()?;
    let whole = matching.find(|mount| mount.root == "/");
    Some(whole.unwrap_or(first).mount_point.clone())
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE_V2: &str = "\
25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const HYBRID_WITHOUT_V2_CONTROLLERS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V1_COMOUNTED: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:5 master:2 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";

    fn v1(path: &str) -> Option<Hierarchy> {
        Some(Hierarchy { version: Version::V1, mount_point: path.into() })
    }

    fn v2(path: &str) -> Option<Hierarchy> {
        Some(Hierarchy { version: Version::V2, mount_point: path.into() })
    }

    #[test]
    fn pure_v2_uses_one_hierarchy_for_everything() {
        let layout = CgroupLayout::from_text(PURE_V2, |_| "cpuset cpu io memory pids\n".into());
        assert_eq!(layout.memory, v2("/sys/fs/cgroup"));
        assert_eq!(layout.cpu, layout.memory);
        assert_eq!(layout.pids, layout.memory);
        assert_eq!(layout.unified, layout.memory);
        assert_eq!(layout.name(), "v2");
        assert!(layout.missing().is_empty());
    }

    #[test]
    fn hybrid_takes_controllers_from_v1_and_the_empty_v2_mount_for_killing() {
        let layout = CgroupLayout::from_text(HYBRID_WITHOUT_V2_CONTROLLERS, |_| "\n".into());
        assert_eq!(layout.memory, v1("/sys/fs/cgroup/memory"));
        assert_eq!(layout.cpu, v1("/sys/fs/cgroup/cpu"), "cpuacct alone is not cpu");
        assert_eq!(layout.unified, v2("/sys/fs/cgroup/unified"));
        assert_eq!(layout.name(), "hybrid");
        assert!(layout.missing().is_empty());
    }

    #[test]
    fn each_controller_is_decided_by_itself() {
        let without_v1_pids = HYBRID_WITHOUT_V2_CONTROLLERS.replace("rw,pids", "rw,net_cls");
        let layout = CgroupLayout::from_text(&without_v1_pids, |_| "pids".into());
        assert_eq!(layout.pids, v2("/sys/fs/cgroup/unified"));
        assert_eq!(layout.memory, v1("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn v1_with_comounted_controllers() {
        let layout = CgroupLayout::from_text(V1_COMOUNTED, |_| unreachable!("no v2 mount"));
        assert_eq!(layout.cpu, v1("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.unified, None);
        assert_eq!(layout.name(), "v1");
        assert!(layout.missing().is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        let layout = CgroupLayout::from_text(PURE_V2, |_| "cpu".into());
        assert_eq!(layout.missing(), ["memory", "pids"]);
        let nothing = CgroupLayout::from_text("garbage\n1 2 3 - x\n", |_| String::new());
        assert_eq!(nothing.missing(), ["memory", "cpu", "pids", "freezer"]);
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_wins_and_escapes_are_undone() {
        let text = "\
40 1 0:26 /some/part /elsewhere rw - cgroup2 cgroup2 rw
41 1 0:26 / /mnt/with\\040space rw - cgroup2 cgroup2 rw
";
        let layout = CgroupLayout::from_text(text, |_| String::new());
        assert_eq!(layout.unified, v2("/mnt/with space"));
        assert_eq!(unescape("a\\134b\\xyz\\"), "a\\b\\xyz\\");
    }
}
