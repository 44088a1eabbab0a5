//! What an owner does with what a shim tells.

use atoll_model::state::{Cause, Event, Phase};
use atoll_model::timeline;
use atoll_model::units::UnixMicros;
use atoll_wire::record::ContainerExit;
use atoll_wire::shim::ShimEvent;

use super::persist::Urgency;
use super::status;
use super::task::Owner;

impl Owner {
    /// Takes in an event; `None`: the shim was lost.
    pub(super) fn take_event(&mut self, event: Option<ShimEvent>) {
        match event {
            None => self.lose_shim("its shim was lost"),
            Some(ShimEvent::Spawned { at_monotonic_micros }) => {
                self.mark(timeline::Phase::Spawn, at_monotonic_micros);
                if let Some(plan) = &self.plan {
                    let (uid, millis) = (self.subject.uid, plan.boost_millis);
                    self.context.boosts().begun(uid, millis, at_monotonic_micros);
                }
            }
            Some(ShimEvent::Isolated { at_monotonic_micros, .. }) => {
                self.mark(timeline::Phase::Sandbox, at_monotonic_micros)
            }
            Some(ShimEvent::Started { container, at_monotonic_micros, at_unix_micros, .. }) => {
                self.mark(timeline::Phase::Command, at_monotonic_micros);
                self.apply(
                    Event::Started { container, at: UnixMicros(at_unix_micros) },
                    Urgency::Now,
                );
                self.tend_gate();
                self.tend_order();
            }
            Some(ShimEvent::Exited { exit }) => self.take_exit(&exit),
            Some(ShimEvent::LogDropped { container, dropped_bytes }) => {
                self.apply(Event::LogDropped { container, bytes: dropped_bytes }, Urgency::Soon);
            }
            Some(ShimEvent::Ended) => {
                self.let_go_of_ended();
                // Only should the shim have told of fewer exits than there were containers.
                let message = "its shim ended without telling of every container".to_owned();
                self.apply(Event::Lost(Cause { reason: "Lost".to_owned(), message }), Urgency::Now);
                self.context.volumes.release(self.subject.uid);
            }
            Some(ShimEvent::LaunchFailed { message }) => {
                self.let_go();
                self.fail_launch(Cause { reason: "StartFailed".to_owned(), message });
            }
        }
    }

    /// It could not be begun, and nothing of it runs: its volumes are free.
    pub(super) fn fail_launch(&mut self, cause: Cause) {
        self.apply(Event::LaunchFailed(cause), Urgency::Now);
        self.context.volumes.release(self.subject.uid);
    }

    fn take_exit(&mut self, exit: &ContainerExit) {
        let end = status::end_of(exit);
        let how = match (end.code, end.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "exit code not known".to_owned(),
        };
        self.tell(
            !end.is_success(),
            "Exited",
            format!("container {}: {how} ({})", exit.container, end.reason.name()),
        );
        self.apply(Event::Ended { container: exit.container.clone(), end }, Urgency::Now);
        self.tend_gate();
        self.tend_order();
    }

    /// It cannot be seen any more: look for it.
    pub(super) fn lose_shim(&mut self, why: &str) {
        self.let_go();
        if self.state.phase != Phase::Deleting && !self.state.phase.is_over() {
            self.tell(true, "Unreachable", why.to_owned());
            self.apply(Event::Unreachable(why.to_owned()), Urgency::Now);
            self.adopt();
        }
    }
}
