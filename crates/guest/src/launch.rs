//! From a [`ProcessSpec`] to a process: checks it, finds the program, makes pipes or a terminal, and says in the protocol's words why
//! it did not work.
//!
//! Never trusts that a host has checked: what makes no sense is a `BadRequest`.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::rc::Rc;

use atoll_sys::seccomp::Filter;
use atoll_sys::workload::{self, ForkError, Identity, Program, StartError, Starting, Step};
use atoll_wire::guest::{GuestKind, ProcessSpec, StartFailure, StartFailureKind, UserIds};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::input::Input;
use crate::output::Output;
use crate::shield::Shield;
use crate::terminal::Terminal;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most directories of a PATH that are looked into.
const MAX_PATH_ENTRIES: usize = 64;

/// A process that was forked, and the guest's ends of what it was given.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Will say whether it executed its program.
    pub(crate) starting: Starting,
    /// Its standard input.
    pub(crate) input: Input,
    /// Its standard output, or its terminal.
    pub(crate) stdout: Output,
    /// Its standard error.
    pub(crate) stderr: Output,
    /// The guest's end of its terminal.
    pub(crate) terminal: Option<Rc<OwnedFd>>,
}

/// Starts what the spec says, behind that shield. `open_files` is the limit of what has none in its spec.
///
/// # Errors
/// The failure to send.
pub(crate) fn launch(
    spec: &ProcessSpec,
    shield: &Shield,
    open_files: (u64, u64),
) -> Result<Launched, StartFailure> {
    let program = program(spec, shield, open_files)?;
    if spec.make_working_directory {
        make_directory(&spec.working_directory)?;
    }
    let user = &spec.user;
    if let Some(size) = spec.terminal {
        let terminal = Terminal::open(size, user)
            .map_err(|errno| other(format!("cannot open a terminal: {errno}")))?;
        let peer = terminal.peer.as_fd();
        let starting = start(program, [peer, peer, peer], shield)?;
        let master = Rc::new(terminal.master);
        return Ok(Launched {
            starting,
            input: if spec.stdin { Input::terminal(master.clone()) } else { Input::default() },
            stdout: Output::new(GuestKind::Stdout, Some(master.clone()), true),
            stderr: Output::new(GuestKind::Stderr, None, true),
            terminal: Some(master),
        });
    }
    let (stdin, input) = if spec.stdin {
        let pipe = Pipe::for_input(user).map_err(no_pipe)?;
        (pipe.process_end, Input::pipe(pipe.own_end))
    } else {
        (null().map_err(no_pipe)?, Input::default())
    };
    let stdout = Pipe::for_output(user).map_err(no_pipe)?;
    let stderr = Pipe::for_output(user).map_err(no_pipe)?;
    let standard = [stdin.as_fd(), stdout.process_end.as_fd(), stderr.process_end.as_fd()];
    let starting = start(program, standard, shield)?;
    Ok(Launched {
        starting,
        input,
        stdout: Output::new(GuestKind::Stdout, Some(Rc::new(stdout.own_end)), false),
        stderr: Output::new(GuestKind::Stderr, Some(Rc::new(stderr.own_end)), false),
        terminal: None,
    })
}

fn start(
    program: Program,
    standard: [BorrowedFd<'_>; 3],
    shield: &Shield,
) -> Result<Starting, StartFailure> {
    let prepared = workload::prepare(program, standard).map_err(not_forked)?;
    let forked = shield.fork(|| prepared.start(shield.memory()));
    forked.map_err(ForkError::from).and_then(|forked| forked).map_err(not_forked)
}

/// A pipe between the guest and a process. Only the guest's end does not wait.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) own_end: OwnedFd,
    pub(crate) process_end: OwnedFd,
}

impl Pipe {
    /// For the process to read.
    pub(crate) fn for_input(user: &UserIds) -> Result<Self, Errno> {
        let (process_end, own_end) = pipe_with(PipeFlags::CLOEXEC)?;
        Self::ready(own_end, process_end, user)
    }

    /// For the process to write.
    pub(crate) fn for_output(user: &UserIds) -> Result<Self, Errno> {
        let (own_end, process_end) = pipe_with(PipeFlags::CLOEXEC)?;
        Self::ready(own_end, process_end, user)
    }

    fn ready(own_end: OwnedFd, process_end: OwnedFd, user: &UserIds) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&own_end, true)?;
        if user.uid != 0 {
            // So that the user can open /dev/stdout again. Best effort: without CAP_CHOWN it cannot.
            let _ = rustix::fs::fchown(
                &process_end,
                Some(rustix::fs::Uid::from_raw(user.uid)),
                Some(rustix::fs::Gid::from_raw(user.gid)),
            );
        }
        Ok(Self { own_end, process_end })
    }
}

/// /dev/null, or a pipe that has ended where the image's /dev has none.
pub(crate) fn null() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let opened = rustix::fs::open("/dev/null", flags, Mode::empty());
    let is_device = |file: &OwnedFd| {
        rustix::fs::fstat(file).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::CharacterDevice
        })
    };
    match opened {
        Ok(file) if is_device(&file) => Ok(file),
        _ => pipe_with(PipeFlags::CLOEXEC).map(|(reader, _)| reader),
    }
}

/// Checks the ids that cannot be ids; see setresuid(2), where they mean "unchanged".
pub(crate) fn identity(
    user: &UserIds,
    capabilities: u64,
    no_new_privileges: bool,
    filter: &Filter,
) -> Result<Identity, StartFailure> {
    let ids = [user.uid, user.gid];
    if ids.iter().chain(&user.supplementary_gids).any(|id| *id == u32::MAX) {
        return Err(bad_request("4294967295 is no user or group".into()));
    }
    Ok(Identity {
        uid: user.uid,
        gid: user.gid,
        supplementary_gids: user.supplementary_gids.clone(),
        capabilities,
        no_new_privileges,
        filter: Some(filter.clone()),
    })
}

fn program(
    spec: &ProcessSpec,
    shield: &Shield,
    default_open_files: (u64, u64),
) -> Result<Program, StartFailure> {
    let Some(name) = spec.args.first().filter(|name| !name.is_empty()) else {
        return Err(bad_request("no program was given".into()));
    };
    if !spec.working_directory.starts_with('/') {
        return Err(bad_request(format!(
            "the working directory {:?} is not absolute",
            spec.working_directory
        )));
    }
    let (soft, hard) = default_open_files;
    Ok(Program {
        candidates: c_strings(&candidates(name, &spec.env))?,
        args: c_strings(&spec.args)?,
        env: c_strings(&spec.env)?,
        working_directory: c_string(&spec.working_directory)?,
        identity: identity(&spec.user, spec.capabilities, spec.no_new_privileges, &shield.filter)?,
        umask: spec.umask,
        oom_score_adj: spec.oom_score_adj,
        open_files: spec
            .open_files
            .map_or((soft, hard), |files| (files.min(hard), files.min(hard))),
        processes: shield.processes_of(spec.user.uid),
        controlling_terminal: spec.terminal.is_some(),
    })
}

/// A name with a slash is a path; else every directory of PATH, in order. The current directory is never searched by accident.
fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .take(MAX_PATH_ENTRIES)
        .map(|directory| format!("{}/{name}", directory.trim_end_matches('/')))
        .collect()
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, StartFailure> {
    texts.iter().map(|text| c_string(text)).collect()
}

fn c_string(text: &str) -> Result<CString, StartFailure> {
    CString::new(text).map_err(|_| bad_request("an argument or variable has a zero byte".into()))
}

/// As the image's builder would have: owned by root.
fn make_directory(path: &str) -> Result<(), StartFailure> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| {
        let message = format!("cannot make the working directory {path:?}: {error}");
        StartFailure { kind: StartFailureKind::WorkingDirectory, message }
    })
}

/// Why the process did not come to execute its program.
pub(crate) fn describe(spec: &ProcessSpec, error: StartError) -> StartFailure {
    let name = spec.args.first().map_or("", String::as_str);
    let StartError { step, source: errno } = error;
    let failure = |kind, message| StartFailure { kind, message };
    match (step, errno) {
        (Step::Execute, Errno::NOENT | Errno::NOTDIR)
            if name.contains('/') && Path::new(name).exists() =>
        {
            failure(
                StartFailureKind::NotFound,
                format!("{name:?} is there, but the interpreter it names is not"),
            )
        }
        (Step::Execute, Errno::NOENT | Errno::NOTDIR) if name.contains('/') => {
            failure(StartFailureKind::NotFound, format!("{name:?} does not exist"))
        }
        (Step::Execute, Errno::NOENT | Errno::NOTDIR) => {
            failure(StartFailureKind::NotFound, format!("{name:?} is in no directory of PATH"))
        }
        (Step::Execute, Errno::AGAIN) => {
            failure(StartFailureKind::TooManyProcesses, format!("cannot execute {name:?}: {errno}"))
        }
        (Step::Execute, Errno::TOOBIG) => failure(
            StartFailureKind::BadRequest,
            format!("arguments and environment of {name:?} are too large"),
        ),
        (Step::Execute, Errno::NOEXEC) => failure(
            StartFailureKind::NotExecutable,
            format!("{name:?} is no program for this machine and has no #! line"),
        ),
        (Step::Execute, _) => failure(
            StartFailureKind::NotExecutable,
            format!("{name:?} cannot be executed by user {}: {errno}", spec.user.uid),
        ),
        (Step::WorkingDirectory, _) => failure(
            StartFailureKind::WorkingDirectory,
            format!("cannot enter the working directory {:?}: {errno}", spec.working_directory),
        ),
        (step, _) => other(format!("cannot start {name:?}: {step:?}: {errno}")),
    }
}

fn not_forked(ForkError { source }: ForkError) -> StartFailure {
    let kind = if source == Errno::AGAIN {
        StartFailureKind::TooManyProcesses
    } else {
        StartFailureKind::Other
    };
    StartFailure { kind, message: format!("cannot make another process: {source}") }
}

fn no_pipe(errno: Errno) -> StartFailure {
    other(format!("cannot make a pipe: {errno}"))
}

/// A request that makes no sense.
pub(crate) fn bad_request(message: String) -> StartFailure {
    StartFailure { kind: StartFailureKind::BadRequest, message }
}

fn other(message: String) -> StartFailure {
    StartFailure { kind: StartFailureKind::Other, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_the_path_of_their_own_environment() {
        let env = ["HOME=/".to_owned(), "PATH=/a::/b/:c".to_owned()];
        assert_eq!(candidates("x", &env), ["/a/x", "/b/x", "c/x"]);
        assert_eq!(candidates("./x", &env), ["./x"]);
        assert_eq!(candidates("x", &[]).len(), 6);
        let endless = [format!("PATH={}", "/a:".repeat(1000))];
        assert_eq!(candidates("x", &endless).len(), MAX_PATH_ENTRIES);
    }
}
