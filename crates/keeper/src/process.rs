//! The keeper's process: begun by a server, and there when that server is not.
//!
//! Owns the lock, the socket, and the table behind it. One thread. Ends when it is told to, when nobody is attached and nothing is held, or when
//! its socket is gone from the disk: nobody could find it again.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use atoll_wire::frame::Decoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::place::Place;
use crate::ports::Limits;
use crate::protocol::{Answer, Request, VERSION, put_answer, request_of};
use crate::table::{Table, TableError};

/// How often the socket is looked for on the disk: a safety net, when a data directory is removed under a running keeper.
const LOOK: Duration = Duration::from_secs(10);
/// Descriptors that are none of connections: holders, listeners, names (guess: 1000 ports and 1024 questions).
const OTHER_DESCRIPTORS: u64 = 8192;
/// Descriptors of a connection.
const DESCRIPTORS_EACH: u64 = 2;

/// What a keeper is begun with.
#[derive(Debug)]
pub struct Options {
    /// Of the instance. Its directory `network` exists.
    pub data_dir: PathBuf,
    /// Told `ready` in a line when the keeper can be reached.
    pub ready: Option<OwnedFd>,
}

/// Why a keeper has ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another one lives.
    #[error("another keeper holds {path}; stop it, or attach to it")]
    AnotherLives {
        /// The lock.
        path: PathBuf,
    },
    /// A file or socket.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What failed.
        operation: &'static str,
        /// Of what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

fn io_error(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(std::io::Error) -> RunError {
    let path = path.into();
    move |source| RunError::Io { operation, path, source }
}

/// The process's main. Returns when the keeper has nothing more to do.
///
/// # Errors
/// [`RunError`], before anything was held.
pub fn run(options: Options) -> Result<(), RunError> {
    let place = Place::of(&options.data_dir);
    let lock = place.take_lock().map_err(io_error("lock", place.lock()))?;
    let Some(_lock) = lock else { return Err(RunError::AnotherLives { path: place.lock() }) };
    let limits = limits();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("run in", place.directory()))?;
    runtime.block_on(async {
        let (listener, identity) = listen(&place)?;
        if let Some(ready) = options.ready {
            // Whoever waited may be gone; another finds the socket.
            let _ = File::from(ready).write_all(b"ready\n");
        }
        serve(&place, &listener, identity, Table::new(limits)).await;
        Ok(())
    })
}

/// Connections for which there are descriptors.
fn limits() -> Limits {
    let defaults = Limits::default();
    let most = DESCRIPTORS_EACH * defaults.connections_all as u64 + OTHER_DESCRIPTORS;
    // What it may have is looked at next.
    let _ = atoll_sys::process::raise_open_files_limit(most);
    let (soft, _) = atoll_sys::process::open_files_limit();
    // With few descriptors, half of them are for connections.
    let room = soft.saturating_sub(OTHER_DESCRIPTORS).max(soft / 2) / DESCRIPTORS_EACH;
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    Limits {
        connections_all: defaults.connections_all.min(room),
        connections_each: defaults.connections_each.min(room),
        ..defaults
    }
}

/// A file, whatever stands at its path later.
type Identity = (u64, u64);

fn listen(place: &Place) -> Result<(UnixListener, Identity), RunError> {
    let path = place.socket();
    // Of a keeper that is dead: we have its lock.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("remove", path)(error));
        }
        _ => {}
    }
    let listener = place
        .with_address(|address| UnixListener::bind(address))
        .map_err(io_error("listen at", &path))?;
    // Its directory is its owner's alone as well.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(io_error("protect", &path))?;
    let identity = identity(place).map_err(io_error("look at", &path))?;
    Ok((listener, identity))
}

fn identity(place: &Place) -> std::io::Result<Identity> {
    let found = std::fs::symlink_metadata(place.socket())?;
    Ok((found.dev(), found.ino()))
}

/// Whether the keeper goes on.
#[derive(PartialEq, Eq)]
enum Then {
    GoOn,
    End,
}

async fn serve(place: &Place, listener: &UnixListener, own: Identity, mut table: Table) {
    let mut looking = interval(LOOK);
    looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The server that began it attaches within that.
    let begun = Instant::now();
    let mut attached: Option<Attached> = None;
    loop {
        let from_server = async {
            match &mut attached {
                Some(attached) => attached.request().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // The newest is the server: there is only one, and it may not have seen the end of the one before.
                Ok((stream, _)) => attached = Some(Attached::new(stream)),
                Err(error) => {
                    tracing::warn!(%error, "a server could not be attached");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            request = from_server => {
                let then = match (&mut attached, request) {
                    (Some(attached), Some(request)) => attached.answer(&mut table, request).await,
                    _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
                };
                match then {
                    Ok(Then::GoOn) => {}
                    Ok(Then::End) => break,
                    Err(_) => attached = None,
                }
                if attached.is_none() && table.is_empty() {
                    break;
                }
            }
            _ = looking.tick() => {
                let lost = identity(place).ok() != Some(own);
                let unused = table.is_empty() && begun.elapsed() > LOOK;
                if attached.is_none() && (lost || unused) {
                    break;
                }
            }
        }
    }
    if identity(place).ok() == Some(own) {
        // Who finds no socket begins a keeper; who finds a dead one does the same.
        let _ = std::fs::remove_file(place.socket());
    }
}

/// A server's connection.
struct Attached {
    stream: UnixStream,
    decoder: Decoder,
    /// It has said a version that is understood.
    welcome: bool,
}

impl Attached {
    fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(), welcome: false }
    }

    /// The next request; `None`: the server is gone, or speaks nonsense. Nothing is lost when this is dropped in between.
    async fn request(&mut self) -> Option<Request> {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return request_of(&frame);
            }
            if self.decoder.skipped_bytes() > 0 {
                return None;
            }
            let mut buffer = [0; 8 * 1024];
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    async fn answer(&mut self, table: &mut Table, request: Request) -> std::io::Result<Then> {
        let then = if request == Request::Retire { Then::End } else { Then::GoOn };
        let mut out = Vec::new();
        for answer in self.answers(table, request) {
            put_answer(&mut out, &answer).map_err(std::io::Error::other)?;
        }
        // A server that does not read is no reason to wait long.
        tokio::time::timeout(LOOK, self.stream.write_all(&out)).await??;
        Ok(then)
    }

    fn answers(&mut self, table: &mut Table, request: Request) -> Vec<Answer> {
        let outcome = match request {
            Request::Hello { version } if version > VERSION => {
                return vec![Answer::TooNew { version: VERSION }];
            }
            Request::Hello { .. } => {
                self.welcome = true;
                return vec![Answer::Welcome { version: VERSION, pid: std::process::id() }];
            }
            _ if !self.welcome => {
                let message = "say Hello first".to_owned();
                return vec![Answer::Failed { message }];
            }
            Request::Inventory => {
                let holdings = table.inventory().map(|holding| Answer::Holding { holding });
                return holdings.chain([Answer::Done]).collect();
            }
            Request::Resolve { place } => table.resolve(place),
            Request::Hold { uid, ports } => table.hold(&uid, &ports),
            Request::Put { member } => table.put(member),
            Request::Remove { uid } => {
                table.remove(&uid);
                Ok(())
            }
            Request::Retain { uids } => {
                table.retain(&uids);
                Ok(())
            }
            Request::Retire => Ok(()),
        };
        vec![match outcome {
            Ok(()) => Answer::Done,
            Err(TableError::Taken { hold, by }) => Answer::Taken { hold, by },
            Err(error @ TableError::Failed { .. }) => Answer::Failed { message: error.to_string() },
        }]
    }
}
