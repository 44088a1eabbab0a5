//! The two clocks of a timeline: the monotonic one orders events between processes and says how long something waits, the wall clock
//! is for people.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// CLOCK_MONOTONIC, which all processes of the machine share.
#[must_use]
pub fn monotonic() -> Duration {
    Duration::from_micros(monotonic_micros())
}

/// CLOCK_MONOTONIC in microseconds: the same in every process of this boot, so that marks of server and shim compare.
#[must_use]
pub fn monotonic_micros() -> u64 {
    u64::try_from(micros(clock_gettime(ClockId::Monotonic))).unwrap_or(0)
}

/// The wall clock, in microseconds since 1970.
#[must_use]
pub fn unix_micros() -> i64 {
    micros(clock_gettime(ClockId::Realtime))
}

const fn micros(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = monotonic_micros();
        assert!(first > 0);
        assert!(monotonic_micros() >= first);
        assert!(unix_micros() > 1_600_000_000_000_000, "after 2020");
    }
}
