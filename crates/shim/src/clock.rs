//! The clocks that the protocol uses. A step of the wall clock changes what is shown, never how long something waits.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since 1970 by the wall clock.
pub(crate) fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// CLOCK_MONOTONIC, which all processes of the machine share.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// [`monotonic`] in microseconds.
pub(crate) fn monotonic_micros() -> u64 {
    u64::try_from(monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// The wall clock as logs show it: RFC 3339 with nanoseconds, UTC.
pub(crate) fn log_time() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}
