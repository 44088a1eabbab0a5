//! Sockets that belong to one interface.
//!
//! Owns the one option that the kernel has for it by number. A socket bound so gets nothing that arrives elsewhere, while its port is taken for
//! everybody who binds without an interface.

use std::ffi::c_int;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Loopback, in every network namespace. SOURCE: LOOPBACK_IFINDEX in include/net/flow.h of Linux.
pub const LOOPBACK: InterfaceIndex = InterfaceIndex(1);
/// No interface ever: the kernel counts from 1, and takes this number without looking whether there is such a one. What is bound to it keeps a
/// port and receives nothing, so that whoever calls there is refused as if nobody held it.
pub const NOWHERE: InterfaceIndex = InterfaceIndex(c_int::MAX);

/// The number of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceIndex(c_int);

/// Gives a socket that is not yet bound to an address to an interface.
///
/// # Errors
/// The kernel's answer; Linux has the option since 5.1.
pub fn bind_to_interface(socket: impl AsFd, interface: InterfaceIndex) -> Result<(), Errno> {
    let InterfaceIndex(value) = interface;
    // Never fails: four bytes.
    let length = libc::socklen_t::try_from(size_of::<c_int>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads `length` bytes from a number that lives until the call returns.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const value).cast(),
            length,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
