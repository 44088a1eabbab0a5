//! The limits of a whole Sentry: what its containers may use together, and what gVisor itself needs on top.
//!
//! Owns the control group's numbers. Never asks the Sentry: what holds here holds whatever the Sentry does.

use atoll_sys::cgroup::Limits;
use atoll_wire::guest::UserLimits;
use atoll_wire::shim::{Init, SandboxPlan};

/// Memory of gVisor's own processes (runsc while it starts the sandbox, Sentry, gofer, guest), on top of the containers' limits.
/// SOURCE: measured with runsc 20240729 on x86_64, memory.max_usage_in_bytes of a sandbox: 16 MiB idle, 43 MiB after a workload of 500
/// short processes (the Go heap grows); the rest is room for open files and sockets.
const SENTRY_MEMORY_BYTES: u64 = 64 << 20;
/// The same for each container after the first: its gofer and its guest (8 MiB measured).
const MEMBER_MEMORY_BYTES: u64 = 16 << 20;
/// What the Sentry keeps of each process or thread of the workload (0.18 MiB measured with 200 sleeping processes).
const MEMORY_BYTES_PER_PID: u64 = 256 << 10;

/// Threads of gVisor's own processes that do not depend on the workload: 24 measured, 20 more for each runsc command; the rest is what a
/// fork bomb as many users gets beyond its limit before the guest has ended it (a guess: each user may fork up to the limit).
const SENTRY_THREADS: u64 = 1024;
/// Host threads for each process or thread of the workload (2 measured asleep, 3 busy: one of the platform's stub, one that waits for it
/// in the Sentry).
const THREADS_PER_PID: u64 = 4;

/// The limits of the sandbox's control group. The CPU quota is left out while the start-up boost lasts.
pub(super) fn of_sandbox(plan: &SandboxPlan, with_cpu_quota: bool) -> Limits {
    let memory = sum(plan, |limits| limits.memory_bytes);
    let limits = Limits {
        memory_bytes: Some(memory.saturating_add(overhead_bytes(plan))),
        pids: Some(host_pids_backstop(plan)),
        ..Limits::default()
    };
    if with_cpu_quota { limits.with_cpu_millis(cpu_millis(plan)) } else { limits }
}

/// What isolation itself may use of the host's memory.
fn overhead_bytes(plan: &SandboxPlan) -> u64 {
    let members = plan.containers.len().saturating_sub(1) as u64;
    SENTRY_MEMORY_BYTES
        .saturating_add(MEMBER_MEMORY_BYTES.saturating_mul(members))
        .saturating_add(MEMORY_BYTES_PER_PID.saturating_mul(sum(plan, |limits| limits.pids)))
}

/// Thousandths of a CPU for all containers together.
pub(super) fn cpu_millis(plan: &SandboxPlan) -> u64 {
    sum(plan, |limits| limits.cpu_millis)
}

/// What gVisor enforces of each user, in all containers together: exact, where its pids controller asks a cgroup of some hierarchy or other
/// whenever a process is made, and so the right one now and then (seen in 20240729 and later). Who may become many users, or has
/// CAP_SYS_ADMIN or CAP_SYS_RESOURCE, is stopped by the guest's count.
/// SOURCE: gVisor's pkg/sentry/kernel (incRLimitNProc, chargeLocked).
pub(super) fn of_users(plan: &SandboxPlan) -> UserLimits {
    let pids = sum(plan, |limits| limits.pids);
    let guests = plan.containers.iter().filter(|one| one.init == Init::Guest).count() as u64;
    let keeper = u64::from(plan.containers.len() > 1);
    UserLimits {
        root: pids.saturating_add(guests).saturating_add(keeper),
        // The first process of it counts as root's.
        other: pids.saturating_sub(1).max(1),
    }
}

/// Never met by a workload within its own pids limit; the last fence when gVisor's own count fails.
fn host_pids_backstop(plan: &SandboxPlan) -> u64 {
    sum(plan, |limits| limits.pids).saturating_mul(THREADS_PER_PID).saturating_add(SENTRY_THREADS)
}

fn sum(plan: &SandboxPlan, of: impl Fn(&atoll_wire::shim::ContainerLimits) -> u64) -> u64 {
    plan.containers.iter().fold(0, |sum: u64, one| sum.saturating_add(of(&one.limits)))
}
