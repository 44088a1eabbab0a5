//! How a sandbox is stopped and removed: the record says so first, then the host is cleared, then the record goes.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::state::{Cause, Event, Phase};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Marks;
use super::persist::Urgency;
use super::task::{Destroying, Owner, cause};
use super::work::{self, After};
use crate::store::{NewEvent, StoreError, Write};

/// After a stop's grace the shim kills; this much later the owner does.
const STOP_MARGIN: Duration = Duration::from_secs(5);

impl Owner {
    /// Its ports and its address are somebody else's from now on.
    pub(super) fn release_network(&mut self) {
        self.gatekeeper = None;
        let uid = self.subject.uid.to_string();
        let Some(network) = self.context.network.clone() else { return };
        if self.subject.spec.network == atoll_model::spec::Network::Loopback {
            return;
        }
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            match network.let_go(&uid).await {
                Ok(()) => context.ports.give_back(&uid),
                // Whoever removes what is left of it tries again; its ports are nobody else's until then.
                Err(error) => tracing::warn!(%error, uid, "its place in the network stays"),
            }
        });
    }

    /// Images are needed no longer.
    pub(super) fn release(&self) {
        let (context, uid) = (Arc::clone(&self.context), self.subject.uid.to_string());
        tokio::spawn(async move {
            if let Err(error) = context.images.release(&uid).await {
                tracing::warn!(%error, uid, "images could not be released; the next start does it");
            }
        });
    }

    pub(super) fn delete(&mut self, grace_millis: u64, cause: Cause) {
        if self.state.phase != Phase::Deleting {
            self.tell(
                false,
                "Deleting",
                if cause.message.is_empty() { cause.reason.clone() } else { cause.message.clone() },
            );
        }
        self.apply(Event::Delete(cause), Urgency::Now);
        self.tend_gate();
        if self.destroying != Some(Destroying::ForDeletion) {
            // Whatever was under way is given up: a launch that is dropped leaves nothing, and all else is done again.
            self.work = None;
            self.destroying = None;
        }
        let grace = Duration::from_millis(grace_millis);
        let live = self.live.borrow().clone();
        match live {
            Some(live) if grace_millis > 0 && self.events.is_some() => {
                let at = Instant::now() + grace + STOP_MARGIN;
                self.kill_at = Some(self.kill_at.map_or(at, |known| known.min(at)));
                tokio::spawn(async move {
                    if let Err(error) = live.sandbox.stop(grace_millis).await {
                        tracing::debug!(%error, "a stop before a deletion was refused; it is killed");
                    }
                });
            }
            _ => self.kill_at = Some(Instant::now()),
        }
    }

    pub(super) fn stop(&mut self, grace_millis: u64, reply: oneshot::Sender<Result<(), String>>) {
        let live = self.live.borrow().clone();
        let answer = match (self.state.phase, live) {
            (Phase::Succeeded | Phase::Failed, _) => Ok(()),
            (Phase::Deleting, _) => Err("it is being deleted".to_owned()),
            (_, Some(live)) => {
                tokio::spawn(async move {
                    let stopped = live.sandbox.stop(grace_millis).await;
                    // Whoever asked may be gone.
                    reply.send(stopped.map_err(|error| with_causes(&error))).ok();
                });
                return;
            }
            (Phase::Pending | Phase::Scheduled, None) => {
                self.work = None;
                self.apply(
                    Event::LaunchFailed(cause("Stopped", "it was stopped before it ran")),
                    Urgency::Now,
                );
                self.destroy(Destroying::ToKeepRecord);
                Ok(())
            }
            (Phase::Running | Phase::Unknown, None) => {
                Err("it cannot be reached at the moment; try again, or delete it".to_owned())
            }
        };
        reply.send(answer).ok();
    }

    pub(super) async fn take_destroyed(&mut self, result: Result<(), String>) -> bool {
        let Some(purpose) = self.destroying else { return false };
        if let Err(message) = result {
            self.tell(true, "DestroyFailed", message.clone());
            for waiter in self.waiters.drain(..) {
                waiter.send(Err(message.clone())).ok();
            }
            // Why a record that stays is as it is matters more than what is in the way of its cleaning.
            if purpose != Destroying::ToKeepRecord
                && self.state.cause.as_ref().is_none_or(|cause| cause.message != message)
            {
                self.state.cause = Some(Cause { reason: "DestroyFailed".to_owned(), message });
                self.persist.note(Urgency::Now);
            }
            self.work = Some(work::pause(self.pace.pause(), After::Destroy));
            return false;
        }
        self.destroying = None;
        // Not before: what still ran could write, or be removed from under.
        self.context.volumes.release(self.subject.uid);
        match purpose {
            Destroying::ForDeletion => {
                self.forget().await;
                return true;
            }
            Destroying::BeforeBeginning => {
                self.begin(Marks::begin());
            }
            Destroying::ToKeepRecord => {}
        }
        false
    }

    /// Removes the record; goes on trying while the disk does not take it.
    async fn forget(&mut self) {
        let (name, uid) = (self.subject.name.to_string(), self.subject.uid.to_string());
        loop {
            let why = self.state.cause.as_ref().map_or("", |cause| cause.reason.as_str());
            let event = NewEvent {
                warning: false,
                reason: "Deleted",
                object: format!("sandbox/{name}"),
                message: why.to_owned(),
            };
            let write = Write::Delete { name: name.clone(), uid: uid.clone() };
            match self.context.store.commit(write, vec![event]).await {
                Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Closed) => break,
                Err(_) if self.context.ending.is_cancelled() => break,
                Err(error) => {
                    tracing::error!(%error, name, "a deletion could not be written; it is tried again");
                    tokio::time::sleep(self.pace.pause()).await;
                }
            }
        }
        self.context.ports.give_back(&uid);
        for waiter in self.waiters.drain(..) {
            waiter.send(Ok(())).ok();
        }
    }
}
