//! What a restart does with each record: what the store says × what was found on the host -> what to do. A total function.

use crate::state::{Cause, ContainerState, End, Phase};

/// What was found of a sandbox on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It runs.
    Running(Vec<ContainerState>),
    /// It is over, and its end was recorded.
    Ended(Recorded),
    /// Nothing runs and nothing was recorded.
    Gone(String),
    /// Its directory could not be believed and was set aside.
    Quarantined(String),
    /// Its shim does not answer: nothing is known.
    Unreachable(String),
    /// Its class cannot be had any more on this machine.
    ClassMissing(String),
}

/// A recorded end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Each container's.
    pub containers: Vec<(String, End, u64)>,
    /// Why it could not be begun, if so.
    pub launch_failure: Option<String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Begin it as if it had just been accepted, after removing what may be left of an attempt.
    Begin,
    /// It runs: follow it.
    Follow,
    /// Write down how it ended.
    RecordEnd(Recorded),
    /// Write down that it is over without a known end.
    RecordLoss(Cause),
    /// Say that it cannot be seen, and look again.
    LookAgain(String),
    /// Go on removing it.
    FinishDelete,
    /// The record says all there is; nothing is on the host.
    Keep,
    /// The record says that it is over, so what still runs of it must go; the record stays.
    RemoveRemains,
}

/// Decides.
#[must_use]
pub fn plan(phase: Phase, found: Found) -> Plan {
    match (phase, found) {
        (Phase::Deleting, _) => Plan::FinishDelete,
        (Phase::Succeeded | Phase::Failed, Found::Running(_)) => Plan::RemoveRemains,
        (Phase::Succeeded | Phase::Failed, _) => Plan::Keep,
        (_, Found::Running(_)) => Plan::Follow,
        (_, Found::Ended(record)) => Plan::RecordEnd(record),
        // Nobody was told that it ran: it is begun again rather than lost.
        (Phase::Pending | Phase::Scheduled, Found::Gone(_)) => Plan::Begin,
        (_, Found::Gone(message)) => Plan::RecordLoss(cause("Lost", message)),
        (_, Found::Quarantined(message)) => Plan::RecordLoss(cause("Quarantined", message)),
        (_, Found::Unreachable(message)) => Plan::LookAgain(message),
        (Phase::Pending, Found::ClassMissing(message)) => {
            Plan::RecordLoss(cause("ClassMissing", message))
        }
        // It may well run: a class that comes back (runsc installed again) shows it.
        (_, Found::ClassMissing(message)) => Plan::LookAgain(message),
    }
}

fn cause(reason: &str, message: String) -> Cause {
    Cause { reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_its_plan() {
        use Phase::{Deleting, Failed, Pending, Running, Scheduled, Succeeded, Unknown};
        let record = Recorded { containers: Vec::new(), launch_failure: None };
        let loss = |reason: &str| Plan::RecordLoss(cause(reason, "why".into()));
        let look = Plan::LookAgain("why".into());
        let found = [
            Found::Running(Vec::new()),
            Found::Ended(record.clone()),
            Found::Gone("why".into()),
            Found::Quarantined("why".into()),
            Found::Unreachable("why".into()),
            Found::ClassMissing("why".into()),
        ];
        let end = Plan::RecordEnd(record);
        let keep = Plan::Keep;
        // Columns in the order of `found`.
        let table = [
            (
                Pending,
                [
                    Plan::Follow,
                    end.clone(),
                    Plan::Begin,
                    loss("Quarantined"),
                    look.clone(),
                    loss("ClassMissing"),
                ],
            ),
            (
                Scheduled,
                [
                    Plan::Follow,
                    end.clone(),
                    Plan::Begin,
                    loss("Quarantined"),
                    look.clone(),
                    look.clone(),
                ],
            ),
            (
                Running,
                [
                    Plan::Follow,
                    end.clone(),
                    loss("Lost"),
                    loss("Quarantined"),
                    look.clone(),
                    look.clone(),
                ],
            ),
            (Unknown, [Plan::Follow, end, loss("Lost"), loss("Quarantined"), look.clone(), look]),
            (
                Succeeded,
                [
                    Plan::RemoveRemains,
                    keep.clone(),
                    keep.clone(),
                    keep.clone(),
                    keep.clone(),
                    keep.clone(),
                ],
            ),
            (
                Failed,
                [Plan::RemoveRemains, keep.clone(), keep.clone(), keep.clone(), keep.clone(), keep],
            ),
            (Deleting, std::array::from_fn(|_| Plan::FinishDelete)),
        ];
        assert_eq!(table.len(), Phase::ALL.len());
        for (phase, plans) in table {
            for (found, expected) in found.iter().zip(plans) {
                assert_eq!(plan(phase, found.clone()), expected, "{phase:?} {found:?}");
            }
        }
    }
}
