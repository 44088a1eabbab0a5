//! The error number of the C library's last call.

use rustix::io::Errno;

/// Right only directly behind the call that failed. Allocates nothing: children just forked use it.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
