//! Connections from the ring to sandboxes: what probes ask, as nobody else may.
//!
//! Owns one thread that lives in the ring's network namespace and drives what was opened there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError, mpsc};

use atoll_model::causes::with_causes;
use atoll_network::Network;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// The thread, and how to reach it.
pub(super) struct RingIo {
    handle: Handle,
    end: Mutex<Option<oneshot::Sender<()>>>,
}

impl RingIo {
    /// Begins the thread, or says why there is none.
    pub(super) fn start(network: &Network) -> Result<Self, String> {
        let (told, heard) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let begun = network.thread_in_ring("ring-io", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(told.send(Err(error))),
            };
            if told.send(Ok(runtime.handle().clone())).is_ok() {
                // Told to end, or forgotten.
                drop(runtime.block_on(ended));
            }
        });
        begun.map_err(|error| with_causes(&error))?;
        let failed = |why: String| format!("no thread in the ring: {why}");
        let handle = heard.recv().map_err(|error| failed(error.to_string()))?;
        let handle = handle.map_err(|error| failed(error.to_string()))?;
        Ok(Self { handle, end: Mutex::new(Some(end)) })
    }

    /// Connects to the first of these addresses where somebody listens. Given up when dropped.
    pub(super) async fn connect(&self, to: [IpAddr; 2], port: u16) -> io::Result<TcpStream> {
        let connecting = async move {
            match TcpStream::connect(SocketAddr::new(to[0], port)).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // A server may listen on IPv6 alone.
                    let other = TcpStream::connect(SocketAddr::new(to[1], port)).await;
                    other.map_err(|_| error)
                }
                connected => connected,
            }
        };
        let connecting = AbortOnDropHandle::new(self.handle.spawn(connecting));
        connecting.await.map_err(io::Error::other)?
    }

    /// Ends the thread; its connections break.
    pub(super) fn stop(&self) {
        drop(self.end.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
