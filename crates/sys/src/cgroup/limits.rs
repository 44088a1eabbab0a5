//! Writing limits: one set of numbers, two kernels' words for them. Never reads usage and never kills.

use super::{Cgroup, CgroupError, Version, files};

/// The kernel's default quota period. SOURCE: Documentation/scheduler/sched-bwc.rst.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// The longest period the kernel takes. SOURCE: Documentation/scheduler/sched-bwc.rst.
const LONGEST_PERIOD_US: u64 = 1_000_000;
/// The smallest quota the kernel takes. SOURCE: Documentation/scheduler/sched-bwc.rst.
const SMALLEST_QUOTA_US: u64 = 1_000;

/// What a group may use. `None` leaves a value as it is, and a new group is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// CPU time per period, in microseconds, over all CPUs (at least 1000).
    pub cpu_quota_us: Option<u64>,
    /// The period of the quota, in microseconds (1000 to 1,000,000).
    pub cpu_period_us: u64,
    /// Share under contention, 1 to 10000, 100 is normal (the words of v2; converted for v1).
    pub cpu_weight: Option<u32>,
    /// Memory, page cache and tmpfs included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Swap beyond the memory limit, in bytes; applied with `memory_bytes` where the kernel counts swap.
    pub swap_bytes: Option<u64>,
    /// Tasks (processes and threads).
    pub pids: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_quota_us: None,
            cpu_period_us: DEFAULT_PERIOD_US,
            cpu_weight: None,
            memory_bytes: None,
            swap_bytes: Some(0),
            pids: None,
        }
    }
}

impl Limits {
    /// The quota for so many thousandths of a CPU. Below 10m the period grows to 1 s, because the kernel takes no quota below
    /// 1 ms: any whole number of thousandths is met exactly. 0 is taken as 1.
    #[must_use]
    pub fn with_cpu_millis(mut self, millis: u64) -> Self {
        let millis = millis.max(1);
        self.cpu_period_us = if millis < 10 { LONGEST_PERIOD_US } else { DEFAULT_PERIOD_US };
        let quota_us = millis.saturating_mul(self.cpu_period_us / 1_000);
        self.cpu_quota_us = Some(quota_us.max(SMALLEST_QUOTA_US));
        self
    }
}

impl Cgroup {
    /// Applies every given limit. A limit that this host cannot apply is an error: fail closed.
    ///
    /// Swap is the exception: a kernel that does not count swap per group has no file for it, and the limit on memory holds.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory_bytes {
            self.set_memory(bytes, limits.swap_bytes)?;
        }
        if let Some(pids) = limits.pids {
            files::write(&self.groups.pids.file("pids.max"), &pids.to_string())?;
        }
        if let Some(weight) = limits.cpu_weight {
            self.set_cpu_weight(weight)?;
        }
        if let Some(quota_us) = limits.cpu_quota_us {
            self.set_cpu(quota_us, limits.cpu_period_us)?;
        }
        Ok(())
    }

    fn set_cpu(&self, quota_us: u64, period_us: u64) -> Result<(), CgroupError> {
        let cpu = &self.groups.cpu;
        match cpu.version {
            Version::V2 => files::write(&cpu.file("cpu.max"), &format!("{quota_us} {period_us}")),
            Version::V1 => {
                if period_us != DEFAULT_PERIOD_US {
                    files::write(&cpu.file("cpu.cfs_period_us"), &period_us.to_string())?;
                }
                files::write(&cpu.file("cpu.cfs_quota_us"), &quota_us.to_string())
            }
        }
    }

    fn set_cpu_weight(&self, weight: u32) -> Result<(), CgroupError> {
        let cpu = &self.groups.cpu;
        match cpu.version {
            Version::V2 => files::write(&cpu.file("cpu.weight"), &weight.to_string()),
            Version::V1 => {
                files::write(&cpu.file("cpu.shares"), &weight_to_shares(weight).to_string())
            }
        }
    }

    fn set_memory(&self, bytes: u64, swap_bytes: Option<u64>) -> Result<(), CgroupError> {
        let memory = &self.groups.memory;
        if memory.version == Version::V2 {
            if let Some(swap) = swap_bytes {
                files::write_where_present(&memory.file("memory.swap.max"), &swap.to_string())?;
            }
            return files::write(&memory.file("memory.max"), &bytes.to_string());
        }
        let limit = memory.file("memory.limit_in_bytes");
        // v1 counts memory and swap together, and that sum may never be below the memory limit: raising goes from the
        // outside in, lowering and a new group from the inside out.
        let memsw = memory.file("memory.memsw.limit_in_bytes");
        let sum = swap_bytes.map(|swap| bytes.saturating_add(swap).to_string());
        let first = files::write(&limit, &bytes.to_string());
        let raised = first
            .as_ref()
            .is_err_and(|error| error.errno() == Some(rustix::io::Errno::INVAL.raw_os_error()));
        if let Some(sum) = &sum
            && (first.is_ok() || raised)
        {
            files::write_where_present(&memsw, sum)?;
        }
        if raised { files::write(&limit, &bytes.to_string()) } else { first }
    }
}

/// v2's weight (default 100) as v1's shares (default 1024), within the kernel's bounds.
/// SOURCE: MIN_SHARES and MAX_SHARES in the kernel's kernel/sched/sched.h.
fn weight_to_shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(2, 1 << 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_of_a_cpu_are_exact_and_never_below_the_kernels_smallest_quota() {
        for (millis, quota_us, period_us) in [
            (0, 1_000, 1_000_000),
            (1, 1_000, 1_000_000),
            (9, 9_000, 1_000_000),
            (10, 1_000, 100_000),
            (64, 6_400, 100_000),
            (1_500, 150_000, 100_000),
        ] {
            let limits = Limits::default().with_cpu_millis(millis);
            assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (Some(quota_us), period_us));
        }
    }

    #[test]
    fn weights_convert_to_shares_within_the_kernels_bounds() {
        assert_eq!(weight_to_shares(100), 1024);
        assert_eq!(weight_to_shares(1), 10);
        assert_eq!(weight_to_shares(0), 2);
        assert_eq!(weight_to_shares(u32::MAX), 1 << 18);
    }
}
