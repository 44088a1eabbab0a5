//! Launches under way: what may still make something on the host although nothing of it can be seen yet.
//!
//! A launch is known here from before its first step until it is wholly begun or wholly removed. Whoever lists or destroys sandboxes asks
//! here too: an empty host is empty only when nobody is about to fill it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// All launches of a host that are under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Launches(Arc<Mutex<HashMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    given_up: CancellationToken,
    /// Closed when it is over.
    over: watch::Receiver<()>,
}

/// One launch; over when dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    launches: Launches,
    uid: String,
    given_up: CancellationToken,
    _over: watch::Sender<()>,
}

impl Launches {
    /// A launch begins; `None`: one of that uid is under way.
    pub(super) fn begin(&self, uid: &str) -> Option<UnderWay> {
        let mut known = self.lock();
        if known.contains_key(uid) {
            return None;
        }
        let given_up = CancellationToken::new();
        let (sender, over) = watch::channel(());
        known.insert(uid.to_owned(), Known { given_up: given_up.clone(), over });
        let (launches, uid) = (self.clone(), uid.to_owned());
        Some(UnderWay { launches, uid, given_up, _over: sender })
    }

    /// Who is under way.
    pub(super) fn uids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Has a launch removed again what it made, and waits until it has.
    pub(super) async fn give_up(&self, uid: &str) {
        let over = self.lock().get(uid).map(|known| {
            known.given_up.cancel();
            known.over.clone()
        });
        if let Some(mut over) = over {
            // An error is the end of its sender, which is what is waited for.
            while over.changed().await.is_ok() {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// Resolves when nobody wants the sandbox any more.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.launches.lock().remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_gives_a_launch_up_hears_when_it_is_over() {
        let launches = Launches::default();
        launches.give_up("unknown").await;
        let launch = launches.begin("a").unwrap();
        assert!(launches.begin("a").is_none(), "one at a time");
        assert_eq!(launches.uids(), ["a"]);
        let mut waiting = std::pin::pin!(launches.give_up("a"));
        assert!(futures::poll!(&mut waiting).is_pending());
        launch.given_up().await;
        assert!(futures::poll!(&mut waiting).is_pending(), "it is still being removed");
        drop(launch);
        waiting.await;
        assert!(launches.uids().is_empty());
        assert!(launches.begin("a").is_some());
    }
}
