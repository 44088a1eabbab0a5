//! Reading what a group used. Counters only; decides nothing.

use super::{Cgroup, CgroupError, Version, files};

/// What a group uses and used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupStats {
    /// Bytes charged now, reclaimable page cache included.
    pub memory_current: u64,
    /// Of these, page cache that was not used lately: the kernel takes it back before it kills anybody.
    pub memory_inactive_file: u64,
    /// The most bytes ever charged; `None` on v2 kernels before 5.19.
    pub memory_peak: Option<u64>,
    /// CPU time used, microseconds; `None` on a pure v1 host whose cpuacct is mounted apart from cpu.
    pub cpu_usage_us: Option<u64>,
    /// Time spent throttled by the quota, microseconds.
    pub throttled_us: u64,
    /// Tasks now.
    pub pids_current: u64,
}

impl Cgroup {
    /// Reads all counters of the group, its children included.
    pub fn stats(&self) -> Result<CgroupStats, CgroupError> {
        let memory = &self.groups.memory;
        let (current, peak, inactive) = match memory.version {
            Version::V1 => {
                ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "total_inactive_file")
            }
            Version::V2 => ("memory.current", "memory.peak", "inactive_file"),
        };
        Ok(CgroupStats {
            memory_current: files::read_number(&memory.file(current))?,
            memory_inactive_file: files::read_keyed(&memory.file("memory.stat"), inactive)?,
            memory_peak: files::read_number_where_present(&memory.file(peak))?,
            cpu_usage_us: self.cpu_usage_us()?,
            throttled_us: self.throttled_us()?,
            pids_current: files::read_number(&self.groups.pids.file("pids.current"))?,
        })
    }

    /// Every v2 group counts CPU time, whichever hierarchy limits it; else v1's cpuacct where it shares cpu's mount.
    fn cpu_usage_us(&self) -> Result<Option<u64>, CgroupError> {
        if self.groups.core.version == Version::V2 {
            return files::read_keyed(&self.groups.core.file("cpu.stat"), "usage_usec").map(Some);
        }
        let usage_ns = files::read_number_where_present(&self.groups.cpu.file("cpuacct.usage"))?;
        Ok(usage_ns.map(|ns| ns / 1_000))
    }

    fn throttled_us(&self) -> Result<u64, CgroupError> {
        let cpu = &self.groups.cpu;
        let path = cpu.file("cpu.stat");
        match cpu.version {
            Version::V1 => files::read_keyed(&path, "throttled_time").map(|ns| ns / 1_000),
            Version::V2 => files::read_keyed(&path, "throttled_usec"),
        }
    }

    /// How many processes of the group (its children included) the kernel killed because memory ran out.
    ///
    /// Authoritative once the process in question was reaped: the notification of [`OomWatch`](super::OomWatch) may come
    /// before the count moves.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let memory = &self.groups.memory;
        match memory.version {
            Version::V2 => files::read_keyed(&memory.file("memory.events"), "oom_kill"),
            // v1 counts in the victim's own group only.
            Version::V1 => sum_over_tree(&memory.dir, "memory.oom_control", "oom_kill", 0),
        }
    }

    /// How often a new task was refused because of a pids limit.
    ///
    /// v1 counts in the group of the task that forked, whichever group's limit it met; v2 counts in the group whose limit was met and
    /// above. Read it on the group that carries the limit.
    pub fn pids_limit_hits(&self) -> Result<u64, CgroupError> {
        let pids = &self.groups.pids;
        match pids.version {
            Version::V2 => files::read_keyed(&pids.file("pids.events"), "max"),
            Version::V1 => sum_over_tree(&pids.dir, "pids.events", "max", 0),
        }
    }
}

/// Our groups are two deep; the bound only guards against a loop that cannot be.
const DEEPEST: usize = 8;

fn sum_over_tree(
    dir: &std::path::Path,
    file: &str,
    key: &'static str,
    depth: usize,
) -> Result<u64, CgroupError> {
    let mut sum = files::read_keyed(&dir.join(file), key)?;
    if depth < DEEPEST {
        for child in files::child_groups(dir)? {
            sum = sum.saturating_add(sum_over_tree(&dir.join(child), file, key, depth + 1)?);
        }
    }
    Ok(sum)
}
