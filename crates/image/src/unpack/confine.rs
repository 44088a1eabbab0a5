//! Shutting the helper in before it reads its first byte of an archive.
//!
//! What is left to it: its standard streams, and files below the directory that it fills, which is its root. No network, no
//! device, no other process, no way to gain a privilege. What cannot be put in force ends the helper: there is no unconfined mode.

use std::os::fd::{AsFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{self, Mode, OFlags};
use rustix::process::{self, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{self, CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags};

use super::{Request, UnpackError};

/// Address space of the helper: a zstd window (128 MiB), the names of a million entries, and room.
const MAX_ADDRESS_SPACE_BYTES: u64 = 2 << 30;
/// Descriptors: three streams, and a path of directories while a tree is removed.
const MAX_DESCRIPTORS: u64 = 4096;
/// To give files the owners, modes and file capabilities that the archive names. Whiteouts need no capability since Linux 5.8.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);

/// The helper's user and group: nobody's, so that no process of the host can be signalled or inspected by it.
const HELPER_ID: u32 = 65_534;

/// Reads the request, shuts the process in and returns the directory to fill.
pub(super) fn begin() -> Result<(Request, OwnedFd), UnpackError> {
    let text = std::env::args_os().next_back().unwrap_or_default();
    let request: Request = serde_json::from_slice(text.as_encoded_bytes())
        .map_err(|error| failed("read the request", &error))?;
    let root = fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("open the directory", &error))?;
    be_alone()?;
    leave_namespaces()?;
    process::chroot(".").map_err(|error| failed("chroot", &error))?;
    process::chdir("/").map_err(|error| failed("chdir", &error))?;
    set_limits(&request)?;
    drop_privileges()?;
    restrict_files(&root)?;
    // Last: a change of user forgets it.
    end_with_parent(request.parent_pid)?;
    Ok((request, root))
}

/// Ids, capabilities and Landlock hold for one thread: there must be no other.
fn be_alone() -> Result<(), UnpackError> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|error| failed("count threads", &error))?
        .count();
    if threads == 1 {
        Ok(())
    } else {
        Err(failed("count threads", &format!("there are {threads} instead of one")))
    }
}

fn end_with_parent(parent_pid: i32) -> Result<(), UnpackError> {
    process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| failed("ask for the parent's end", &error))?;
    let parent = process::getppid().map(process::Pid::as_raw_pid);
    if parent != Some(parent_pid) {
        return Err(failed("find the parent", &"it has ended"));
    }
    Ok(())
}

fn leave_namespaces() -> Result<(), UnpackError> {
    let flags =
        UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNS;
    #[expect(
        deprecated,
        reason = "its successor is unsafe because of CLONE_FILES, which is not used here"
    )]
    thread::unshare(flags).map_err(|error| failed("enter namespaces of its own", &error))
}

fn set_limits(request: &Request) -> Result<(), UnpackError> {
    let limits = [
        (Resource::Core, 0),
        (Resource::As, MAX_ADDRESS_SPACE_BYTES),
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Fsize, request.limits.max_bytes),
        // No further process or thread, once its user is nobody.
        (Resource::Nproc, 0),
    ];
    for (resource, wanted) in limits {
        // A lower hard limit stays: raising one takes a privilege that is not everywhere.
        let hard =
            process::getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
        process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })
            .map_err(|error| failed("limit resources", &error))?;
    }
    Ok(())
}

fn drop_privileges() -> Result<(), UnpackError> {
    // Without fix-up, capabilities survive the change of user; the bits are locked for good.
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    thread::set_capabilities_secure_bits(locked)
        .map_err(|error| failed("lock the secure bits", &error))?;
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the kernel's last one.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(failed("empty the bounding set", &error)),
        }
    }
    become_nobody()?;
    let sets =
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).map_err(|error| failed("drop capabilities", &error))?;
    thread::set_no_new_privs(true).map_err(|error| failed("set no_new_privs", &error))
}

/// Sets this thread's ids, the only one there is.
fn become_nobody() -> Result<(), UnpackError> {
    let (uid, gid) = (Uid::from_raw(HELPER_ID), Gid::from_raw(HELPER_ID));
    thread::set_thread_groups(&[])
        .and_then(|()| thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| thread::set_thread_res_uid(uid, uid, uid))
        .map_err(|error| failed("become nobody", &error))
}

/// ABI 2 (Linux 5.19, the first with hard links across directories) must be there; what newer kernels can restrict, is.
fn restrict_files(root: &OwnedFd) -> Result<(), UnpackError> {
    let allowed = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeChar
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::Refer;
    let landlock = |error: &dyn std::fmt::Display| failed("Landlock", error);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))
        .map_err(|error| landlock(&error))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .map_err(|error| landlock(&error))?
        .handle_access(AccessNet::from_all(ABI::V4))
        .map_err(|error| landlock(&error))?
        .scope(Scope::from_all(ABI::V6))
        .map_err(|error| landlock(&error))?
        .create()
        .map_err(|error| landlock(&error))?
        .add_rule(PathBeneath::new(root.as_fd(), allowed | AccessFs::Truncate))
        .map_err(|error| landlock(&error))?
        .restrict_self()
        .map_err(|error| landlock(&error))?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err(failed("Landlock", &"the kernel does not enforce it"));
    }
    Ok(())
}

fn failed(step: &str, detail: &dyn std::fmt::Display) -> UnpackError {
    UnpackError::Confinement { step: step.to_owned(), detail: detail.to_string() }
}
