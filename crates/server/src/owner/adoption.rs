//! What an owner does with what was found of its sandbox, after a restart or when its shim was lost.

use std::sync::Arc;

use atoll_model::recovery::{self, Found, Plan, Recorded};
use atoll_model::state::{Cause, ContainerPhase, ContainerState, Event};
use atoll_runtime::Adoption;
use atoll_wire::record::EndRecord;

use super::persist::Urgency;
use super::status;
use super::task::{Destroying, Owner, cause};
use super::work::{self, After};

impl Owner {
    pub(super) async fn take_adoption(&mut self, adopted: Result<Adoption, String>) {
        let found = match adopted {
            Ok(Adoption::Running(sandbox, state, events)) => {
                let containers = status::seen(&state);
                if let Some(recorded) = all_ended(&containers) {
                    // Its shim stays a while for clients who have not read everything.
                    return self.carry_out(Found::Ended(recorded));
                }
                if recovery::plan(self.state.phase, Found::Running(containers.clone()))
                    == Plan::Follow
                {
                    if self.plan.is_none() {
                        self.plan = Some(Arc::new(
                            work::plan_again(&self.context, &self.subject, &self.digests()).await,
                        ));
                    }
                    self.tell(false, "Adopted", "it went on while nobody looked".to_owned());
                    self.follow(sandbox, events);
                    self.apply(Event::Seen { containers, adopted: true }, Urgency::Now);
                    self.tend_gate();
                    self.tend_order();
                    return;
                }
                Found::Running(containers)
            }
            Ok(Adoption::Ended(record)) => Found::Ended(recorded(&record)),
            Ok(Adoption::Gone { reason }) => Found::Gone(reason),
            Ok(Adoption::Quarantined { directory, reason }) => Found::Quarantined(format!(
                "{reason}; its directory was set aside at {}",
                directory.display()
            )),
            Err(message) => Found::Unreachable(message),
        };
        self.carry_out(found);
    }

    pub(super) fn carry_out(&mut self, found: Found) {
        // What died together with its shim, or with the host, may have left groups and files that nobody removed.
        let unclean = matches!(found, Found::Gone(_));
        match recovery::plan(self.state.phase, found) {
            Plan::Keep if unclean => self.destroy(Destroying::ToKeepRecord),
            // Running ones were followed already; kept records and deletions need nothing here.
            Plan::Follow | Plan::Keep | Plan::FinishDelete => {}
            Plan::Begin => self.destroy(Destroying::BeforeBeginning),
            Plan::RecordEnd(record) => self.record_end(record),
            Plan::RecordLoss(cause) => {
                if cause.reason == "Quarantined" {
                    self.tell(true, "Quarantined", cause.message.clone());
                }
                self.apply(Event::Lost(cause), Urgency::Now);
                if unclean {
                    self.destroy(Destroying::ToKeepRecord);
                } else {
                    self.context.volumes.release(self.subject.uid);
                }
            }
            Plan::LookAgain(message) => {
                self.apply(Event::Unreachable(message), Urgency::Now);
                self.work = Some(work::pause(self.pace.pause(), After::Adopt));
            }
            Plan::RemoveRemains => {
                self.tell(
                    true,
                    "Killed",
                    "something of it still ran although it was over".to_owned(),
                );
                self.destroy(Destroying::ToKeepRecord);
            }
        }
    }

    fn record_end(&mut self, record: Recorded) {
        for (container, end, bytes) in record.containers {
            self.apply(Event::LogDropped { container: container.clone(), bytes }, Urgency::Now);
            if let Some(at) = end.finished_at {
                tracing::debug!(container, at = at.0, "it ended while no server ran");
            }
            self.apply(Event::Ended { container, end }, Urgency::Now);
        }
        let left_over = match record.launch_failure {
            Some(message) => {
                Event::LaunchFailed(Cause { reason: "StartFailed".to_owned(), message })
            }
            None => Event::Lost(cause("Lost", "its record does not tell of every container")),
        };
        self.apply(left_over, Urgency::Now);
        self.context.volumes.release(self.subject.uid);
    }
}

/// The ends of containers, when all have ended.
fn all_ended(containers: &[ContainerState]) -> Option<Recorded> {
    let end = |it: &ContainerState| match &it.phase {
        ContainerPhase::Ended(end) => Some((it.name.clone(), end.clone(), it.log_dropped_bytes)),
        _ => None,
    };
    let containers: Vec<_> = containers.iter().map(end).collect::<Option<_>>()?;
    (!containers.is_empty()).then_some(Recorded { containers, launch_failure: None })
}

fn recorded(record: &EndRecord) -> Recorded {
    let dropped = record.log_dropped_bytes.iter().copied().chain(std::iter::repeat(0));
    let containers = record.containers.iter().zip(dropped);
    Recorded {
        containers: containers
            .map(|(exit, bytes)| (exit.container.clone(), status::end_of(exit), bytes))
            .collect(),
        launch_failure: record.launch_failure.clone(),
    }
}
