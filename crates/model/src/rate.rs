//! A token bucket: how often something may be done. Pure: the caller brings the time.

use std::num::NonZero;
use std::time::Duration;

/// How often something may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Times a second in the long run.
    pub per_second: NonZero<u32>,
    /// Times at once after a rest.
    pub burst: NonZero<u32>,
}

/// What may still be done now.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    limit: RateLimit,
    /// What may still be done, as the time that it took to earn: exact, where a fraction would not be.
    saved: Duration,
    seen: Duration,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, saved: cost(limit) * limit.burst.get(), seen: Duration::ZERO }
    }

    /// Takes one. `now` is the time since the bucket was made; an earlier one than before counts as that.
    ///
    /// # Errors
    /// How long to wait until there is one.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let cost = cost(self.limit);
        let full = cost * self.limit.burst.get();
        self.saved = self.saved.saturating_add(now.saturating_sub(self.seen)).min(full);
        self.seen = self.seen.max(now);
        match self.saved.checked_sub(cost) {
            Some(rest) => {
                self.saved = rest;
                Ok(())
            }
            None => Err(cost - self.saved),
        }
    }
}

fn cost(limit: RateLimit) -> Duration {
    Duration::from_secs(1) / limit.per_second.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u32, burst: u32) -> TokenBucket {
        let number = |it| NonZero::new(it).unwrap();
        TokenBucket::new(RateLimit { per_second: number(per_second), burst: number(burst) })
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate_holds() {
        let mut bucket = bucket(10, 3);
        let now = Duration::from_secs(5);
        assert!((0..3).all(|_| bucket.take(now).is_ok()));
        assert_eq!(bucket.take(now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(now + Duration::from_millis(40)), Err(Duration::from_millis(60)));
        assert_eq!(bucket.take(now + Duration::from_millis(100)), Ok(()));
        let mut taken = 0;
        for millis in 101..10_101 {
            taken += u32::from(bucket.take(now + Duration::from_millis(millis)).is_ok());
        }
        assert_eq!(taken, 100, "ten seconds at ten a second");
    }

    #[test]
    fn rest_saves_no_more_than_a_burst_and_time_never_runs_back() {
        let mut bucket = bucket(1, 2);
        assert!((0..2).all(|_| bucket.take(Duration::from_secs(1000)).is_ok()));
        assert!(bucket.take(Duration::from_secs(1000)).is_err());
        assert!(bucket.take(Duration::ZERO).is_err());
        assert!(bucket.take(Duration::from_millis(1_000_999)).is_err());
        assert!(bucket.take(Duration::from_secs(1001)).is_ok());
    }
}
