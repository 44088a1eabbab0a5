//! The limits of a whole Sentry: what its containers may use together, and what gVisor itself needs on top.
//!
//! Owns the control group's numbers. Never asks the Sentry: what holds here holds whatever the Sentry does.

use atoll_sys::cgroup::Limits;
use atoll_wire::shim::SandboxPlan;

/// Memory of gVisor's own processes (runsc while it starts the sandbox, Sentry, gofers, guest), on top of the containers' limits.
pub(super) const SENTRY_MEMORY_BYTES: u64 = 96 << 20;
/// The same for each container after the first: its gofer and its guest.
pub(super) const MEMBER_MEMORY_BYTES: u64 = 24 << 20;

/// Threads of gVisor's own processes that do not depend on the workload.
const SENTRY_THREADS: u64 = 512;
/// Host threads for each process or thread of the workload.
const THREADS_PER_PID: u64 = 6;

/// The limits of the sandbox's control group. The CPU quota is left out while the start-up boost lasts.
pub(super) fn of_sandbox(plan: &SandboxPlan, with_cpu_quota: bool) -> Limits {
    let memory = sum(plan, |limits| limits.memory_bytes);
    let members = plan.containers.len().saturating_sub(1) as u64;
    let own = SENTRY_MEMORY_BYTES.saturating_add(MEMBER_MEMORY_BYTES.saturating_mul(members));
    let limits = Limits {
        memory_bytes: Some(memory.saturating_add(own)),
        pids: Some(host_pids_backstop(plan)),
        ..Limits::default()
    };
    if with_cpu_quota { limits.with_cpu_millis(cpu_millis(plan)) } else { limits }
}

/// Thousandths of a CPU for all containers together.
pub(super) fn cpu_millis(plan: &SandboxPlan) -> u64 {
    sum(plan, |limits| limits.cpu_millis)
}

/// Never met by a workload within its own pids limit; the last fence when gVisor's own count fails.
fn host_pids_backstop(plan: &SandboxPlan) -> u64 {
    sum(plan, |limits| limits.pids).saturating_mul(THREADS_PER_PID).saturating_add(SENTRY_THREADS)
}

fn sum(plan: &SandboxPlan, of: impl Fn(&atoll_wire::shim::ContainerLimits) -> u64) -> u64 {
    plan.containers.iter().fold(0, |sum: u64, one| sum.saturating_add(of(&one.limits)))
}
