//! What is kept of many measurements: count, mean, percentiles.

use std::time::Duration;

use serde::Serialize;

/// A summary of durations, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many.
    pub(crate) n: usize,
    /// Arithmetic mean.
    pub(crate) mean_micros: u64,
    /// Half are at most this.
    pub(crate) p50_micros: u64,
    /// 95 of 100 are at most this.
    pub(crate) p95_micros: u64,
    /// 99 of 100 are at most this.
    pub(crate) p99_micros: u64,
    /// The longest.
    pub(crate) max_micros: u64,
}

impl Summary {
    /// A summary; `None` of nothing.
    pub(crate) fn of(samples: &[u64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let max_micros = *sorted.last()?;
        let sum: u128 = sorted.iter().map(|sample| u128::from(*sample)).sum();
        let mean = sum / sorted.len() as u128;
        Some(Self {
            n: sorted.len(),
            mean_micros: u64::try_from(mean).unwrap_or(u64::MAX),
            p50_micros: percentile(&sorted, 50),
            p95_micros: percentile(&sorted, 95),
            p99_micros: percentile(&sorted, 99),
            max_micros,
        })
    }
}

/// The smallest sample that so many of 100 do not exceed (nearest rank). `sorted` is not empty.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples: Vec<u64> = (1..=200).rev().collect();
        let summary = Summary::of(&samples).unwrap();
        assert_eq!(
            (summary.p50_micros, summary.p95_micros, summary.p99_micros, summary.max_micros),
            (100, 190, 198, 200)
        );
        assert_eq!((summary.n, summary.mean_micros), (200, 100));
        let one = Summary::of(&[7]).unwrap();
        assert_eq!((one.p50_micros, one.p99_micros), (7, 7));
        assert_eq!(Summary::of(&[]), None);
    }
}
