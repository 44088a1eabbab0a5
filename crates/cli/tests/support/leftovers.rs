//! What an instance may leave on the host, and must not: processes, mounts, control groups, loop devices, directories.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Everything of an instance that is still there.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// `pid: command line`.
    pub processes: Vec<String>,
    /// Mount points.
    pub mounts: Vec<String>,
    /// Directories below /sys/fs/cgroup.
    pub groups: Vec<PathBuf>,
    /// Loop devices with their files.
    pub loops: Vec<String>,
    /// Directories of sandboxes.
    pub directories: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for all of it.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            processes: processes_of(data_dir)
                .into_iter()
                .map(|pid| format!("{pid}: {}", command_line(pid)))
                .collect(),
            mounts: mounts(data_dir),
            groups: groups(&instance_name(data_dir)),
            loops: loops(data_dir),
            directories: entries(&data_dir.join("sandboxes")),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.mounts.is_empty()
            && self.groups.is_empty()
            && self.loops.is_empty()
            && self.directories.is_empty()
    }

    /// Removes what can be removed, for a test that failed.
    pub fn remove(data_dir: &Path) {
        for _ in 0..3 {
            for pid in processes_of(data_dir) {
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        for point in mounts(data_dir) {
            let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
        }
        let mut groups = groups(&instance_name(data_dir));
        groups.sort_by_key(|group| std::cmp::Reverse(group.components().count()));
        for group in groups {
            let _ = fs::remove_dir(group);
        }
    }
}

fn instance_name(data_dir: &Path) -> String {
    atoll_runtime::shim::instance_name(data_dir)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

fn pids() -> Vec<i32> {
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect()
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// Live processes that are an instance's: in its control groups, of its programs, or called with its directory.
pub fn processes_of(data_dir: &Path) -> Vec<i32> {
    let directory = data_dir.display().to_string();
    let name = instance_name(data_dir);
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let belongs = |pid: i32| {
        let in_group = fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|groups| groups.contains(&name));
        let of_program = fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|program| program.starts_with(data_dir));
        in_group || of_program || command_line(pid).contains(&directory)
    };
    let alive = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
    };
    pids().into_iter().filter(|pid| *pid != own && alive(*pid) && belongs(*pid)).collect()
}

fn mounts(data_dir: &Path) -> Vec<String> {
    let directory = data_dir.display().to_string();
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains(&directory))
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .collect()
}

/// Directories of the cgroup hierarchies that carry the instance's name, with all below them.
fn groups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![(PathBuf::from("/sys/fs/cgroup"), false)];
    while let Some((directory, within)) = waiting.pop() {
        for path in entries(&directory) {
            if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                continue;
            }
            let named = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|text| text.contains(name));
            if within || named {
                found.push(path.clone());
            }
            waiting.push((path, within || named));
        }
    }
    found
}

fn loops(data_dir: &Path) -> Vec<String> {
    let directory = data_dir.display().to_string();
    entries(Path::new("/sys/block"))
        .into_iter()
        .filter_map(|device| {
            let file = fs::read_to_string(device.join("loop/backing_file")).ok()?;
            file.contains(&directory).then(|| format!("{}: {}", device.display(), file.trim()))
        })
        .collect()
}
