//! Listing, freezing, killing and removing a group. All waits are bounded and end as soon as the kernel tells.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Cgroup, CgroupError, Group, Version, files};

/// How long killed processes may take to be gone (guess: a core dump or a slow disk flush takes less).
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
/// How long freezing may take before it is given up (guess: tasks in uninterruptible sleep hold it up).
const FROZEN_WITHIN: Duration = Duration::from_secs(2);
/// Bounds of the waits between looks at a v1 file, which cannot be polled.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// Rounds of freeze, kill, thaw on v1; one is enough unless freezing timed out.
const KILL_ROUNDS: usize = 5;
/// Our groups are two deep; the bound only guards against a loop that cannot be.
const DEEPEST: usize = 8;

impl Cgroup {
    /// The processes of the group and the groups below it, in no order. Those that this process's pid namespace cannot
    /// name are left out.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        collect_processes(&self.groups.core.dir, 0, &mut pids)?;
        Ok(pids)
    }

    /// Sends SIGKILL to every process of the group and the groups below it, newborn ones included; does not wait for their end
    /// ([`wait_empty`](Self::wait_empty)). A group that does not exist has nobody to kill.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let core = &self.groups.core;
        if !core.dir.exists() {
            return Ok(());
        }
        if core.version == Version::V2 && core.file("cgroup.kill").exists() {
            return match files::write(&core.file("cgroup.kill"), "1") {
                Err(error) if gone(&error) => Ok(()),
                other => other,
            };
        }
        self.kill_one_by_one()
    }

    /// For kernels without cgroup.kill (v1, and v2 before 5.14): nobody forks while frozen, and a frozen process keeps its
    /// pid until it is thawed, so no signal can hit a stranger.
    pub(super) fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        for _ in 0..KILL_ROUNDS {
            let frozen = self.freeze();
            let pids = match self.processes() {
                Err(error) if gone(&error) => return Ok(()),
                other => other?,
            };
            for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        return Err(CgroupError::io("kill in", &self.groups.core.dir, errno));
                    }
                }
            }
            self.thaw()?;
            if frozen.is_ok() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until no process is left, at most `within`. Event-driven under v2; short growing pauses under v1.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] names who is left.
    pub fn wait_empty(&self, within: Duration) -> Result<(), CgroupError> {
        let core = &self.groups.core;
        let empty = match core.version {
            Version::V2 => wait_for_event(&core.file("cgroup.events"), "populated", 0, within),
            Version::V1 => pause_until(within, || Ok(self.processes()?.is_empty())),
        };
        match empty {
            Ok(true) => Ok(()),
            Err(error) if gone(&error) => Ok(()),
            Ok(false) => {
                let mut pids = self.processes().unwrap_or_default();
                pids.truncate(16);
                let waited_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                Err(CgroupError::NotEmpty { path: core.dir.clone(), pids, waited_ms })
            }
            Err(error) => Err(error),
        }
    }

    /// Stops all processes of the group and waits until they are stopped.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        let core = &self.groups.core;
        let frozen = match core.version {
            Version::V2 => {
                files::write(&core.file("cgroup.freeze"), "1")?;
                wait_for_event(&core.file("cgroup.events"), "frozen", 1, FROZEN_WITHIN)?
            }
            Version::V1 => {
                let path = core.file("freezer.state");
                files::write(&path, "FROZEN")?;
                pause_until(FROZEN_WITHIN, || Ok(files::read(&path)?.trim() == "FROZEN"))?
            }
        };
        if frozen {
            return Ok(());
        }
        // Half-frozen helps nobody.
        self.thaw()?;
        Err(CgroupError::io("freeze in time", &core.dir, Errno::TIMEDOUT))
    }

    /// Lets the processes of the group run again.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let core = &self.groups.core;
        match core.version {
            Version::V2 => files::write(&core.file("cgroup.freeze"), "0"),
            Version::V1 => files::write(&core.file("freezer.state"), "THAWED"),
        }
    }

    /// Kills what is left, waits (bounded) and removes the group with all groups below it, in every hierarchy. Done already
    /// is done: half-made and half-removed groups are fine.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let core = &self.groups.core;
        if core.dir.exists() {
            if !is_empty(core)? {
                self.kill_all()?;
            }
            self.wait_empty(EMPTY_WITHIN)?;
        }
        // The killing hierarchy goes last: a crash in between leaves a group that is still listed and can be killed.
        for group in self.groups.distinct().into_iter().rev() {
            remove_tree(&group.dir, 0)?;
        }
        Ok(())
    }
}

/// One read where the kernel says it, else a listing.
fn is_empty(core: &Group) -> Result<bool, CgroupError> {
    let answer = match core.version {
        Version::V2 => {
            files::read_keyed(&core.file("cgroup.events"), "populated").map(|number| number == 0)
        }
        Version::V1 => {
            let mut pids = Vec::new();
            collect_processes(&core.dir, 0, &mut pids).map(|()| pids.is_empty())
        }
    };
    match answer {
        Err(error) if gone(&error) => Ok(true),
        other => other,
    }
}

/// ENOENT before opening, ENODEV on a file of a group that was removed meanwhile.
pub(super) fn gone(error: &CgroupError) -> bool {
    let errno = error.errno();
    errno == Some(Errno::NOENT.raw_os_error()) || errno == Some(Errno::NODEV.raw_os_error())
}

fn collect_processes(dir: &Path, depth: usize, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    // Not through `files::read`: a list of processes is as long as the pids limit allows.
    let path = dir.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(|source| CgroupError::io("read", path, source))?;
    // 0 stands for a process outside this pid namespace.
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    if depth < DEEPEST {
        for child in files::child_groups(dir)? {
            match collect_processes(&dir.join(child), depth + 1, pids) {
                Err(error) if gone(&error) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Waits until `key` in a v2 events file is `wanted`; false when time ran out.
fn wait_for_event(
    path: &Path,
    key: &'static str,
    wanted: u64,
    within: Duration,
) -> Result<bool, CgroupError> {
    let deadline = Instant::now() + within;
    let mut file = File::open(path).map_err(|source| CgroupError::io("open", path, source))?;
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_string(&mut text))
            .map_err(|source| CgroupError::io("read", path, source))?;
        let value = files::find_number(&text, key)
            .ok_or_else(|| CgroupError::Unexpected { path: path.into(), wanted: key })?;
        if value == wanted {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(CgroupError::io("poll", path, errno)),
        }
    }
}

/// Looks again and again with growing pauses, for what a v1 kernel cannot tell; false when time ran out.
fn pause_until(
    within: Duration,
    mut reached: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<bool, CgroupError> {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        if reached()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn remove_tree(dir: &Path, depth: usize) -> Result<(), CgroupError> {
    if depth < DEEPEST {
        for child in files::child_groups(dir)? {
            remove_tree(&dir.join(child), depth + 1)?;
        }
    }
    remove_dir(dir)
}

/// rmdir, retried for a bounded time while the kernel still finishes the last process's exit.
fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    let mut pause = FIRST_PAUSE;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source)
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                    && Instant::now() < deadline => {}
            Err(source) => return Err(CgroupError::io("remove", dir, source)),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
