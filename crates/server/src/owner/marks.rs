//! When each step of a creation ended, as it is found out; the timeline is put together from it once the sandbox runs.

use atoll_model::timeline::{Phase, Timeline};
use atoll_model::units::UnixMicros;
use atoll_sys::clock::monotonic_micros;
use atoll_wire::rest;

/// Ends of phases on the monotonic clock, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    begun_at: UnixMicros,
    begun: u64,
    ends: [Option<u64>; Phase::ALL.len()],
}

impl Marks {
    /// A creation that begins now.
    pub(crate) fn begin() -> Self {
        Self {
            begun_at: crate::time::now(),
            begun: monotonic_micros(),
            ends: [None; Phase::ALL.len()],
        }
    }

    /// A phase ends now.
    pub(crate) fn end_now(&mut self, phase: Phase) {
        self.end_at(phase, monotonic_micros());
    }

    /// A phase ended then; of several ends (one of each container) the last counts.
    pub(crate) fn end_at(&mut self, phase: Phase, at: u64) {
        if let Some(end) = self.ends.get_mut(phase as usize) {
            *end = Some(end.map_or(at, |known| known.max(at)));
        }
    }

    /// The phases so far. Where the end of preparing was seen after the shim spoke (both are under way at once), the shim counts.
    pub(crate) fn timeline(&self) -> Timeline {
        let mut timeline = Timeline::new(self.begun_at);
        for phase in Phase::ALL {
            let Some(mut end) = self.ends[phase as usize] else { continue };
            if phase == Phase::Prepare
                && let Some(spawned) = self.ends[Phase::Spawn as usize]
            {
                end = end.min(spawned);
            }
            timeline.end(phase, end.saturating_sub(self.begun));
        }
        timeline
    }

    /// As the API shows it.
    pub(crate) fn shown(&self) -> rest::Timeline {
        let timeline = self.timeline();
        let phase = |(phase, micros): (Phase, u64)| rest::TimelinePhase {
            name: phase.name().to_owned(),
            micros,
        };
        rest::Timeline {
            begun_at: crate::time::text(timeline.begun()),
            total_micros: timeline.total_micros(),
            phases: timeline.phases().into_iter().map(phase).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_come_in_order_and_sum_to_the_total() {
        let mut marks = Marks::begin();
        let begun = marks.begun;
        marks.end_at(Phase::Command, begun + 900);
        marks.end_at(Phase::Sandbox, begun + 500);
        marks.end_at(Phase::Sandbox, begun + 700);
        marks.end_at(Phase::Prepare, begun + 400);
        marks.end_at(Phase::Spawn, begun + 300);
        marks.end_at(Phase::Store, begun + 100);
        let shown = marks.shown();
        let phases: Vec<_> = shown.phases.iter().map(|it| (it.name.as_str(), it.micros)).collect();
        assert_eq!(
            phases,
            [("store", 100), ("prepare", 200), ("spawn", 0), ("sandbox", 400), ("command", 200)]
        );
        assert_eq!(shown.total_micros, 900);
    }
}
