//! Ends a test program that hangs, and says where: in CI nobody is there to look.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Watches a case until it is dropped.
pub(crate) struct Watchdog {
    /// Only its end is told.
    _alive: Sender<()>,
}

impl Watchdog {
    /// Of a case that works below `place`: its processes are known by it.
    pub(crate) fn of(name: &str, place: &Path, within: Duration) -> Self {
        let (alive, end) = channel();
        let (name, place) = (name.to_owned(), place.to_string_lossy().into_owned());
        std::thread::spawn(move || {
            if end.recv_timeout(within) == Err(RecvTimeoutError::Timeout) {
                let told = format!("{name} hangs: no end after {within:?}\n{}", tasks(&place));
                // Not what a test prints: that is kept until the test's end.
                let _ = std::io::stderr().write_all(told.as_bytes());
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Where every thread of this program stands, and of those that work for the case.
fn tasks(place: &str) -> String {
    let mut told = String::new();
    let own = std::process::id().to_string();
    for process in numbered("/proc") {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if process != own && !line.contains(place) && parent(&process) != own {
            continue;
        }
        let _ = writeln!(told, "process {process}: {line}");
        for task in numbered(&format!("/proc/{process}/task")) {
            let of = |file: &str| {
                let path = format!("/proc/{process}/task/{task}/{file}");
                fs::read_to_string(path).unwrap_or_default().trim().replace('\n', " < ")
            };
            let (name, call, stack) = (of("comm"), of("syscall"), of("stack"));
            let _ = writeln!(told, "  {task} {name}: call {call}: {stack}");
        }
    }
    told
}

fn parent(process: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap_or_default().trim().to_owned()
}

fn numbered(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}
