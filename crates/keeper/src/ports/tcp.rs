//! Streams from loopback to a sandbox.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Way;
use super::relay::{relay, reset};

/// Pause after a connection that could not be accepted: descriptors are short, and will be for a while.
const SHORTAGE: Duration = Duration::from_millis(10);

/// Lets clients in, for ever.
pub(super) async fn serve(listener: Arc<TcpListener>, way: Way) {
    loop {
        match listener.accept().await {
            Ok((client, from)) => admit(client, from, way.clone()),
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(SHORTAGE).await;
            }
        }
    }
}

/// Lets those in who were connected by the kernel before now.
pub(super) fn admit_waiting(listener: &TcpListener, way: &Way) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    while let Ok((client, from)) = acceptfrom_with(listener, flags) {
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // A client without an address, or that the runtime does not take, is refused by its end.
        let (Some(from), Ok(client)) = (from, TcpStream::from_std(client.into())) else { continue };
        admit(client, from, way.clone());
    }
}

fn admit(client: TcpStream, from: SocketAddr, way: Way) {
    let Some(permits) = way.room.enter() else { return reset(&client) };
    tokio::spawn(async move {
        lead(&client, from, &way).await;
        drop(permits);
    });
}

/// One client, until one of both ends it, or the sandbox is removed.
async fn lead(client: &TcpStream, from: SocketAddr, way: &Way) {
    let targets = way.addresses.targets(from.ip(), way.target_port);
    let target = tokio::select! {
        () = way.over.cancelled() => None,
        target = connect(targets, way.room.limits.connect) => target,
    };
    let Some(target) = target else { return reset(client) };
    // A request must not wait for the acknowledgement of the one before it; a failure costs speed alone.
    let _ = (client.set_nodelay(true), target.set_nodelay(true));
    let whole = tokio::select! {
        () = way.over.cancelled() => false,
        whole = relay(client, &target) => whole,
    };
    if !whole {
        reset(client);
        reset(&target);
    }
}

async fn connect(targets: [SocketAddr; 2], within: Duration) -> Option<TcpStream> {
    let trying = async {
        for target in targets {
            if let Ok(stream) = TcpStream::connect(target).await {
                return Some(stream);
            }
        }
        None
    };
    timeout(within, trying).await.ok().flatten()
}
