//! Pseudo-terminals of the container's own devpts.

use std::os::fd::OwnedFd;

use atoll_wire::guest::{TerminalSize, UserIds};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Both ends of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The guest's end, never waited for.
    pub(crate) master: OwnedFd,
    /// The process's end.
    pub(crate) peer: OwnedFd,
}

/// Where terminals are made. The workload may have replaced either: what is no such device is refused by the kernel below.
const MULTIPLEXERS: [&str; 2] = ["/dev/pts/ptmx", "/dev/ptmx"];

impl Terminal {
    /// Makes one of that size which the user may open again by its name.
    ///
    /// # Errors
    /// The kernel's: no devpts in the container, or too many terminals.
    pub(crate) fn open(size: TerminalSize, user: &UserIds) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = |path: &str| {
            let master = rustix::fs::open(path, flags, Mode::empty())?;
            rustix::pty::unlockpt(&master)?;
            Ok::<_, Errno>(master)
        };
        let [first, second] = MULTIPLEXERS;
        let master = open(first).or_else(|_| open(second))?;
        let peer = open_peer(&master)?;
        // Best effort: without CAP_CHOWN the process can use its terminal, only not open it again.
        let _ = rustix::fs::fchown(
            &peer,
            Some(rustix::fs::Uid::from_raw(user.uid)),
            Some(rustix::fs::Gid::from_raw(user.gid)),
        );
        resize(&master, size)?;
        Ok(Self { master, peer })
    }
}

/// By the master, and not by a name that the workload can change; gVisor knows only names.
fn open_peer(master: &OwnedFd) -> Result<OwnedFd, Errno> {
    let by_master = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    if let Ok(peer) = rustix::pty::ioctl_tiocgptpeer(master, by_master) {
        return Ok(peer);
    }
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(name.as_c_str(), flags, Mode::empty())
}

/// Changes the size; the kernel tells the processes of the terminal.
///
/// # Errors
/// The kernel's, when it is no terminal.
pub(crate) fn resize(master: &OwnedFd, size: TerminalSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}
