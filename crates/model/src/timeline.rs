//! Where the time of a creation went: consecutive phases that sum to the total, by construction.

use crate::units::UnixMicros;

/// A step of a creation, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Request accepted to object durable in the store.
    Store,
    /// Durable to the owner task beginning work.
    Queue,
    /// Image found or pulled, and unpacked.
    Image,
    /// Network slot, disk and cgroup taken from the pools or made.
    Prepare,
    /// Spawner asked, shim alive.
    Spawn,
    /// Namespaces, mounts, limits; first process running.
    Sandbox,
    /// First process up to the image's command being exec'ed.
    Command,
    /// Command exec'ed to probes passing and ports open; only where there are some.
    Ready,
    /// The last of these to Ready recorded in the API.
    Publish,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Phase; 9] = [
        Phase::Store,
        Phase::Queue,
        Phase::Image,
        Phase::Prepare,
        Phase::Spawn,
        Phase::Sandbox,
        Phase::Command,
        Phase::Ready,
        Phase::Publish,
    ];

    /// Lower-case name, as shown in the API and in metric labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Store => "store",
            Phase::Queue => "queue",
            Phase::Image => "image",
            Phase::Prepare => "prepare",
            Phase::Spawn => "spawn",
            Phase::Sandbox => "sandbox",
            Phase::Command => "command",
            Phase::Ready => "ready",
            Phase::Publish => "publish",
        }
    }

    /// The phase of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

/// Marks of one creation. Only ends are stored: a phase begins where the one before ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    begun: UnixMicros,
    ends: Vec<(Phase, u64)>,
}

impl Timeline {
    /// A timeline that begins at `begun`.
    #[must_use]
    pub const fn new(begun: UnixMicros) -> Self {
        Self { begun, ends: Vec::new() }
    }

    /// When the request was accepted.
    #[must_use]
    pub const fn begun(&self) -> UnixMicros {
        self.begun
    }

    /// Ends `phase`, `elapsed_micros` after the beginning (monotonic clock). Marks never go
    /// backwards: an earlier time counts as the last mark's.
    pub fn end(&mut self, phase: Phase, elapsed_micros: u64) {
        let last = self.total_micros();
        self.ends.push((phase, elapsed_micros.max(last)));
    }

    /// Each phase with its duration in microseconds, in the order in which they ended.
    #[must_use]
    pub fn phases(&self) -> Vec<(Phase, u64)> {
        let mut begin = 0;
        self.ends
            .iter()
            .map(|&(phase, end)| {
                let duration = end - begin;
                begin = end;
                (phase, duration)
            })
            .collect()
    }

    /// Microseconds from the beginning to the last mark.
    #[must_use]
    pub fn total_micros(&self) -> u64 {
        self.ends.last().map_or(0, |&(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_sum_to_the_total_even_when_marks_go_back() {
        let mut timeline = Timeline::new(UnixMicros(5));
        timeline.end(Phase::Store, 200);
        timeline.end(Phase::Queue, 150);
        timeline.end(Phase::Image, 950);
        let sum: u64 = timeline.phases().iter().map(|&(_, micros)| micros).sum();
        assert_eq!(sum, timeline.total_micros());
        assert_eq!(timeline.phases()[1], (Phase::Queue, 0));
    }

    #[test]
    fn every_name_reads_back() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.name()), Some(phase));
        }
    }
}
