//! Control groups: what limits, counts, freezes and kills a sandbox as a whole.
//!
//! Owns the directories `<mount>/atoll/<instance>/<sandbox uid>[/<container>]` in each hierarchy that is needed (memory,
//! cpu, pids, and the v2 mount or else the v1 freezer) and nothing beside them. Never touches a group it did not name itself
//! and never takes a client's string for a name: callers pass uids.
//!
//! Cost matters: a directory costs 20-50 us and each write 5-20 us, so only needed hierarchies are used and only given
//! limits are written. Attaching goes to the killing hierarchy first: whatever is limited can also be killed.
//!
//! About memory: files that a sandbox reads or writes sit in the page cache and are charged to its group, tmpfs files too. Cache
//! of files on a disk image is reclaimable, so filling a disk never ends in an OOM kill by itself; tmpfs has no backing and
//! counts in full. Only [`Cgroup::oom_kills`] says that somebody was killed; a usage near the limit says nothing.

mod error;
mod files;
mod layout;
mod life;
mod limits;
mod stats;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use error::CgroupError;
pub use layout::{CgroupLayout, Hierarchy, Version};
pub use limits::Limits;
pub use stats::CgroupStats;

/// The directory below each mount that all instances of atoll share.
const SHARED_GROUP: &str = "atoll";
/// Begins the names of an instance's own groups, and of no sandbox's.
const OWN_PREFIX: char = '+';
/// How often making an instance's group is begun again when the shared group vanishes (guess: each takes another instance
/// that ends in the same microseconds).
const SHARED_GROUP_RACES: usize = 16;

/// One controller's directory of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    version: Version,
    dir: PathBuf,
}

impl Group {
    fn join(&self, name: &str) -> Self {
        Self { version: self.version, dir: self.dir.join(name) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a process without other threads writes "0" to enter. v1 takes a lone thread without the lock that stops all
    /// forks of the host, for which whoever moves a whole process waits for a grace period of RCU: 15 us instead of 6 ms (medians on 6.18).
    /// SOURCE: cgroup_procs_write_start in the kernel's kernel/cgroup/cgroup.c, since 5.17.
    fn own_entrance(&self) -> PathBuf {
        self.file(match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        })
    }
}

/// The directories of one group in all hierarchies; several are the same one under v2.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Groups {
    /// Kills, freezes, tells emptiness: v2, else the v1 freezer.
    core: Group,
    memory: Group,
    cpu: Group,
    pids: Group,
}

impl Groups {
    fn join(&self, name: &str) -> Self {
        Self {
            core: self.core.join(name),
            memory: self.memory.join(name),
            cpu: self.cpu.join(name),
            pids: self.pids.join(name),
        }
    }

    /// Each directory once, the core first.
    fn distinct(&self) -> Vec<&Group> {
        let mut distinct: Vec<&Group> = Vec::with_capacity(4);
        for group in [&self.core, &self.memory, &self.cpu, &self.pids] {
            if !distinct.contains(&group) {
                distinct.push(group);
            }
        }
        distinct
    }

    /// What `cgroup.subtree_control` of the v2 groups above must name: `+memory +pids`, or nothing under v1.
    fn v2_controllers(&self) -> Vec<&'static str> {
        [(&self.memory, "memory"), (&self.cpu, "cpu"), (&self.pids, "pids")]
            .into_iter()
            .filter(|(group, _)| group.version == Version::V2)
            .map(|(_, name)| name)
            .collect()
    }

    /// Makes the directories that do not exist; takes back those it made when one fails.
    fn make(&self) -> Result<(), CgroupError> {
        let mut made: Vec<&Path> = Vec::new();
        for group in self.distinct() {
            match files::make_dir(&group.dir) {
                Ok(true) => made.push(&group.dir),
                Ok(false) => {}
                Err(error) => {
                    for dir in made {
                        // The first error is the one to report; an empty new group can always be removed.
                        let _ = std::fs::remove_dir(dir);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets the children of this group have the v2 controllers; one read when they have them already.
    fn enable_for_children(&self) -> Result<(), CgroupError> {
        let wanted = self.v2_controllers();
        if wanted.is_empty() {
            return Ok(());
        }
        let path = self.core.file("cgroup.subtree_control");
        let enabled = files::read(&path)?;
        let absent: Vec<String> = wanted
            .into_iter()
            .filter(|name| !enabled.split_ascii_whitespace().any(|one| one == *name))
            .map(|name| format!("+{name}"))
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        let controllers = absent.join(" ");
        files::write(&path, &controllers).map_err(|error| {
            match error.errno() == Some(rustix::io::Errno::BUSY.raw_os_error()) {
                true => CgroupError::InnerProcesses { path: self.core.dir.clone(), controllers },
                false => error,
            }
        })
    }
}

/// The group of one atoll instance; all its sandboxes lie below it.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    shared: Groups,
    groups: Groups,
}

impl CgroupRoot {
    /// Makes (or finds) `<mount>/atoll/<instance>` in every hierarchy needed and, under v2, enables the controllers on
    /// the way down.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] when the host cannot limit memory, cpu and pids; [`CgroupError::InnerProcesses`] when a v2
    /// group on the way holds processes itself.
    pub fn open(layout: &CgroupLayout, instance: &str) -> Result<Self, CgroupError> {
        check_name(instance)?;
        let (Some(memory), Some(cpu), Some(pids), Some(core)) = (
            &layout.memory,
            &layout.cpu,
            &layout.pids,
            layout.unified.as_ref().or(layout.freezer.as_ref()),
        ) else {
            return Err(CgroupError::Missing { missing: layout.missing() });
        };
        let top = |hierarchy: &Hierarchy| Group {
            version: hierarchy.version,
            dir: hierarchy.mount_point.clone(),
        };
        let mounts =
            Groups { core: top(core), memory: top(memory), cpu: top(cpu), pids: top(pids) };
        let shared = mounts.join(SHARED_GROUP);
        let groups = shared.join(instance);
        let make = || {
            mounts.enable_for_children()?;
            shared.make()?;
            shared.enable_for_children()?;
            groups.make()?;
            groups.enable_for_children()
        };
        // Another instance that ends may take the shared, for a moment empty, group away in between.
        let mut made = make();
        for _ in 0..SHARED_GROUP_RACES {
            if !made.as_ref().is_err_and(life::gone) {
                break;
            }
            made = make();
        }
        made?;
        Ok(Self { shared, groups })
    }

    /// Makes (or finds) the group of a sandbox, or of a container below it. Processes belong in the lowest group only.
    pub fn create(&self, sandbox_uid: &str, child: Option<&str>) -> Result<Cgroup, CgroupError> {
        check_name(sandbox_uid)?;
        let sandbox = self.groups.join(sandbox_uid);
        sandbox.make()?;
        let Some(child) = child else { return Ok(Cgroup { groups: sandbox }) };
        check_name(child)?;
        sandbox.enable_for_children()?;
        let container = sandbox.join(child);
        container.make()?;
        Ok(Cgroup { groups: container })
    }

    /// Makes (or finds) a group for a program of the instance itself: no sandbox's, and gone with the instance's.
    pub fn create_own(&self, program: &str) -> Result<Cgroup, CgroupError> {
        check_name(program)?;
        let groups = self.groups.join(&format!("{OWN_PREFIX}{program}"));
        groups.make()?;
        Ok(Cgroup { groups })
    }

    /// The handle of a group that may or may not exist, for adoption and clean-up; makes nothing.
    pub fn find(&self, sandbox_uid: &str, child: Option<&str>) -> Result<Cgroup, CgroupError> {
        check_name(sandbox_uid)?;
        let mut groups = self.groups.join(sandbox_uid);
        if let Some(child) = child {
            check_name(child)?;
            groups = groups.join(child);
        }
        Ok(Cgroup { groups })
    }

    /// The sandbox uids that have a directory in any hierarchy, half-made ones too, sorted: the host's inventory.
    pub fn list(&self) -> Result<Vec<String>, CgroupError> {
        let mut uids = Vec::new();
        for group in self.groups.distinct() {
            uids.extend(files::child_groups(&group.dir)?);
        }
        uids.retain(|name| !name.starts_with(OWN_PREFIX));
        uids.sort_unstable();
        uids.dedup();
        Ok(uids)
    }

    /// Removes the instance's own groups, with what runs in them, and the shared one when no other instance is left. Fails at once when
    /// a sandbox's group is still there ([`list`](Self::list) names it).
    pub fn remove(&self) -> Result<(), CgroupError> {
        for group in self.groups.distinct() {
            for name in files::child_groups(&group.dir)? {
                if name.starts_with(OWN_PREFIX) {
                    Cgroup { groups: self.groups.join(&name) }.remove()?;
                }
            }
        }
        for group in self.groups.distinct() {
            match std::fs::remove_dir(&group.dir) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CgroupError::io("remove", &group.dir, source));
                }
                _ => {}
            }
        }
        for group in self.shared.distinct() {
            // Busy while another instance lives; that is its right.
            let _ = std::fs::remove_dir(&group.dir);
        }
        Ok(())
    }
}

/// The group of a sandbox or of one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    groups: Groups,
}

impl Cgroup {
    /// Whether the group exists in the hierarchy that kills.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.groups.core.dir.is_dir()
    }

    /// The directories of the group by controller, for showing them inside: name, version, path on this host.
    #[must_use]
    pub fn controllers(&self) -> [(&'static str, Version, &Path); 3] {
        [("memory", &self.groups.memory), ("cpu", &self.groups.cpu), ("pids", &self.groups.pids)]
            .map(|(name, group)| (name, group.version, group.dir.as_path()))
    }

    /// Moves a process (with all its threads) into the group, in every hierarchy.
    pub fn attach(&self, pid: i32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        for group in self.groups.distinct() {
            files::write(&group.file("cgroup.procs"), &pid)?;
        }
        Ok(())
    }

    /// Moves the calling process, which must have no other thread, into the group, in every hierarchy.
    pub fn attach_self(&self) -> Result<(), CgroupError> {
        self.write_self(false)
    }

    /// Like [`attach_self`](Self::attach_self) for a process that CLONE_INTO_CGROUP put into the v2 group already
    /// ([`v2_fd`](Self::v2_fd)): the v1 hierarchies only, so nothing at all under pure v2.
    pub fn attach_self_v1_only(&self) -> Result<(), CgroupError> {
        self.write_self(true)
    }

    fn write_self(&self, v1_only: bool) -> Result<(), CgroupError> {
        for group in self.groups.distinct() {
            if !(v1_only && group.version == Version::V2) {
                files::write(&group.own_entrance(), "0")?;
            }
        }
        Ok(())
    }

    /// The file of each hierarchy, the killing one first, open for writing, through which a process without other threads that writes "0"
    /// enters the group.
    pub fn open_procs(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let open = |group: &&Group| {
            let path = group.own_entrance();
            rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| CgroupError::io("open", path, source))
        };
        self.groups.distinct().iter().map(open).collect()
    }

    /// The v2 directory for clone3's CLONE_INTO_CGROUP; `None` on a host without a v2 mount.
    pub fn v2_fd(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let core = &self.groups.core;
        if core.version != Version::V2 {
            return Ok(None);
        }
        rustix::fs::open(
            &core.dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Some)
        .map_err(|source| CgroupError::io("open", &core.dir, source))
    }
}

/// Accepts what can only ever be one directory of ours.
fn check_name(name: &str) -> Result<(), CgroupError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    // Names of control files (cgroup.procs, memory.max, tasks) cannot be made as directories: the kernel answers EEXIST,
    // which must not be taken for "already made".
    let control_file = name == "tasks"
        || name == "notify_on_release"
        || name == "release_agent"
        || ["cgroup.", "memory.", "cpu.", "cpuacct.", "pids.", "freezer.", "io.", "cpuset."]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let fits = (1..=128).contains(&name.len());
    if fits && name.bytes().all(plain) && !name.starts_with('.') && !control_file {
        return Ok(());
    }
    Err(CgroupError::InvalidName { name: name.chars().take(64).collect() })
}

#[cfg(test)]
mod tests;
