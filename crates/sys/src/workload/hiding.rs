//! Keeps descriptors out of a child: while it is forked they are under way in a socket, and a kernel that lets root open what another
//! process has open (gVisor) has nothing to show but sockets, which no kernel opens again.
//!
//! For a process of one thread.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// How many descriptors are hidden: standard input, output and error.
const HIDDEN: usize = 3;

/// Where the standard streams are put while a child is made.
#[derive(Debug)]
pub struct HidingPlace {
    sender: OwnedFd,
    receiver: OwnedFd,
}

/// The standard streams could not be taken back: the caller has lost them.
#[derive(Debug, thiserror::Error)]
#[error("the standard streams are lost")]
pub struct Lost {
    /// The kernel's answer.
    #[from]
    pub source: Errno,
}

impl HidingPlace {
    /// Makes one.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok(Self { sender, receiver })
    }

    /// Does something without the standard streams, and takes them back. `work` leaves no descriptor open in this process: their numbers
    /// are free meanwhile, and wanted again.
    ///
    /// # Errors
    /// The outer when they could not be put away, and nothing was done; [`Lost`] when they did not come back.
    pub fn without_standard_streams<T>(
        &self,
        work: impl FnOnce() -> T,
    ) -> Result<Result<T, Lost>, Errno> {
        let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        self.send([input, output, rustix::stdio::stderr()])?;
        // SAFETY: nobody uses the numbers until they are taken back below: the process has one thread, and `work` is told.
        unsafe {
            libc::close(libc::STDIN_FILENO);
            libc::close(libc::STDOUT_FILENO);
            libc::close(libc::STDERR_FILENO);
        }
        let done = work();
        Ok(self.take_back().map(|()| done).map_err(Lost::from))
    }

    fn send(&self, hidden: [BorrowedFd<'_>; HIDDEN]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HIDDEN))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&hidden));
        let byte = [IoSlice::new(b"x")];
        sendmsg(&self.sender, &byte, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// The kernel gives the lowest free numbers, in order: 0 to 2.
    fn take_back(&self) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HIDDEN))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        recvmsg(&self.receiver, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let came: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if came.len() != HIDDEN {
            return Err(Errno::BADF);
        }
        if !(0..).zip(&came).all(|(number, descriptor)| descriptor.as_raw_fd() == number) {
            return Err(Errno::BADF);
        }
        // Standard streams are nobody's to close.
        came.into_iter().for_each(std::mem::forget);
        Ok(())
    }
}
