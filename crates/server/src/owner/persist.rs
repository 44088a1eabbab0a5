//! Writing an owner's record: one write at a time, later changes gathered into the next, failed ones tried again. Never waited for.

use std::sync::Arc;
use std::time::Duration;

use atoll_wire::rest;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::pace::Pace;
use crate::store::{Finish, NewEvent, Store, StoreError, Write};

/// How soon a change must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Someone may wait for it.
    Now,
    /// It is told with the next one: a fast creation needs no write between its first and its last.
    Soon,
}

/// Guess: longer than a fast creation takes, shorter than a person notices.
const SOON: Duration = Duration::from_millis(50);
const LEAST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(5);

type InFlight = BoxFuture<'static, Result<Option<Arc<rest::Sandbox>>, StoreError>>;

/// What is to be written, and what is being written.
pub(super) struct Persist {
    due: Option<Instant>,
    events: Vec<NewEvent>,
    finish: Option<Finish>,
    in_flight: Option<InFlight>,
    /// Events of the write under way: told again should it fail.
    sent: Vec<NewEvent>,
    pace: Pace,
}

impl Persist {
    pub(super) fn new() -> Self {
        let pace = Pace::new(LEAST_PAUSE, MOST_PAUSE);
        Self {
            due: None,
            events: Vec::new(),
            finish: None,
            in_flight: None,
            sent: Vec::new(),
            pace,
        }
    }

    /// The record has changed.
    pub(super) fn note(&mut self, urgency: Urgency) {
        let at = match urgency {
            Urgency::Now => Instant::now(),
            Urgency::Soon => Instant::now() + SOON,
        };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Tells an event with the next write.
    pub(super) fn event(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Amends the next write once it is on disk.
    pub(super) fn finish_with(&mut self, finish: Finish) {
        self.finish = Some(finish);
    }

    /// Whatever waits is due.
    pub(super) fn hurry(&mut self) {
        self.due = self.due.map(|_| Instant::now());
    }

    /// All changes are on disk.
    pub(super) fn is_settled(&self) -> bool {
        self.due.is_none() && self.in_flight.is_none()
    }

    /// When [`Self::begin_if_due`] wants to be called again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.in_flight.is_some() { None } else { self.due }
    }

    /// Begins a write where one is due and none is under way.
    pub(super) fn begin_if_due(&mut self, store: &Store, record: impl FnOnce() -> rest::Sandbox) {
        if self.in_flight.is_some() || self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.due = None;
        self.sent = std::mem::take(&mut self.events);
        let (store, write, events, finish) =
            (store.clone(), Write::Update(record()), self.sent.clone(), self.finish.take());
        self.in_flight =
            Some(Box::pin(async move { store.commit_and(write, events, finish).await }));
    }

    /// Waits for the write under way; for ever when there is none. What is on disk now, or why it is not.
    /// Cancelling loses nothing.
    pub(super) async fn done(&mut self) -> Result<Option<Arc<rest::Sandbox>>, String> {
        let Some(in_flight) = &mut self.in_flight else { return std::future::pending().await };
        let result = in_flight.await;
        self.in_flight = None;
        match result {
            Ok(written) => {
                self.sent.clear();
                self.pace = Pace::new(LEAST_PAUSE, MOST_PAUSE);
                Ok(written)
            }
            Err(error) => {
                tracing::error!(%error, "a sandbox's state could not be written; it is tried again");
                let mut events = std::mem::take(&mut self.sent);
                events.append(&mut self.events);
                self.events = events;
                self.due = Some(Instant::now() + self.pace.pause());
                Err(error.to_string())
            }
        }
    }
}
