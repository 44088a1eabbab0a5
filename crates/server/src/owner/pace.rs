//! Waiting between attempts: twice as long each time, within bounds.

use std::time::Duration;

/// A pause that grows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    next: Duration,
    most: Duration,
}

impl Pace {
    /// From `least` to `most`.
    pub(crate) const fn new(least: Duration, most: Duration) -> Self {
        Self { next: least, most }
    }

    /// The pause before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        pause
    }
}
