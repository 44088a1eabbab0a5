//! One exec in a sandbox that runs: from the request to its exit code.

use std::time::Instant;

use anyhow::Context;
use atoll_wire::rest::{ExecRequest, StreamMessage};

use super::report::{Samples, publish, ratios};
use super::statistics::micros;
use super::{Bench, blocks, run_block};
use crate::args::ExecBenchArgs;
use crate::client::{Client, ProcessEvent, sandbox_path};
use crate::output;

/// From the request to the exit code.
pub(super) const ROUND_TRIP: &str = "round trip";
/// How often the shell inside starts the command for one sample of the comparison: enough that its own start is little beside.
const INSIDE_RUNS: u64 = 10;
/// Samples of the comparison.
const INSIDE_SAMPLES: usize = 15;

/// Measures, and publishes what was found.
pub(super) async fn run(client: &Client, args: ExecBenchArgs) -> anyhow::Result<()> {
    let command = if args.command.is_empty() { vec!["/bin/true".to_owned()] } else { args.command };
    let bench = Bench::begin(client, &args.bench).await?;
    let result = measure(&bench, &command).await;
    bench.end().await?;
    let report = result?;
    publish(&report, args.bench.json.as_deref())
}

async fn measure(bench: &Bench<'_>, command: &[String]) -> anyhow::Result<super::Report> {
    let mut report = bench.report("exec", command, 1)?;
    let sleep = ["sleep".to_owned(), "3600".to_owned()];
    let (mut rivals, absent) = bench.rivals(&sleep, 1).await?;
    report.absent = absent;
    for rival in &mut rivals {
        rival.begin_resident().await.with_context(|| format!("{} does not run", rival.name()))?;
    }
    let result = alternate(bench, command, &rivals).await;
    for rival in &mut rivals {
        if let Err(error) = rival.end_resident().await {
            output::warn(&format!("{} left something behind: {error:#}", rival.name()));
        }
    }
    let (mut ours, theirs) = result?;
    for _ in 0..INSIDE_SAMPLES {
        match fork_and_exec_inside(bench, command).await {
            Ok(inside) => ours.add("fork and exec inside, by a shell", inside),
            Err(error) => {
                output::warn(&format!("fork and exec inside was not measured: {error:#}"));
                break;
            }
        }
    }
    report.contenders.push(ours.into_contender("atoll", "exec over the API"));
    for (rival, samples) in rivals.iter().zip(theirs) {
        report.contenders.push(samples.into_contender(rival.name(), rival.how()));
    }
    report.ratios = ratios(&report.contenders);
    Ok(report)
}

async fn alternate(
    bench: &Bench<'_>,
    command: &[String],
    rivals: &[Box<dyn super::Rival>],
) -> anyhow::Result<(Samples, Vec<Samples>)> {
    let (client, name) = (bench.client, bench.resident.id.as_str());
    let mut ours = Samples::default();
    let mut theirs: Vec<Samples> = rivals.iter().map(|_| Samples::default()).collect();
    round_trip(client, name, command).await.context("the first, unmeasured exec failed")?;
    for rival in rivals {
        rival.exec(command).await.context("a rival's first, unmeasured exec failed")?;
    }
    for size in blocks(bench.args.count, 1) {
        run_block(size, 1, &mut ours, |_| round_trip(client, name, command)).await;
        for (rival, samples) in rivals.iter().zip(&mut theirs) {
            run_block(size, 1, samples, |_| rival.exec(command)).await;
        }
    }
    Ok((ours, theirs))
}

async fn round_trip(
    client: &Client,
    name: &str,
    command: &[String],
) -> anyhow::Result<Vec<(String, u64)>> {
    let begun = Instant::now();
    let (code, _) = exec(client, name, command.to_vec()).await?;
    let took = micros(begun.elapsed());
    anyhow::ensure!(code == 0, "the command ended with exit code {code}");
    Ok(vec![(ROUND_TRIP.to_owned(), took)])
}

/// Runs a command; gives its exit code and standard output.
async fn exec(client: &Client, name: &str, command: Vec<String>) -> anyhow::Result<(i32, Vec<u8>)> {
    let request = ExecRequest { command, ..ExecRequest::default() };
    let path = format!("{}/exec", sandbox_path(name));
    let mut connection = client.process(&path, &request).await?;
    let mut stdout = Vec::new();
    while let Some(event) = connection.output.next().await? {
        match event {
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ProcessEvent::Stderr(_) => {}
            ProcessEvent::Message(StreamMessage::Exited { code, .. }) => return Ok((code, stdout)),
            ProcessEvent::Message(
                StreamMessage::StartFailed { message, .. } | StreamMessage::Error { message },
            ) => anyhow::bail!(message),
            ProcessEvent::Message(_) => {}
        }
    }
    anyhow::bail!("the server ended the stream before the command had ended")
}

/// What starting the command costs a shell inside, without atoll: a loop of many, less a loop of none.
async fn fork_and_exec_inside(bench: &Bench<'_>, command: &[String]) -> anyhow::Result<u64> {
    let words: Vec<String> =
        command.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
    let script = |runs: u64| {
        format!("i=0; while [ $i -lt {runs} ]; do {} >/dev/null; i=$((i+1)); done", words.join(" "))
    };
    let timed = async |runs| -> anyhow::Result<u64> {
        let begun = Instant::now();
        let shell = vec!["/bin/sh".to_owned(), "-c".to_owned(), script(runs)];
        let (code, _) = exec(bench.client, &bench.resident.id, shell).await?;
        anyhow::ensure!(code == 0, "the shell ended with exit code {code}");
        Ok(micros(begun.elapsed()))
    };
    let empty = timed(0).await?;
    let full = timed(INSIDE_RUNS).await?;
    Ok(full.saturating_sub(empty) / INSIDE_RUNS)
}
