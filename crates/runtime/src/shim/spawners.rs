//! The spawners: one small process a core that forks shims, kept alive by one thread each.
//!
//! Owns their start, their restart and their end. A spawner knows no sandbox: when one dies, sandboxes do not notice, and requests go to
//! another.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_sys::helper_program::start_program;
use atoll_sys::packet::{packet_pair, send_packet};
use atoll_sys::process::{self, Wait};
use tokio::sync::Notify;

use crate::RuntimeError;

use super::directory::io_error;

/// A spawner that lived shorter than this is restarted after a pause (guess: no request takes that long to break it).
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// First and longest pause before a restart of one that does not live.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a request waits for any spawner to be alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// How long a request waits for a spawner with a full queue before it tries again (guess: a fork takes less).
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// All spawners of a runtime.
pub(super) struct Spawners {
    shared: Arc<Shared>,
    keepers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Shared {
    program: PathBuf,
    diagnostics: File,
    members: Vec<Mutex<Member>>,
    turn: AtomicUsize,
    changed: Notify,
    stopping: AtomicBool,
    pause: (Mutex<()>, Condvar),
}

#[derive(Default)]
struct Member {
    socket: Option<Arc<OwnedFd>>,
    pid: Option<i32>,
    failure: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spawners {
    /// Starts them. Their diagnostics go to `log`, which begins anew.
    pub(super) fn start(program: &Path, count: usize, log: &Path) -> Result<Self, RuntimeError> {
        let diagnostics = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(log)
            .map_err(io_error("create", log))?;
        let shared = Arc::new(Shared {
            program: program.to_owned(),
            diagnostics,
            members: (0..count.max(1)).map(|_| Mutex::default()).collect(),
            turn: AtomicUsize::new(0),
            changed: Notify::new(),
            stopping: AtomicBool::new(false),
            pause: (Mutex::new(()), Condvar::new()),
        });
        let mut keepers = Vec::new();
        for index in 0..shared.members.len() {
            let shared = Arc::clone(&shared);
            let keeper = std::thread::Builder::new()
                .name(format!("spawner-{index}"))
                .stack_size(128 * 1024)
                .spawn(move || shared.keep(index))
                .map_err(io_error("start a thread for", program))?;
            keepers.push(keeper);
        }
        Ok(Self { shared, keepers: Mutex::new(keepers) })
    }

    /// Hands a request to one of them. An answer comes from the shim, on its own conversation, or not at all.
    pub(super) async fn send(
        &self,
        packet: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), RuntimeError> {
        let deadline = tokio::time::Instant::now() + ALIVE_WITHIN;
        loop {
            let changed = self.shared.changed.notified();
            match self.shared.try_send(packet, descriptors) {
                Attempt::Sent => return Ok(()),
                Attempt::Failed(source) => {
                    return Err(RuntimeError::Host {
                        message: format!("a spawner refused a request: {source}"),
                    });
                }
                Attempt::Full => tokio::time::sleep(FULL_PAUSE).await,
                Attempt::NobodyAlive => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Err(self.shared.nobody_lives());
                    }
                }
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(self.shared.nobody_lives());
            }
        }
    }

    /// Their pids, for the report of what runs.
    pub(super) fn pids(&self) -> Vec<i32> {
        self.shared.members.iter().filter_map(|member| lock(member).pid).collect()
    }

    /// Ends them and waits for their end. Blocks.
    pub(super) fn stop(&self) {
        self.shared.stop();
        for keeper in lock(&self.keepers).drain(..) {
            if keeper.join().is_err() {
                tracing::error!("the thread that keeps a spawner has panicked");
            }
        }
    }
}

impl Drop for Spawners {
    fn drop(&mut self) {
        // Without waiting: they end by themselves when their sockets close.
        self.shared.stop();
    }
}

enum Attempt {
    Sent,
    Full,
    NobodyAlive,
    Failed(std::io::Error),
}

impl Shared {
    fn try_send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Attempt {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut answer = Attempt::NobodyAlive;
        for step in 0..self.members.len() {
            let index = first.wrapping_add(step) % self.members.len();
            let Some(socket) = lock(&self.members[index]).socket.clone() else { continue };
            match send_packet(socket.as_fd(), packet, descriptors) {
                Ok(()) => return Attempt::Sent,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    answer = Attempt::Full;
                }
                Err(error) if is_dead(&error) => {}
                Err(error) => return Attempt::Failed(error),
            }
        }
        answer
    }

    fn nobody_lives(&self) -> RuntimeError {
        let why = self.members.iter().find_map(|member| lock(member).failure.clone());
        let why = why.unwrap_or_else(|| "none answers".into());
        RuntimeError::Host {
            message: format!("no spawner ({}) stays alive: {why}", self.program.display()),
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for member in &self.members {
            lock(member).socket = None;
        }
        let _guard = lock(&self.pause.0);
        self.pause.1.notify_all();
    }

    /// Starts a spawner, again and again.
    fn keep(&self, index: usize) {
        let mut pause = PAUSES.0;
        while !self.stopping.load(Ordering::SeqCst) {
            let begun = Instant::now();
            match self.begin(index) {
                Ok(pid) => {
                    let end = process::reap(pid, Wait::Block);
                    let mut member = lock(&self.members[index]);
                    member.socket = None;
                    member.pid = None;
                    member.failure = Some(match end {
                        Ok(Some(exit)) => format!("it ended ({exit:?}), see its log"),
                        Ok(None) => "it ended".into(),
                        Err(error) => error.to_string(),
                    });
                }
                Err(error) => lock(&self.members[index]).failure = Some(error.to_string()),
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let why = lock(&self.members[index]).failure.clone().unwrap_or_default();
            tracing::warn!(index, why, "a spawner is started again");
            if begun.elapsed() > SHORT_LIFE {
                pause = PAUSES.0;
                continue;
            }
            self.wait(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn begin(&self, index: usize) -> std::io::Result<i32> {
        let (ours, theirs) = packet_pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let pid =
            start_program(&self.program, &["spawner"], theirs.as_fd(), self.diagnostics.as_fd())?;
        let mut member = lock(&self.members[index]);
        member.pid = Some(pid);
        // Asked to stop meanwhile: its socket closes here, and it ends.
        if !self.stopping.load(Ordering::SeqCst) {
            member.socket = Some(Arc::new(ours));
        }
        drop(member);
        self.changed.notify_waiters();
        Ok(pid)
    }

    fn wait(&self, pause: Duration) {
        let guard = lock(&self.pause.0);
        if !self.stopping.load(Ordering::SeqCst) {
            drop(self.pause.1.wait_timeout(guard, pause));
        }
    }
}

/// The errors of a socket whose other side is gone.
fn is_dead(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that takes packets from descriptor 3 (a shell reads them as lines) and dies when told to.
    fn script(directory: &Path) -> PathBuf {
        let path = directory.join("spawner.sh");
        let text = "#!/bin/sh
while line=$(dd bs=64 count=1 <&3 2>/dev/null) && [ -n \"$line\" ]
do echo \"$line\" >&2; [ \"$line\" != die ] || exit 1; done
";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        path
    }

    #[tokio::test]
    async fn a_dead_spawner_is_replaced_and_stop_leaves_none() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let spawners = Spawners::start(&script(directory.path()), 1, &log).unwrap();
        spawners.send(b"die\n", &[]).await.unwrap();
        let first = async {
            loop {
                let text = std::fs::read_to_string(&log).unwrap();
                if text.contains("again") {
                    return;
                }
                // Into a dying spawner's queue a request may still be put and lost: who sent it sees its conversation close.
                spawners.send(b"again\n", &[]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), first).await.unwrap();
        let pid = spawners.pids()[0];
        spawners.stop();
        assert!(process::ProcessIdentity::of(pid).unwrap().is_none());
        assert!(spawners.pids().is_empty());
    }
}
