//! Many creations at once: how long until the last of them has given its first output, beside what one alone takes in the same run.
//!
//! Deletion is measured by itself, after all have ended: it is not part of starting.

use std::time::Instant;

use atoll_wire::rest::CreateSandbox;
use futures::StreamExt;
use serde::Serialize;

use super::provision::{self, Started};
use super::statistics::{Summary, micros};
use crate::client::Client;

/// Runs one after the other that say what one alone takes. Guess: enough for a median.
const ALONE_RUNS: usize = 15;

/// What a burst took.
#[derive(Debug, Serialize)]
pub(crate) struct Burst {
    /// What was measured.
    pub(crate) name: String,
    /// How many.
    pub(crate) count: u32,
    /// How many at a time.
    pub(crate) concurrency: u32,
    /// From create to first output of one at a time, in this run.
    pub(crate) alone: Summary,
    /// From the first request until the last first output.
    pub(crate) all_started_micros: u64,
    /// From then on, once all had ended, until nothing was left of them.
    pub(crate) all_gone_micros: u64,
    /// `all_started` divided by what all cores together would take at the median of one alone: count / cores x p50.
    pub(crate) ratio: f64,
    /// Runs that failed.
    pub(crate) failures: Vec<String>,
}

/// Measures.
pub(super) async fn measure(
    client: &Client,
    name: &str,
    request: &CreateSandbox,
    (count, concurrency): (u32, u32),
) -> anyhow::Result<Burst> {
    let mut alone = Vec::with_capacity(ALONE_RUNS);
    for _ in 0..ALONE_RUNS {
        let started = provision::start(client, request).await?;
        client.delete_sandbox(&started.id).await?;
        alone.push(started.first_output?.0);
    }
    let alone = Summary::of(&alone).ok_or_else(|| anyhow::anyhow!("nothing was measured"))?;
    let (begun, at_a_time) = (Instant::now(), concurrency as usize);
    let started: Vec<anyhow::Result<(Started, u64)>> = futures::stream::iter(0..count)
        .map(|_| async {
            let before = micros(begun.elapsed());
            let started = provision::start(client, request).await?;
            let first_at = started.first_output.as_ref().map_or(0, |(first, _)| before + first);
            Ok((started, first_at))
        })
        .buffer_unordered(at_a_time)
        .collect()
        .await;
    let (mut failures, mut ids, mut all_started_micros) = (Vec::new(), Vec::new(), 0);
    for one in started {
        match one {
            Ok((Started { id, first_output, .. }, first_at)) => {
                ids.push(id);
                all_started_micros = all_started_micros.max(first_at);
                failures.extend(first_output.err().map(|error| format!("{error:#}")));
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let deletion = Instant::now();
    let deleted: Vec<_> = futures::stream::iter(&ids)
        .map(|id| client.delete_sandbox(id))
        .buffer_unordered(at_a_time)
        .collect()
        .await;
    let all_gone_micros = micros(deletion.elapsed());
    failures.extend(deleted.into_iter().filter_map(|it| it.err().map(|error| error.to_string())));
    let ratio = ratio(all_started_micros, count, super::processors(), alone.p50_micros);
    let name = name.to_owned();
    Ok(Burst {
        name,
        count,
        concurrency,
        alone,
        all_started_micros,
        all_gone_micros,
        ratio,
        failures,
    })
}

fn ratio(all_started_micros: u64, count: u32, cores: usize, alone_p50_micros: u64) -> f64 {
    let shared = f64::from(count) / cores.max(1) as f64 * alone_p50_micros.max(1) as f64;
    (all_started_micros as f64 / shared * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_one_when_all_cores_were_as_busy_as_one_alone() {
        assert!((ratio(500_000, 100, 2, 10_000) - 1.0).abs() < 1e-9);
        assert!((ratio(600_000, 100, 2, 10_000) - 1.2).abs() < 1e-9);
    }
}
