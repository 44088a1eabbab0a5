//! What runs in the container, read from /proc: lists, counts, and signals for everyone.
//!
//! The workload chooses its names and command lines: they are cut, and nothing in them moves a field.

use std::fs::{self, File};
use std::io::Read;

use atoll_wire::frame::MAX_PAYLOAD_BYTES;
use atoll_wire::guest::ProcessInfo;
use rustix::io::Errno;

/// Most bytes of a command line that are shown.
const MAX_COMMAND_BYTES: u64 = 256;
/// Bytes of a list's JSON beside its entries, generously.
const LIST_RESERVE_BYTES: usize = 1024;
/// How often a signal for everyone looks for processes forked meanwhile. One more is enough unless they fork faster than /proc is read.
const MOST_ROUNDS: usize = 64;

/// The processes of the container but the guest, by pid, as many as one message takes.
pub(crate) fn list() -> Vec<ProcessInfo> {
    let mut pids: Vec<i32> = pids().collect();
    pids.sort_unstable();
    let mut room = MAX_PAYLOAD_BYTES - LIST_RESERVE_BYTES;
    let mut list = Vec::new();
    for process in pids.into_iter().filter_map(read) {
        let bytes = serde_json::to_vec(&process).map_or(0, |json| json.len() + 1);
        let Some(left) = room.checked_sub(bytes) else { break };
        room = left;
        list.push(process);
    }
    list
}

/// Who has the kernel in which the guest runs, as far as it was told by its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelUse {
    /// Nothing was said: the machine's.
    Unknown,
    /// This container alone has a kernel of its own.
    Alone,
    /// The containers of this sandbox have one together.
    Shared,
}

impl KernelUse {
    /// Reads the guest's arguments.
    ///
    /// # Errors
    /// For other arguments than none, `alone` or `shared`: then nothing may run.
    pub(crate) fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::io::Result<Self> {
        match (arguments.next().as_deref(), arguments.next()) {
            (None, _) => Ok(Self::Unknown),
            (Some("alone"), None) => Ok(Self::Alone),
            (Some("shared"), None) => Ok(Self::Shared),
            (other, _) => Err(std::io::Error::other(format!("{other:?} is no argument"))),
        }
    }

    /// Threads of the kernel beside the guest, those of other containers included; `None` where they are not the sandbox's alone. One
    /// system call, which a guest gets through even when it must share a CPU with a thousand processes: reading /proc would take seconds
    /// then.
    fn threads(self) -> Option<u64> {
        (self != Self::Unknown)
            .then(|| u64::from(rustix::system::sysinfo().procs).saturating_sub(1))
    }
}

/// Threads of all processes but the guest; stops to count above `enough`.
pub(crate) fn count_threads(kernel_use: KernelUse, enough: u64) -> u64 {
    if let Some(threads) = kernel_use.threads()
        && (kernel_use == KernelUse::Alone || threads <= enough)
    {
        return threads;
    }
    let mut threads: u64 = 0;
    for pid in pids() {
        // A process that has just vanished counts no more; one that cannot be read counts as one.
        threads += Stat::read(pid).map_or(1, |stat| stat.threads.max(1));
        if threads > enough {
            break;
        }
    }
    threads
}

/// Sends a signal to every process of the container but the guest.
///
/// # Errors
/// The kernel's; nobody to signal is no error.
pub(crate) fn signal_everyone(signal: i32) -> Result<(), Errno> {
    let answer = if rustix::process::getpid() == rustix::process::Pid::INIT {
        atoll_sys::signals::signal_everyone(signal)
    } else {
        signal_descendants(signal)
    };
    match answer {
        Err(Errno::SRCH) => Ok(()),
        answer => answer,
    }
}

/// In a shared pid namespace everyone is who descends from the guest. Who forks while the list is read is not in it, and what it has
/// forked is in the next one: so until nobody is new. A process that has been sent SIGKILL forks no more.
fn signal_descendants(signal: i32) -> Result<(), Errno> {
    let mut signalled = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let mut new = descendants();
        new.retain(|pid| !signalled.contains(pid));
        if new.is_empty() {
            break;
        }
        for pid in &new {
            match atoll_sys::signals::signal_process(*pid, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        signalled.append(&mut new);
    }
    Ok(())
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// All process numbers that /proc shows, but the guest's.
fn pids() -> impl Iterator<Item = i32> {
    let own = own_pid();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != own)
}

fn descendants() -> Vec<i32> {
    let mut unsettled: Vec<(i32, i32)> =
        pids().filter_map(|pid| Some((pid, Stat::read(pid)?.parent))).collect();
    let mut found = vec![own_pid()];
    loop {
        let before = found.len();
        unsettled.retain(|(pid, parent)| {
            let below = found.contains(parent);
            if below {
                found.push(*pid);
            }
            !below
        });
        if found.len() == before {
            found.remove(0);
            return found;
        }
    }
}

fn read(pid: i32) -> Option<ProcessInfo> {
    let stat = Stat::read(pid)?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let page_kib = u64::try_from(rustix::param::page_size() / 1024).unwrap_or(4);
    Some(ProcessInfo {
        pid,
        parent_pid: stat.parent,
        uid: read_uid(pid).unwrap_or(u32::MAX),
        resident_kib: stat.resident_pages.saturating_mul(page_kib),
        cpu_millis: stat.cpu_ticks.saturating_mul(1000) / ticks,
        command: read_command(pid).unwrap_or(stat.name),
    })
}

/// What of /proc/PID/stat is needed. SOURCE: proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: i32,
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&read_bounded(&format!("/proc/{pid}/stat"), 4096)?))
    }

    /// The name may hold spaces and parentheses: fields are counted from the last one.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // The first of them is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            name: format!("[{name}]"),
            parent: fields.get(1)?.parse().ok()?,
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            resident_pages: field(24).unwrap_or(0),
        })
    }
}

fn read_uid(pid: i32) -> Option<u32> {
    let status = read_bounded(&format!("/proc/{pid}/status"), 4096)?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn read_command(pid: i32) -> Option<String> {
    let line = read_bounded(&format!("/proc/{pid}/cmdline"), MAX_COMMAND_BYTES)?;
    let text = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
    (!text.is_empty()).then_some(text)
}

fn read_bounded(path: &str, most_bytes: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most_bytes).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_moves_no_field() {
        let numbers: Vec<String> = (5..=52).map(|field| field.to_string()).collect();
        let text = format!("9 (a) R 1 1 (b) S 4 {}", numbers.join(" "));
        let stat = Stat::parse(&text).unwrap();
        let expected = Stat {
            name: "[a) R 1 1 (b]".into(),
            parent: 4,
            cpu_ticks: 29,
            threads: 20,
            resident_pages: 24,
        };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("9 (a) R"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn only_known_arguments_are_taken() {
        let read = |arguments: &[&str]| {
            KernelUse::from_arguments(arguments.iter().map(ToString::to_string)).ok()
        };
        assert_eq!(read(&[]), Some(KernelUse::Unknown));
        assert_eq!(read(&["alone"]), Some(KernelUse::Alone));
        assert_eq!(read(&["shared"]), Some(KernelUse::Shared));
        assert_eq!(read(&["other"]), None);
        assert_eq!(read(&["alone", "shared"]), None);
    }

    #[test]
    fn counting_stops_when_there_are_enough() {
        assert!(count_threads(KernelUse::Unknown, 0) >= 1);
        assert!(!list().iter().any(|process| process.pid == own_pid()));
    }
}
