//! Two connections made one: bytes, ends and resets of each go to the other, at the pace of whoever reads.
//!
//! Owns no buffer of a connection's own: what was read and cannot yet be written is all that is kept, and it is bounded by one read.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, shutdown, sockopt};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Most that is read at once.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// Never held across a wait.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What one read brought.
enum Brought {
    /// So many bytes are handed on, the rest of them is still to be written.
    Bytes(Vec<u8>),
    /// No more will come.
    End,
}

/// Carries bytes in both directions until both have ended. `false`: it was broken off, and both should learn that.
pub(super) async fn relay(client: &TcpStream, target: &TcpStream) -> bool {
    let (client_ended, target_ended) = (CancellationToken::new(), CancellationToken::new());
    let both = async {
        tokio::try_join!(carry(client, target, &client_ended), carry(target, client, &target_ended))
    };
    tokio::select! {
        biased;
        carried = both => carried.is_ok(),
        () = broken_after(&client_ended, client) => false,
        () = broken_after(&target_ended, target) => false,
    }
}

/// Who has ended its direction is not read any more, and may still break off the other.
async fn broken_after(ended: &CancellationToken, stream: &TcpStream) {
    ended.cancelled().await;
    broken(stream).await;
}

async fn broken(stream: &TcpStream) {
    // Only a runtime that ends fails here, and takes this task along.
    let _ = stream.ready(Interest::ERROR).await;
}

async fn carry(from: &TcpStream, to: &TcpStream, ended: &CancellationToken) -> std::io::Result<()> {
    loop {
        from.readable().await?;
        match step(from, to)? {
            Some(Brought::Bytes(rest)) => write_all(from, to, &rest).await?,
            Some(Brought::End) => break,
            None => {}
        }
        // One thread serves everybody.
        tokio::task::coop::consume_budget().await;
    }
    shutdown(to, Shutdown::Write)?;
    ended.cancel();
    Ok(())
}

/// Hands on what is there now, as far as it goes; `None`: nothing was there.
fn step(from: &TcpStream, to: &TcpStream) -> std::io::Result<Option<Brought>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut count = 0;
        let read = from.try_io(Interest::READABLE, || {
            count = rustix::net::recv(from, &mut scratch[..], RecvFlags::DONTWAIT)?.1;
            // Less than asked for was all of it: another look, to be told so, is saved. What comes now is an event of its own. An end or a
            // failure is none: it is what the next read finds.
            if 0 < count && count < READ_BYTES { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match read {
            Ok(()) if count == 0 => return Ok(Some(Brought::End)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(_) if count == 0 => return Ok(None),
            _ => {}
        }
        let mut rest = &scratch[..count];
        while !rest.is_empty() {
            match rustix::net::send(to, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::WOULDBLOCK) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Some(Brought::Bytes(rest.to_vec())))
    })
}

/// Waits for who reads slowly; meanwhile nothing more is read.
async fn write_all(from: &TcpStream, to: &TcpStream, mut rest: &[u8]) -> std::io::Result<()> {
    while !rest.is_empty() {
        tokio::select! {
            writable = to.writable() => writable?,
            () = broken(from) => return Err(ErrorKind::ConnectionReset.into()),
        }
        match to.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is closed after this is reset, not ended: its peer learns that something is missing.
pub(super) fn reset(stream: &TcpStream) {
    // It may be gone already, which its peer knows then.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}
