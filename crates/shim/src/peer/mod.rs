//! Who answers for a container: atoll's guest over its channel, or, with `init: image`, the shim itself from outside.
//!
//! Both speak the guest's protocol, so that the rest of the shim knows no difference.

mod channel;
mod diagnostics;
mod outside;

use std::os::fd::BorrowedFd;
use std::path::Path;

use atoll_wire::guest::{GuestMessage, HostMessage, MessageError};
use atoll_wire::shim::{ContainerPlan, Init};
use rustix::event::PollFlags;

use crate::directory::DirectoryError;
use crate::engine::StandardStreams;
use channel::Channel;
pub(crate) use outside::{Need, Outside};

/// Names a descriptor of a peer within it.
pub(crate) type Part = u64;

/// One of the two.
#[derive(Debug)]
pub(crate) enum Peer {
    Guest(Box<Channel>),
    Outside(Box<Outside>),
}

impl Peer {
    /// Makes a container's FIFOs where there are none, and opens this side of them.
    pub(crate) fn open(
        plan: &ContainerPlan,
        directory: &Path,
        taking_over: bool,
    ) -> Result<Self, DirectoryError> {
        Ok(match plan.init {
            Init::Guest => Self::Guest(Box::new(Channel::open(directory, taking_over)?)),
            Init::Image => Self::Outside(Box::new(Outside::open(directory, plan.process.stdin)?)),
        })
    }

    /// The other side of them, for the container's first process.
    pub(crate) fn first_process_streams(
        &self,
        directory: &Path,
    ) -> Result<StandardStreams, DirectoryError> {
        match self {
            Self::Guest(_) => Channel::guest_streams(directory),
            Self::Outside(outside) => outside.first_process_streams(directory),
        }
    }

    /// Sends a message; what cannot go on now waits.
    ///
    /// # Errors
    /// It does not fit into a frame: nothing was sent.
    pub(crate) fn send(&mut self, stream: u32, message: HostMessage) -> Result<(), MessageError> {
        match self {
            Self::Guest(channel) => channel.send(stream, message),
            Self::Outside(outside) => {
                outside.take(stream, message);
                Ok(())
            }
        }
    }

    /// Whether so much waits for it that clients must.
    pub(crate) fn is_congested(&self) -> bool {
        match self {
            Self::Guest(channel) => channel.is_congested(),
            // Each process has its own window, and nothing is shared between them.
            Self::Outside(_) => false,
        }
    }

    /// Whether it has answered this shim.
    pub(crate) fn is_acknowledged(&self) -> bool {
        match self {
            Self::Guest(channel) => channel.is_acknowledged(),
            Self::Outside(_) => true,
        }
    }

    /// What to wait for.
    pub(crate) fn sources(&self) -> Vec<(Part, BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Guest(channel) => channel.sources(),
            Self::Outside(outside) => outside.sources(),
        }
    }

    /// A descriptor is ready: reads or writes once.
    pub(crate) fn ready(&mut self, part: Part, scratch: &mut [u8]) {
        match self {
            Self::Guest(channel) => channel.ready(part, scratch),
            Self::Outside(outside) => outside.ready(part, scratch),
        }
    }

    /// Reads what a first process that is gone has left. `false`: there is nothing more.
    pub(crate) fn read_rest(&mut self, scratch: &mut [u8]) -> bool {
        match self {
            Self::Guest(channel) => channel.read(scratch),
            Self::Outside(_) => false,
        }
    }

    /// What a guest said last about itself, as one bounded line; believed in nothing.
    pub(crate) fn last_words(&mut self, scratch: &mut [u8]) -> String {
        match self {
            Self::Guest(channel) => channel.last_words(scratch),
            Self::Outside(_) => String::new(),
        }
    }

    /// Whether it has something to say, or needs something, for which no descriptor will become ready.
    pub(crate) fn has_messages(&self) -> bool {
        match self {
            Self::Guest(_) => false,
            Self::Outside(outside) => outside.has_messages(),
        }
    }

    /// The next message that may be believed.
    pub(crate) fn next_message(&mut self) -> Option<(u32, GuestMessage)> {
        match self {
            Self::Guest(channel) => channel.next_message(),
            Self::Outside(outside) => outside.next_message(),
        }
    }
}
