//! Starting containers in their order: what is held is asked for once those it depends on are ready (`atoll_model::dependencies`).
//!
//! Remembers nothing of its own: who was asked for is remembered by the shim, and asking again does nothing.

use std::time::Duration;

use atoll_model::causes::with_causes;
use atoll_model::state::{Event, Phase};
use tokio_util::task::AbortOnDropHandle;

use super::persist::Urgency;
use super::task::{Destroying, Owner};

/// Between attempts to have a container started.
const PAUSE: Duration = Duration::from_secs(1);

impl Owner {
    /// Has started what may start now, and gives up a sandbox of which something never can.
    pub(super) fn tend_order(&mut self) {
        if self.state.phase == Phase::Deleting || self.state.phase.is_over() {
            return;
        }
        let Some(live) = self.live.borrow().clone() else { return };
        if let Some(cause) = self.state.broken_dependency() {
            return self.give_up(Event::GivenUp(cause));
        }
        for name in self.state.startable() {
            if self.starting.contains_key(name) {
                continue;
            }
            let (sandbox, container) = (std::sync::Arc::clone(&live.sandbox), name.to_owned());
            let start = async move {
                while let Err(error) = sandbox.start_container(&container).await {
                    let (uid, error) = (sandbox.uid(), with_causes(&error));
                    tracing::warn!(uid, container, error, "a container could not be started yet");
                    tokio::time::sleep(PAUSE).await;
                }
            };
            let task = AbortOnDropHandle::new(tokio::spawn(start));
            self.starting.insert(name.to_owned(), task);
        }
    }

    /// Ends it for what the event says; the record stays.
    pub(super) fn give_up(&mut self, event: Event) {
        self.gatekeeper = None;
        self.apply(event, Urgency::Now);
        self.let_go();
        self.destroy(Destroying::ToKeepRecord);
    }
}
