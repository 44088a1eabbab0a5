//! Where a simulated process's output goes: one client (exec), or everyone who is attached to a main process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::ProcessOutput;

/// Chunks that may be under way to one client.
pub(super) const CHANNEL_CHUNKS: usize = 16;
/// Output kept for the client that `await_attach` promises; then the process waits.
const KEPT_BYTES: usize = atoll_wire::guest::INITIAL_WINDOW_BYTES as usize;

/// A process's output.
pub(super) enum Output {
    /// Of an exec'ed process. Goes on when nobody listens any more.
    One(mpsc::Sender<ProcessOutput>),
    /// Of a main process.
    Main(Arc<MainOutput>),
}

impl Output {
    pub(super) async fn tell(&self, told: ProcessOutput) {
        match self {
            // Who dropped the stream does not want to know.
            Self::One(client) => drop(client.send(told).await),
            Self::Main(main) => main.tell(told).await,
        }
    }
}

/// Output of a main process: kept until the first client comes (where so planned), then passed on to all.
pub(super) struct MainOutput {
    state: Mutex<State>,
    attached: Notify,
    log: Option<super::log::LogFile>,
}

#[derive(Default)]
struct State {
    kept: Option<Vec<ProcessOutput>>,
    clients: Vec<mpsc::Sender<ProcessOutput>>,
    ended: bool,
}

impl MainOutput {
    pub(super) fn new(keep: bool, log: Option<super::log::LogFile>) -> Self {
        let state = State { kept: keep.then(Vec::new), ..State::default() };
        Self { state: Mutex::new(state), attached: Notify::new(), log }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, told: ProcessOutput) {
        if let Some(log) = &self.log {
            log.append(&told);
        }
        let last = matches!(told, ProcessOutput::Exited(_) | ProcessOutput::StartFailed(_));
        loop {
            let attached = self.attached.notified();
            match self.keep_or_clients(&told, last) {
                Room::Kept => return,
                Room::Full => attached.await,
                Room::Pass(clients) => {
                    for client in clients {
                        // Who dropped the stream does not want to know.
                        drop(client.send(told.clone()).await);
                    }
                    return;
                }
            }
        }
    }

    fn keep_or_clients(&self, told: &ProcessOutput, last: bool) -> Room {
        let mut state = self.state();
        if let Some(kept) = &mut state.kept {
            let bytes: usize = kept.iter().map(bytes_of).sum();
            if bytes + bytes_of(told) > KEPT_BYTES && bytes > 0 && !last {
                return Room::Full;
            }
            kept.push(told.clone());
            state.ended |= last;
            return Room::Kept;
        }
        state.ended |= last;
        state.clients.retain(|client| !client.is_closed());
        Room::Pass(state.clients.clone())
    }

    /// A client's stream of output: with `from_start` all of it, where nobody took it yet. `None`: it is over.
    pub(super) fn attach(&self, from_start: bool) -> Option<mpsc::Receiver<ProcessOutput>> {
        let (to_client, client) = mpsc::channel(CHANNEL_CHUNKS);
        let mut state = self.state();
        let kept = if from_start { state.kept.take() } else { None };
        if state.ended && kept.is_none() {
            return None;
        }
        let (live, mut from_process) = mpsc::channel(CHANNEL_CHUNKS);
        if !state.ended {
            state.clients.push(live);
        }
        drop(state);
        self.attached.notify_waiters();
        tokio::spawn(async move {
            for told in kept.unwrap_or_default() {
                if to_client.send(told).await.is_err() {
                    return;
                }
            }
            while let Some(told) = from_process.recv().await {
                if to_client.send(told).await.is_err() {
                    return;
                }
            }
        });
        Some(client)
    }

    /// Every client's stream ends: nothing more comes.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.clients.clear();
        state.ended = true;
    }
}

enum Room {
    Kept,
    Full,
    Pass(Vec<mpsc::Sender<ProcessOutput>>),
}

fn bytes_of(told: &ProcessOutput) -> usize {
    match told {
        ProcessOutput::Stdout(bytes) | ProcessOutput::Stderr(bytes) => Bytes::len(bytes),
        _ => 0,
    }
}
