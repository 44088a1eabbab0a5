//! File descriptors that become ready when a group runs out of memory or tasks. They only wake: counts say what happened.
//!
//! v2 files are watched by polling the file itself for POLLPRI, not through inotify, because inotify instances
//! are few per user (128 by default) and a host runs thousands of groups. v1 memory tells through an eventfd (POLLIN).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::{Cgroup, CgroupError, Version, files};

/// One watched control file, in either way of watching.
#[derive(Debug)]
enum Source {
    /// v1: readable when the event happened.
    Eventfd(OwnedFd),
    /// v2: "priority" readable when the file's content changed since it was last read.
    File(File),
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Eventfd(fd) => fd.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }

    fn interest(&self) -> PollFlags {
        match self {
            Self::Eventfd(_) => PollFlags::IN,
            Self::File(_) => PollFlags::PRI,
        }
    }

    fn acknowledge(&mut self) -> std::io::Result<()> {
        match self {
            Self::Eventfd(fd) => match rustix::io::read(fd.as_fd(), &mut [0_u8; 8]) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
            Self::File(file) => {
                file.seek(SeekFrom::Start(0))?;
                // One read of the whole content is what arms the next notification.
                file.read(&mut [0_u8; 4096]).map(drop)
            }
        }
    }

    /// A control file, read once so that only later changes wake.
    fn of_file(path: PathBuf) -> Result<Self, CgroupError> {
        let file = File::open(&path).map_err(|source| CgroupError::io("open", &path, source))?;
        let mut source = Self::File(file);
        source.acknowledge().map_err(|source| CgroupError::io("read", path, source))?;
        Ok(source)
    }
}

macro_rules! watch_methods {
    ($name:ident) => {
        impl $name {
            /// The events to poll the descriptor for: IN or PRI, by cgroup version.
            #[must_use]
            pub fn interest(&self) -> PollFlags {
                self.source.interest()
            }

            /// Arms the next wake-up; call it after each one and before reading the count.
            pub fn acknowledge(&mut self) -> Result<(), CgroupError> {
                self.source.acknowledge().map_err(|source| {
                    CgroupError::io("read events of", &self.group.groups.core.dir, source)
                })
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.source.fd()
            }
        }
    };
}

/// Wakes when the group runs out of memory; removal of the group may wake it too.
#[derive(Debug)]
pub struct OomWatch {
    source: Source,
    group: Cgroup,
}

/// Wakes when a task is refused because of a pids limit; removal of the group may wake it too.
#[derive(Debug)]
pub struct PidsWatch {
    source: Source,
    group: Cgroup,
}

watch_methods!(OomWatch);
watch_methods!(PidsWatch);

impl OomWatch {
    /// See [`Cgroup::oom_kills`].
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.group.oom_kills()
    }
}

impl PidsWatch {
    /// See [`Cgroup::pids_limit_hits`].
    pub fn pids_limit_hits(&self) -> Result<u64, CgroupError> {
        self.group.pids_limit_hits()
    }
}

impl Cgroup {
    /// Watches for "out of memory". Under v1 a group hears of its own and its ancestors' limits, not its children's: watch the
    /// container's group.
    pub fn oom_watch(&self) -> Result<OomWatch, CgroupError> {
        let memory = &self.groups.memory;
        let source = match memory.version {
            Version::V2 => Source::of_file(memory.file("memory.events"))?,
            Version::V1 => {
                let path = memory.file("memory.oom_control");
                let control =
                    File::open(&path).map_err(|source| CgroupError::io("open", &path, source))?;
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(|errno| CgroupError::io("make an eventfd for", &path, errno))?;
                // SOURCE: Documentation/admin-guide/cgroup-v1/memory.rst section 9: "<event_fd> <fd of the control file>".
                let registration = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
                files::write(&memory.file("cgroup.event_control"), &registration)?;
                Source::Eventfd(event)
            }
        };
        Ok(OomWatch { source, group: self.clone() })
    }

    /// Watches for tasks refused by a pids limit; see [`Cgroup::pids_limit_hits`] for whose limit. `None` under v1, whose
    /// `pids.events` counts but wakes nobody (seen on 6.18): read the count at exits and whenever stats are read.
    pub fn pids_watch(&self) -> Result<Option<PidsWatch>, CgroupError> {
        let pids = &self.groups.pids;
        if pids.version == Version::V1 {
            return Ok(None);
        }
        let source = Source::of_file(pids.file("pids.events"))?;
        Ok(Some(PidsWatch { source, group: self.clone() }))
    }
}
