//! A child in the memory of its parent, which goes on meanwhile.
//!
//! INVARIANT: what the child runs on and reads lives until the kernel has said, by the end of the status pipe, that the child is in its
//! program or gone; what is never told is never freed. The child writes nothing but its own stack ([`super::child`]).

use std::ffi::c_void;

use super::ForkError;
use super::child::Plan;
use crate::errno::last_errno;

/// The child makes system calls from a handful of small functions; a build without optimisation takes 3 KiB.
const STACK_BYTES: usize = 64 * 1024;
/// SOURCE: the calling conventions of x86_64 and aarch64 both want 16.
const STACK_ALIGNMENT: usize = 16;

/// What a child was lent.
#[derive(Debug)]
pub(super) struct Lent(Option<Box<(Plan, Vec<u8>)>>);

impl Lent {
    /// The child needs it no more.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lent {
    /// Nobody knows where the child is: its memory stays for ever. Rare: a caller that does not wait to hear of a start.
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

/// Starts the child.
///
/// # Errors
/// [`ForkError`].
pub(super) fn start(plan: Plan) -> Result<(i32, Lent), ForkError> {
    extern "C" fn run(plan: *mut c_void) -> libc::c_int {
        // SAFETY: the plan below, which outlives the child's way to its program.
        unsafe { (*plan.cast_const().cast::<Plan>()).execute() }
    }
    let mut lent = Box::new((plan, vec![0_u8; STACK_BYTES]));
    let (plan, stack) = &mut *lent;
    let end = stack.as_mut_ptr_range().end;
    let top = end.wrapping_sub(end.addr() % STACK_ALIGNMENT);
    let plan = std::ptr::from_mut(plan).cast::<c_void>();
    // SAFETY: the child runs `Plan::execute` on a stack of its own, which grows downwards within the vector; plan and stack stay where they
    // are until the child is in its program or gone. It has its own descriptors and signal dispositions. It never returns.
    match unsafe { libc::clone(run, top.cast(), libc::CLONE_VM | libc::SIGCHLD, plan) } {
        -1 => Err(last_errno().into()),
        pid => Ok((pid, Lent(Some(lent)))),
    }
}
