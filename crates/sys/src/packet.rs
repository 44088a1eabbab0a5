//! Packets with descriptors over a SOCK_SEQPACKET socket.
//!
//! Owns no socket. What a peer sent is whole or refused: a packet or a list of descriptors that was cut is an error.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

/// Most descriptors in one packet. The kernel takes 253 (SOURCE: unix(7), SCM_MAX_FD).
pub const MAX_PACKET_DESCRIPTORS: usize = 64;

/// Bytes for one control message with [`MAX_PACKET_DESCRIPTORS`] descriptors.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_PACKET_DESCRIPTORS));

/// Two connected sockets; both are closed at exec.
///
/// # Errors
/// The kernel's.
pub fn packet_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet with descriptors. Blocks while the peer's queue is full, where the socket does.
///
/// # Errors
/// The kernel's; `InvalidInput` for too many descriptors or an empty packet, which a peer would take for the end.
pub fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    if bytes.is_empty() || descriptors.len() > MAX_PACKET_DESCRIPTORS {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits for a packet and says its size and what came with it; `None` when the peer has closed. The descriptors are closed at exec.
///
/// # Errors
/// The kernel's; `InvalidData` for a packet larger than `buffer` or with too many descriptors (all of them are closed).
pub fn receive_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> std::io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Error::from(ErrorKind::InvalidData));
    }
    Ok((received.bytes > 0).then_some((received.bytes, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_packet_and_a_close_is_the_end() {
        let (ours, theirs) = packet_pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_packet(ours.as_fd(), b"first", &[writer.as_fd()]).unwrap();
        send_packet(ours.as_fd(), b"second", &[]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (length, mut descriptors) =
            receive_packet(theirs.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"first"[..], 1));
        std::fs::File::from(descriptors.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through", "the only writer is closed, so the text ends");
        let (length, descriptors) = receive_packet(theirs.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"second"[..], 0));
        drop(ours);
        assert!(receive_packet(theirs.as_fd(), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_next_packet_is_whole() {
        let (ours, theirs) = packet_pair().unwrap();
        send_packet(ours.as_fd(), &[1; 100], &[]).unwrap();
        send_packet(ours.as_fd(), &[2; 10], &[]).unwrap();
        let mut buffer = [0; 16];
        assert!(receive_packet(theirs.as_fd(), &mut buffer).is_err());
        let (length, _) = receive_packet(theirs.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(buffer[..length], [2; 10]);
        assert!(send_packet(ours.as_fd(), b"", &[]).is_err());
    }
}
