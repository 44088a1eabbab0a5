//! Processes: who one is across restarts and reboots, signals that cannot hit a stranger, exits read before they are reaped, and
//! what a small process sets about itself.
//!
//! Owns no process. Never signals by a bare number: a pid alone names nobody for long.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit,
    pidfd_open, pidfd_send_signal, setrlimit, waitid,
};

/// A question about a process, or a setting, that the kernel did not grant.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A number that no process can have.
    #[error("{pid} is not a process id")]
    InvalidPid {
        /// The number.
        pid: i32,
    },
    /// A file of /proc could not be read or does not look as documented.
    #[error("cannot read {}", path.display())]
    Proc {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation}")]
    Call {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl ProcessError {
    fn call(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Call { operation, source: errno.into() }
    }
}

/// One process for good: the pid may be given to another, the three together may not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// As this process's pid namespace numbers it.
    pub pid: i32,
    /// Clock ticks after boot. SOURCE: proc_pid_stat(5), field 22.
    pub start_time_ticks: u64,
    /// The kernel's random name for this boot. SOURCE: /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It lives.
    Running,
    /// It ended and its parent has not reaped it.
    Zombie,
    /// It is gone; its pid may be another's.
    Gone,
}

impl ProcessIdentity {
    /// The identity of a process that exists now (a zombie too); `None` when there is none.
    pub fn of(pid: i32) -> Result<Option<Self>, ProcessError> {
        check_pid(pid)?;
        let Some(stat) = read_stat(pid)? else { return Ok(None) };
        Ok(Some(Self { pid, start_time_ticks: stat.start_time_ticks, boot_id: boot_id()? }))
    }

    /// The identity of the calling process.
    pub fn of_self() -> Result<Self, ProcessError> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self::of(pid)?.ok_or_else(|| malformed(&PathBuf::from(format!("/proc/{pid}/stat"))))
    }

    /// What became of exactly this process.
    pub fn state(&self) -> Result<ProcessState, ProcessError> {
        check_pid(self.pid)?;
        if self.boot_id != boot_id()? {
            return Ok(ProcessState::Gone);
        }
        match read_stat(self.pid)? {
            Some(stat) if stat.start_time_ticks != self.start_time_ticks => Ok(ProcessState::Gone),
            Some(stat) if matches!(stat.state, 'Z' | 'X') => Ok(ProcessState::Zombie),
            Some(_) => Ok(ProcessState::Running),
            None => Ok(ProcessState::Gone),
        }
    }

    /// A descriptor of exactly this process, readable when it ends; `None` when it is gone.
    pub fn open(&self) -> Result<Option<OwnedFd>, ProcessError> {
        let pid = check_pid(self.pid)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the number belongs to a thread by now.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(ProcessError::call("open a process")(errno)),
        };
        // Asked after opening: from here on the descriptor cannot change its process.
        match self.state()? {
            ProcessState::Gone => Ok(None),
            ProcessState::Running | ProcessState::Zombie => Ok(Some(pidfd)),
        }
    }
}

/// The kernel's random name for this boot.
pub fn boot_id() -> Result<String, ProcessError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| ProcessError::Proc { path: path.into(), source })
}

/// The children of this process, of all its threads, zombies too. Empty where the kernel does not list them (it needs
/// CONFIG_PROC_CHILDREN, which distributions set). SOURCE: proc_tid_children(5).
#[must_use]
pub fn children_of_self() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

struct Stat {
    state: char,
    start_time_ticks: u64,
}

fn read_stat(pid: i32) -> Result<Option<Stat>, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    match fs::read(&path) {
        // The name may hold any bytes.
        Ok(bytes) => match parse_stat(&String::from_utf8_lossy(&bytes)) {
            Some(stat) => Ok(Some(stat)),
            None => Err(malformed(&path)),
        },
        Err(source)
            if source.kind() == std::io::ErrorKind::NotFound
                || source.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(source) => Err(ProcessError::Proc { path, source }),
    }
}

/// SOURCE: proc_pid_stat(5): `pid (name) state ...`, where the name may hold spaces and parentheses; state is field 3 and
/// the start time field 22.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time_ticks })
}

fn malformed(path: &Path) -> ProcessError {
    let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
    ProcessError::Proc { path: path.into(), source }
}

fn check_pid(pid: i32) -> Result<Pid, ProcessError> {
    // rustix takes a negative number for a mistake of its caller and panics.
    (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or(ProcessError::InvalidPid { pid })
}

/// Opens a process that cannot have been reaped yet: the caller's own child. For others see [`ProcessIdentity::open`].
pub fn open_child(pid: i32) -> Result<OwnedFd, ProcessError> {
    pidfd_open(check_pid(pid)?, PidfdFlags::empty())
        .map_err(ProcessError::call("open a child process"))
}

/// Sends a signal (1 to 64); `false` when the process has ended.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<bool, ProcessError> {
    let operation = "send a signal";
    let signal = match Signal::from_named_raw(signal) {
        Some(signal) => signal,
        // SAFETY: the C library keeps the first real-time signals for itself; sending one to another process, as its
        // owner may ask, breaks no rule of this process's C library.
        None if (32..=64).contains(&signal) => unsafe { Signal::from_raw_unchecked(signal) },
        None => return Err(ProcessError::call(operation)(Errno::INVAL)),
    };
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(errno) => Err(ProcessError::call(operation)(errno)),
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code, 0 to 255.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The number a shell would show: the code, or 128 and the signal.
    #[must_use]
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Whether a wait may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until the child ends.
    Block,
    /// Not at all.
    Now,
}

/// Reads how a child ended and leaves it a zombie, so that the exit can be recorded before it is forgotten; `None` while
/// it runs (with [`Wait::Now`]).
pub fn peek_exit(pid: i32, wait: Wait) -> Result<Option<Exit>, ProcessError> {
    wait_for(pid, wait, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
}

/// Reaps a child and says how it ended; `None` while it runs (with [`Wait::Now`]).
pub fn reap(pid: i32, wait: Wait) -> Result<Option<Exit>, ProcessError> {
    wait_for(pid, wait, WaitIdOptions::EXITED)
}

fn wait_for(
    pid: i32,
    wait: Wait,
    mut options: WaitIdOptions,
) -> Result<Option<Exit>, ProcessError> {
    let pid = check_pid(pid)?;
    if wait == Wait::Now {
        options |= WaitIdOptions::NOHANG;
    }
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(status) => {
                return Ok(status.and_then(|status| {
                    let code = status.exit_status().map(Exit::Code);
                    code.or_else(|| status.terminating_signal().map(Exit::Signal))
                }));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ProcessError::call("wait for a child")(errno)),
        }
    }
}

/// Makes orphans below the calling process its children, so that none escapes being reaped.
pub fn become_child_subreaper() -> Result<(), ProcessError> {
    // The kernel takes any number but zero for "yes".
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(ProcessError::call("become a child subreaper"))
}

/// Begins a session of its own, away from the caller's terminal and process group.
pub fn begin_session() -> Result<(), ProcessError> {
    rustix::process::setsid().map(drop).map_err(ProcessError::call("begin a session"))
}

/// Hides the process's memory and /proc files from other processes of the same user.
pub fn forbid_inspection() -> Result<(), ProcessError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(ProcessError::call("forbid inspection of this process"))
}

/// Sees to it that no crash of this process, or of what it starts, starts the host's handler of core dumps, which runs as the host's root
/// and parses what the crashed process was. For a handler a limit of 0 means nothing, a limit of 1 means: not at all; and a file has no
/// room for a dump in one byte. SOURCE: fs/coredump.c of the kernel; core(5) tells the half of it.
///
/// # Errors
/// The hard limit is 0 already, this process may not raise it, and the host has a handler.
pub fn forbid_core_dumps() -> Result<(), ProcessError> {
    let one = Rlimit { current: Some(1), maximum: Some(1) };
    let refused = match setrlimit(Resource::Core, one) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap_or_else(|_| b"|".to_vec());
    let has_handler = pattern.first().is_some_and(|first| matches!(first, b'|' | b'@'));
    if getrlimit(Resource::Core).maximum == Some(0) && !has_handler {
        return Ok(());
    }
    Err(ProcessError::call("limit core dumps")(refused))
}

/// Tells the kernel whom to kill first when the host runs out of memory: -1000 (never) to 1000 (first). Best effort: says
/// whether it worked (lowering needs CAP_SYS_RESOURCE).
#[must_use]
pub fn set_own_oom_score(score: i16) -> bool {
    fs::write("/proc/self/oom_score_adj", score.clamp(-1000, 1000).to_string()).is_ok()
}

/// Limits of open files of the calling process: soft, hard.
#[must_use]
pub fn open_files_limit() -> (u64, u64) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// Whether the calling process may have more descriptors now: its soft limit becomes its hard limit, or `most` when that is less.
pub fn raise_open_files_limit(most: u64) -> bool {
    let (_, hard) = open_files_limit();
    let limit = Rlimit { current: Some(hard.min(most)), maximum: Some(hard) };
    setrlimit(Resource::Nofile, limit).is_ok()
}

/// Marks every descriptor from 3 on, but those of `keep`, to be closed at exec: nothing is inherited by accident.
pub fn close_on_exec_all_but(keep: &[RawFd]) -> Result<(), ProcessError> {
    for (first, last) in gaps(keep) {
        // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing; it sets a flag that std sets by default as well.
        unsafe { close_range(first, last, libc::CLOSE_RANGE_CLOEXEC) }?;
    }
    Ok(())
}

/// Closes every descriptor from 3 on, but those of `keep`.
///
/// # Safety
/// Whatever still owns a closed descriptor would later close a stranger's: only for a process just forked that never uses or
/// drops what its parent owned (it execs, or ends with `_exit`).
pub unsafe fn close_all_but(keep: &[RawFd]) -> Result<(), ProcessError> {
    for (first, last) in gaps(keep) {
        // SAFETY: the caller promises that nobody uses the descriptors of the range again.
        unsafe { close_range(first, last, 0) }?;
    }
    Ok(())
}

/// One range of descriptors; makes a system call and nothing else.
///
/// # Safety
/// Without CLOSE_RANGE_CLOEXEC the descriptors of the range must have no owner left.
pub(crate) unsafe fn close_range(first: u32, last: u32, flags: u32) -> Result<(), ProcessError> {
    // SAFETY: the call takes three numbers; what they mean for owners is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(ProcessError::Call {
            operation: "close inherited descriptors",
            source: std::io::Error::last_os_error(),
        }),
    }
}

/// No descriptor is higher: they are non-negative ints. The largest u32 would do for Linux, but gVisor reads it as -1.
pub(crate) const HIGHEST_DESCRIPTOR: u32 = i32::MAX.unsigned_abs();

/// The ranges between the kept descriptors, from 3 on.
fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut gaps = Vec::with_capacity(keep.len() + 1);
    let mut next = 3;
    for fd in keep {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd + 1);
    }
    gaps.push((next, HIGHEST_DESCRIPTOR));
    gaps
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};
    use std::process::{Command, Stdio};

    use super::*;

    fn start(script: &str) -> (std::process::Child, i32) {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn an_exit_is_read_before_it_is_reaped_and_identity_follows() {
        let (mut child, pid) = start("read _; exit 7");
        let identity = ProcessIdentity::of(pid).unwrap().unwrap();
        assert_eq!(identity.state().unwrap(), ProcessState::Running);
        assert_eq!(peek_exit(pid, Wait::Now).unwrap(), None);
        assert!(identity.open().unwrap().is_some());
        drop(child.stdin.take());
        for _ in 0..2 {
            assert_eq!(peek_exit(pid, Wait::Block).unwrap(), Some(Exit::Code(7)));
            assert_eq!(identity.state().unwrap(), ProcessState::Zombie);
        }
        assert_eq!(reap(pid, Wait::Block).unwrap(), Some(Exit::Code(7)));
        assert_eq!(identity.state().unwrap(), ProcessState::Gone);
        assert!(identity.open().unwrap().is_none());
        assert!(reap(pid, Wait::Now).is_err(), "nobody is left to reap");
    }

    #[test]
    fn a_signal_through_a_descriptor_ends_the_process_and_is_told() {
        for signal in [libc::SIGKILL, 40] {
            let (_child, pid) = start("read _");
            let pidfd = open_child(pid).unwrap();
            assert!(send_signal(pidfd.as_fd(), signal).unwrap());
            let exit = reap(pid, Wait::Block).unwrap().unwrap();
            assert_eq!((exit, exit.shell_code()), (Exit::Signal(signal), 128 + signal));
            assert!(!send_signal(pidfd.as_fd(), signal).unwrap(), "it has ended");
            assert!(send_signal(pidfd.as_fd(), 65).is_err());
        }
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let me = ProcessIdentity::of_self().unwrap();
        assert_eq!(me.state().unwrap(), ProcessState::Running);
        let later = ProcessIdentity { start_time_ticks: me.start_time_ticks + 1, ..me.clone() };
        assert_eq!(later.state().unwrap(), ProcessState::Gone);
        assert!(later.open().unwrap().is_none());
        let rebooted = ProcessIdentity { boot_id: "another".into(), ..me };
        assert_eq!(rebooted.state().unwrap(), ProcessState::Gone);
        assert!(ProcessIdentity::of(-1).is_err());
        assert!(ProcessIdentity::of(i32::MAX).unwrap().is_none());
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = parse_stat(&format!("9 (a) Z (b c)) R {}", fields.join(" "))).unwrap();
        assert_eq!((stat.state, stat.start_time_ticks), ('R', 22));
        assert!(parse_stat("9 (a) R 1 2").is_none());
        assert!(parse_stat("").is_none());
    }

    #[test]
    fn ranges_to_close_leave_out_what_is_kept() {
        assert_eq!(gaps(&[]), [(3, HIGHEST_DESCRIPTOR)]);
        assert_eq!(gaps(&[0, 5, 3, 4, 5, 9, -1]), [(6, 8), (10, HIGHEST_DESCRIPTOR)]);
    }

    #[test]
    fn what_is_not_kept_is_closed_at_exec() {
        let file = fs::File::open("/proc/self/stat").unwrap();
        let fd = file.as_raw_fd();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        close_on_exec_all_but(&[]).unwrap();
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        close_on_exec_all_but(&[fd]).unwrap();
        assert!(!rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
