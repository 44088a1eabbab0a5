//! Starting a process of the image without a guest (`init: image`): as the first process, or from outside.
//!
//! Owns the order in which rights are given up. Runs in a forked child that stands in the container's namespaces as its root.

use std::convert::Infallible;
use std::ffi::CString;

use atoll_sys::capabilities::CapabilitySet;
use atoll_wire::guest::ProcessSpec;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::Failed;
use super::credentials::{self, Confinement};
use crate::engine::EngineError;

/// Where programs are looked for when the environment has no PATH. SOURCE: execvp(3) of most systems, and Docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whom the kernel kills first when memory runs out. Before the user namespace is entered: a process that changed its rights no longer owns
/// its files in /proc. Lowering may be refused; a workload then starts at the shim's own score.
pub(super) fn set_kill_order(process: &ProcessSpec) {
    let score = i16::try_from(process.oom_score_adj).unwrap_or(0);
    let _ = atoll_sys::process::set_own_oom_score(score);
}

/// Becomes the process. Returns only when a step fails.
pub(super) fn execute(
    process: &ProcessSpec,
    confinement: &Confinement<'_>,
) -> Result<Infallible, EngineError> {
    atoll_sys::process::close_on_exec_all_but(&[]).failed(|| "close descriptors at exec")?;
    let arguments = strings(&process.args, "argument")?;
    let environment = strings(&process.env, "environment entry")?;
    let programs = programs(process)?;
    if let Some(files) = process.open_files {
        let limit = Rlimit { current: Some(files), maximum: Some(files) };
        rustix::process::setrlimit(Resource::Nofile, limit).failed(|| "limit open files")?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask & 0o777));
    if process.make_working_directory {
        make_directory(&process.working_directory)?;
    }
    let install =
        || atoll_sys::seccomp::install(confinement.seccomp_filter).failed(|| "filter system calls");
    if !process.no_new_privileges {
        // Without no_new_privs it takes a capability that is given up below; the filter lets the steps below through.
        install()?;
    }
    let kept = CapabilitySet::from_mask(process.capabilities);
    credentials::bound_capabilities(kept)?;
    // The kernel takes all capabilities from whoever is no longer root, and root keeps what is set here.
    credentials::become_user(&process.user)?;
    let kept = if process.user.uid == 0 { kept } else { CapabilitySet::EMPTY };
    credentials::set_capabilities(kept)?;
    credentials::enter_directory(&process.working_directory)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).failed(|| "forbid new privileges")?;
        install()?;
    }
    let mut refused = Errno::NOENT.into();
    for program in programs {
        refused = atoll_sys::clone::execute_path(&program, &arguments, &environment);
        let errno = refused.raw_os_error();
        if errno != Some(Errno::NOENT.raw_os_error()) && errno != Some(Errno::ACCESS.raw_os_error())
        {
            break;
        }
    }
    let name = process.args.first().map_or("", String::as_str);
    Err(EngineError::new(format!("execute {name:?}"), refused))
}

fn strings(texts: &[String], what: &str) -> Result<Vec<CString>, EngineError> {
    let convert = |text: &String| {
        CString::new(text.as_bytes())
            .map_err(|_| EngineError::new(format!("use an {what}"), "it holds a NUL byte"))
    };
    texts.iter().map(convert).collect()
}

/// The paths to try, in order.
fn programs(process: &ProcessSpec) -> Result<Vec<CString>, EngineError> {
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(EngineError::new("start a process", "it has no program: give a command"));
    };
    if name.contains('/') {
        return strings(std::slice::from_ref(name), "argument");
    }
    let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let candidates: Vec<String> = path
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|directory| match directory {
            "" => name.clone(),
            directory => format!("{directory}/{name}"),
        })
        .collect();
    strings(&candidates, "argument")
}

/// Like `mkdir -p`, inside the own root, as the container's root.
fn make_directory(path: &str) -> Result<(), EngineError> {
    let mut so_far = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        so_far.push('/');
        so_far.push_str(name);
        match rustix::fs::mkdir(so_far.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(errno).failed(|| format!("make the working directory {path}"));
            }
        }
    }
    Ok(())
}
