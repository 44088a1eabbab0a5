//! Listening and serving: connections with limits, until told to end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::config::{ListenAddress, ServerError};

/// Longest time for a request's line and headers, also between requests of one connection.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of a request's line and headers.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Connections at the same time; more wait in the kernel's queue. Guess: a thousand watchers and then some.
const MAX_CONNECTIONS: usize = 4096;
/// Longest wait for requests under way when the server ends.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// A bound address.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds. A socket that a server that is gone left behind is replaced.
    pub(crate) async fn bind(address: &ListenAddress) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Listen { address: address.to_string(), source };
        match address {
            ListenAddress::Tcp(address) => {
                TcpListener::bind(address).await.map(Self::Tcp).map_err(failed)
            }
            ListenAddress::Unix(path) => bind_unix(path).await.map(Self::Unix).map_err(failed),
        }
    }

    /// As clients write it.
    pub(crate) fn address(&self, configured: &ListenAddress) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}"),
                Err(_) => format!("http://{configured}"),
            },
            Self::Unix(_) => configured.to_string(),
        }
    }
}

async fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if let Ok(metadata) = tokio::fs::symlink_metadata(path).await
        && metadata.file_type().is_socket()
    {
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(std::io::ErrorKind::AddrInUse.into());
        }
        tokio::fs::remove_file(path).await?;
    }
    let listener = UnixListener::bind(path)?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).await?;
    Ok(listener)
}

/// Serves until `ending` is true and what was under way is done, or takes too long.
pub(crate) async fn serve(listener: Listener, router: Router, mut ending: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = until_true(&mut ending) => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (router, ending) = (router.clone(), ending.clone());
        connections.spawn(async move {
            connection(stream, router, ending).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_DEADLINE, connections.wait()).await.is_err() {
        tracing::info!(connections = connections.len(), "connections are cut off: the server ends");
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> Option<(Box<dyn Stream>, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    let accepted: std::io::Result<Box<dyn Stream>> = match listener {
        Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
            // Answers are small and waited for; failing costs milliseconds, not correctness.
            stream.set_nodelay(true).ok();
            Box::new(stream) as Box<dyn Stream>
        }),
        Listener::Unix(listener) => {
            listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>)
        }
    };
    match accepted {
        Ok(stream) => Some((stream, slot)),
        Err(error) => {
            // Out of descriptors, mostly: existing connections will give some back.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(stream: Box<dyn Stream>, router: Router, mut ending: watch::Receiver<bool>) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(served);
    let result = tokio::select! {
        result = &mut served => result,
        () = until_true(&mut ending) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Waits until it is true, or nobody can make it so any more.
pub(crate) async fn until_true(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|flag| *flag).await.ok();
}
