//! A compiled filter as the kernel takes it: read from bytes, put in force.

use std::sync::Arc;

use rustix::io::Errno;

use super::compile::{INSTRUCTION_BYTES, MOST_INSTRUCTIONS};
use crate::bare::call;

/// A system call filter, ready to be put in force, by a process just forked too. Copies share it.
#[derive(Clone)]
pub struct Filter(pub(super) Arc<[libc::sock_filter]>);

impl Filter {
    /// Reads an array of `struct sock_filter` as bytes; `None` when it cannot be one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let instructions = bytes.len() / INSTRUCTION_BYTES;
        if !bytes.len().is_multiple_of(INSTRUCTION_BYTES)
            || instructions == 0
            || instructions > MOST_INSTRUCTIONS
        {
            return None;
        }
        let read = |bytes: &[u8]| libc::sock_filter {
            code: u16::from_le_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        };
        Some(Self(bytes.chunks_exact(INSTRUCTION_BYTES).map(read).collect()))
    }

    /// Puts the filter on the calling thread and all it will start. Needs no_new_privs (or CAP_SYS_ADMIN); cannot be undone. Makes a
    /// bare system call and nothing else.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn install(&self) -> Result<(), Errno> {
        let len = u16::try_from(self.0.len()).map_err(|_| Errno::INVAL)?;
        let program = libc::sock_fprog { len, filter: self.0.as_ptr().cast_mut() };
        let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
        // SAFETY: `program` points to `len` initialised instructions that live until the call returns; the kernel copies and
        // checks them and writes nothing.
        unsafe { call(libc::SYS_seccomp, [mode, 0, std::ptr::from_ref(&program).addr()]) }.map(drop)
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Filter({} instructions)", self.0.len())
    }
}
