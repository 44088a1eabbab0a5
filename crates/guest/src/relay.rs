//! A first process that only carries bytes between the channel and the guest, its child, for a kernel that lets root open what another
//! process has open (gVisor: `/proc/PID/fd` of a process that is not dumpable can be opened by root).
//!
//! Owns the channel's descriptors. The guest, and whatever it forks, never has more than sockets, which no kernel opens again through
//! /proc; the relay's own directory of descriptors is covered by a mount. All that before the first frame reaches the guest.
//! It also sets gVisor's own pids limit, which the kernel of the host does not know, and covers the place where it is set.
//!
//! What root inside can do is to kill the relay: the container ends then.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_sys::forking::{Forked, SingleThread};
use atoll_sys::poll_set::PollSet;
use atoll_sys::process::{self, Exit, Wait};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The argument that asks for a relay; the limit of processes follows, and whether other containers share the kernel.
const ARGUMENT: &str = "relay";
const ALONE: &str = "alone";
const SHARED: &str = "shared";
/// gVisor's control groups, as the container's configuration has them mounted for its first process.
const CGROUP_DIRECTORY: &str = "/sys/fs/cgroup";
const PIDS_LIMIT_FILE: &str = "/sys/fs/cgroup/pids/pids.max";
/// Processes that are not the workload's.
const RELAY_AND_GUEST: u64 = 2;
/// Processes above the workload's limit that gVisor lets be: one more, so that the guest sees a count above the limit and ends the
/// workload for that reason. gVisor 20240729 counts loosely: under a fork bomb its own limit only slows.
const PIDS_BESIDE_WORKLOAD: u64 = RELAY_AND_GUEST + 1;
/// Bytes under way in one direction: a pipe's worth.
const BUFFER_BYTES: usize = 64 * 1024;

/// Set in a guest whose parent is a relay.
static BETWEEN: AtomicBool = AtomicBool::new(false);
/// Set in such a guest when its kernel has no other container.
static IS_ALONE: AtomicBool = AtomicBool::new(false);

/// Who this process is now.
pub(crate) enum Side {
    /// The guest.
    Guest,
    /// A relay whose guest has ended.
    Relay {
        /// What the guest's end was.
        code: i32,
    },
}

/// Whether the first process of the container is a relay and this its guest.
pub(crate) fn is_between() -> bool {
    BETWEEN.load(Ordering::Relaxed)
}

/// Threads that the kernel has beside relay and guest, those of other containers included; `None` without a relay. One system call, which
/// a guest gets through even when it must share a CPU with a thousand processes: reading /proc would take seconds then.
pub(crate) fn kernel_threads() -> Option<KernelThreads> {
    if !is_between() {
        return None;
    }
    let all = u64::from(rustix::system::sysinfo().procs);
    let count = all.saturating_sub(RELAY_AND_GUEST);
    Some(KernelThreads { count, only_ours: IS_ALONE.load(Ordering::Relaxed) })
}

/// See [`kernel_threads`].
pub(crate) struct KernelThreads {
    /// How many.
    pub(crate) count: u64,
    /// All of them are the workload's.
    pub(crate) only_ours: bool,
}

/// Without arguments this process is the guest. With `relay LIMIT alone|shared` it becomes the relay, and a child of it the guest; returns in both.
///
/// # Errors
/// For other arguments, or when the kernel does not grant all of it: then nothing may run.
pub(crate) fn take_sides(mut arguments: impl Iterator<Item = String>) -> std::io::Result<Side> {
    match arguments.next().as_deref() {
        None => return Ok(Side::Guest),
        Some(ARGUMENT) => {}
        Some(other) => return Err(std::io::Error::other(format!("{other:?} is no argument"))),
    }
    let limit = arguments.next().and_then(|limit| limit.parse::<u64>().ok());
    let limit = limit.ok_or_else(|| std::io::Error::other("the limit of processes is missing"))?;
    let alone = match arguments.next().as_deref() {
        Some(ALONE) => true,
        Some(SHARED) => false,
        _ => return Err(std::io::Error::other("alone or shared is missing")),
    };
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err(std::io::Error::other("a relay must be the first process"));
    }
    limit_pids(limit)?;
    let single = SingleThread::verify()?;
    let (channel, guest_channel) = sockets()?;
    let (diagnostics, guest_diagnostics) = sockets()?;
    match single.fork()? {
        Forked::Child => {
            rustix::stdio::dup2_stdin(&guest_channel)?;
            rustix::stdio::dup2_stdout(&guest_channel)?;
            rustix::stdio::dup2_stderr(&guest_diagnostics)?;
            process::become_child_subreaper().map_err(std::io::Error::other)?;
            BETWEEN.store(true, Ordering::Relaxed);
            IS_ALONE.store(alone, Ordering::Relaxed);
            Ok(Side::Guest)
        }
        Forked::Parent(guest) => {
            drop((guest_channel, guest_diagnostics));
            cover_descriptors()?;
            Ok(Side::Relay { code: carry(guest, &channel, &diagnostics)? })
        }
    }
}

fn sockets() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Failing closed: a limit that cannot be set, or a place that cannot be covered, is an error.
fn limit_pids(limit: u64) -> std::io::Result<()> {
    fs::write(PIDS_LIMIT_FILE, limit.saturating_add(PIDS_BESIDE_WORKLOAD).to_string())?;
    cover(CGROUP_DIRECTORY)
}

fn cover_descriptors() -> std::io::Result<()> {
    // The one thread of the first process.
    cover("/proc/1/fd")?;
    cover("/proc/1/task/1/fd")
}

/// Hides what is at a path below an empty, read-only file system.
fn cover(path: &str) -> std::io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", path, "tmpfs", flags, c"size=4096,mode=000")
        .map_err(|errno| std::io::Error::other(format!("cannot cover {path}: {errno}")))
}

/// Carries bytes until the guest has ended, and what it said last as far as the host takes it at once.
fn carry(guest: i32, channel: &OwnedFd, diagnostics: &OwnedFd) -> std::io::Result<i32> {
    let (stdin, stdout, stderr) =
        (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
    let mut directions = [
        Direction::new(stdin, channel.as_fd()),
        Direction::new(channel.as_fd(), stdout),
        Direction::new(diagnostics.as_fd(), stderr),
    ];
    let mut poll = PollSet::new();
    loop {
        if let Some(exit) = guest_exit(guest)? {
            directions.iter_mut().for_each(Direction::advance);
            return Ok(exit.shell_code());
        }
        poll.clear();
        let slots = directions.each_ref().map(|direction| direction.add_to(&mut poll));
        poll.wait(None)?;
        for (direction, slot) in directions.iter_mut().zip(slots) {
            if slot.is_some_and(|slot| poll.is_ready(slot)) {
                direction.advance();
            }
        }
    }
}

/// The guest's end, if it has ended; orphans that outlived a guest are reaped by the kernel with this process.
fn guest_exit(guest: i32) -> std::io::Result<Option<Exit>> {
    process::reap(guest, Wait::Now).map_err(std::io::Error::other)
}

/// One way of bytes. Reads no more before what was read is written: whoever does not read makes the other side wait.
struct Direction<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are filled, and of these, written.
    filled: usize,
    written: usize,
    ended: bool,
}

impl<'a> Direction<'a> {
    fn new(from: BorrowedFd<'a>, to: BorrowedFd<'a>) -> Self {
        Self { from, to, buffer: vec![0; BUFFER_BYTES], filled: 0, written: 0, ended: false }
    }

    fn add_to(&self, poll: &mut PollSet) -> Option<atoll_sys::poll_set::Slot> {
        if self.written < self.filled {
            Some(poll.add_writer(self.to))
        } else if self.ended {
            None
        } else {
            Some(poll.add_reader(self.from))
        }
    }

    /// Reads and writes as much as goes without waiting.
    fn advance(&mut self) {
        loop {
            if self.written == self.filled {
                match rustix::io::read(self.from, &mut self.buffer) {
                    Ok(0) => self.ended = true,
                    Ok(read) => (self.filled, self.written) = (read, 0),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return,
                    Err(_) => self.ended = true,
                }
                if self.ended {
                    return;
                }
            }
            match rustix::io::write(self.to, &self.buffer[self.written..self.filled]) {
                Ok(written) => self.written += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody will read it: dropped, so that the writer does not wait for ever.
                Err(_) => self.written = self.filled,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_in_order_through_a_reader_that_stalls() {
        let (near, from) = sockets().unwrap();
        let (to, far) = sockets().unwrap();
        let mut direction = Direction::new(from.as_fd(), to.as_fd());
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        let (mut offered, mut got) = (0, Vec::new());
        let mut part = vec![0; 10_000];
        while got.len() < sent.len() {
            // Offers all that goes, carries all that goes, takes little: each side stalls in turn.
            while let Ok(bytes) = rustix::io::write(&near, &sent[offered..]) {
                offered += bytes;
                if bytes == 0 {
                    break;
                }
            }
            direction.advance();
            if let Ok(bytes) = rustix::io::read(&far, &mut part) {
                got.extend_from_slice(&part[..bytes]);
            }
        }
        assert_eq!(got, sent);
        drop(near);
        direction.advance();
        assert!(direction.ended, "an end is seen");
    }

    #[test]
    fn only_known_arguments_and_only_a_first_process_are_taken() {
        let sides = |arguments: &[&str]| take_sides(arguments.iter().map(ToString::to_string));
        assert!(matches!(sides(&[]), Ok(Side::Guest)));
        for wrong in [
            &["other"][..],
            &["relay"],
            &["relay", "-1", ALONE],
            &["relay", "5"],
            &["relay", "5", ALONE],
        ] {
            assert!(sides(wrong).is_err(), "{wrong:?}");
        }
    }
}
