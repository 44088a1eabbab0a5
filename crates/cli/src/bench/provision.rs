//! From a create request to the first output of the command, as the client sees it and phase by phase.

use std::time::Instant;

use anyhow::Context;
use atoll_wire::rest::{
    AttachRequest, CreateSandbox, SandboxEnvelope, SandboxStatus, StreamMessage,
};

use super::report::{Samples, publish, ratios};
use super::statistics::micros;
use super::{Bench, blocks, burst, run_block, sandbox_request};
use crate::args::ProvisionBenchArgs;
use crate::client::{Client, ClientError, ProcessEvent, sandbox_path, with_query};

/// From sending the request (or starting the rival's program) to the first byte of output.
pub(super) const FIRST_OUTPUT: &str = "first output";
/// To the end of the command, with all its output.
pub(super) const ENDED: &str = "ended";
/// From the end of the command until nothing is left of it (of a rival: until its program has ended).
pub(super) const GONE: &str = "gone";

/// Measures, and publishes what was found.
pub(super) async fn run(client: &Client, args: ProvisionBenchArgs) -> anyhow::Result<()> {
    let command = if args.command.is_empty() {
        vec!["echo".to_owned(), "ready".to_owned()]
    } else {
        args.command
    };
    let bench = Bench::begin(client, &args.bench).await?;
    let result = measure(&bench, &command, args.concurrency, &args.cpu).await;
    bench.end().await?;
    let report = result?;
    publish(&report, args.bench.json.as_deref())
}

async fn measure(
    bench: &Bench<'_>,
    command: &[String],
    concurrency: u32,
    cpu_limits: &[String],
) -> anyhow::Result<super::Report> {
    let mut report = bench.report("provision", command, concurrency)?;
    let (rivals, absent) = bench.rivals(command, concurrency as usize).await?;
    report.absent = absent;
    let mut ours = contenders(bench, command, cpu_limits);
    // Once each, unmeasured: caches are warm for everybody.
    for (_, request, _) in &ours {
        provision(bench.client, request).await.context("the first, unmeasured run failed")?;
    }
    let mut working = Vec::new();
    for rival in rivals {
        match rival.provision(0).await {
            Ok(_) => working.push(rival),
            Err(error) => {
                report.absent.insert(rival.name().to_owned(), format!("{error:#}"));
            }
        }
    }
    let rivals = working;
    let mut theirs: Vec<Samples> = rivals.iter().map(|_| Samples::default()).collect();
    for size in blocks(bench.args.count, concurrency) {
        for (_, request, samples) in &mut ours {
            run_block(size, concurrency, samples, |_| provision(bench.client, request)).await;
        }
        for (rival, samples) in rivals.iter().zip(&mut theirs) {
            run_block(size, concurrency, samples, |worker| rival.provision(worker)).await;
        }
    }
    if concurrency > 1 {
        for (name, request, _) in &ours {
            let size = (bench.args.count, concurrency);
            report.bursts.push(burst::measure(bench.client, name, request, size).await?);
        }
    }
    for (name, _, samples) in ours {
        report.contenders.push(samples.into_contender(&name, "create and attach over the API"));
    }
    for (rival, samples) in rivals.iter().zip(theirs) {
        report.contenders.push(samples.into_contender(rival.name(), rival.how()));
    }
    report.ratios = ratios(&report.contenders);
    Ok(report)
}

/// What is measured of atoll itself: one for each CPU limit, or one with the default.
fn contenders(
    bench: &Bench<'_>,
    command: &[String],
    cpu_limits: &[String],
) -> Vec<(String, CreateSandbox, Samples)> {
    let request = |cpu: Option<&String>| {
        let mut request = sandbox_request(bench.args, command.to_vec());
        let container = &mut request.spec.containers[0];
        container.await_attach = true;
        container.resource.cpu = cpu.cloned();
        request
    };
    if cpu_limits.is_empty() {
        return vec![("atoll".to_owned(), request(None), Samples::default())];
    }
    cpu_limits
        .iter()
        .map(|cpu| (format!("atoll, cpu {cpu}"), request(Some(cpu)), Samples::default()))
        .collect()
}

/// A sandbox that was begun, and whose command has ended unless something went wrong.
pub(super) struct Started {
    pub(super) id: String,
    created: u64,
    /// When the first output came and when the command had ended, since the request.
    pub(super) first_output: anyhow::Result<(u64, u64)>,
}

/// Creates one and reads its output to the end.
pub(super) async fn start(client: &Client, request: &CreateSandbox) -> anyhow::Result<Started> {
    let begun = Instant::now();
    let sandbox = client.create_sandbox(request).await?;
    let created = micros(begun.elapsed());
    let first_output = first_output(client, &sandbox.id, begun).await;
    Ok(Started { id: sandbox.id, created, first_output })
}

/// One sandbox from create to gone.
async fn provision(client: &Client, request: &CreateSandbox) -> anyhow::Result<Vec<(String, u64)>> {
    let Started { id, created, first_output } = start(client, request).await?;
    let status = ended_status(client, &id).await;
    let ended_at = Instant::now();
    client.delete_sandbox(&id).await?;
    let gone = micros(ended_at.elapsed());
    let (first, ended) = first_output?;
    let mut stages: Vec<(String, u64)> = Vec::new();
    if let Some(timeline) = status?.timeline {
        for phase in timeline.phases {
            stages.push((format!("phase {}", phase.name), phase.micros));
        }
        stages.push(("phases together".to_owned(), timeline.total_micros));
    }
    stages.push(("request answered".to_owned(), created));
    stages.push((FIRST_OUTPUT.to_owned(), first));
    stages.push((ENDED.to_owned(), ended));
    stages.push((GONE.to_owned(), gone));
    Ok(stages)
}

/// The status once all of it is known; outside of what is measured.
async fn ended_status(client: &Client, name: &str) -> Result<SandboxStatus, ClientError> {
    let path = with_query(
        &sandbox_path(name),
        &[("wait", Some("ended")), ("timeout_seconds", Some("30"))],
    );
    let envelope: SandboxEnvelope = client.get(&path).await?;
    Ok(envelope.sandbox.status)
}

/// When the first output came and when the command had ended, since `begun`.
async fn first_output(client: &Client, name: &str, begun: Instant) -> anyhow::Result<(u64, u64)> {
    let request = AttachRequest { from_start: true, ..AttachRequest::default() };
    let path = format!("{}/attach", sandbox_path(name));
    let mut connection = client.process(&path, &request).await?;
    let mut first = None;
    while let Some(event) = connection.output.next().await? {
        match event {
            ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_) => {
                first.get_or_insert_with(|| micros(begun.elapsed()));
            }
            ProcessEvent::Message(StreamMessage::Exited { code, .. }) => {
                anyhow::ensure!(code == 0, "the command ended with exit code {code}");
                let ended = micros(begun.elapsed());
                return Ok((first.context("the command wrote nothing")?, ended));
            }
            ProcessEvent::Message(
                StreamMessage::StartFailed { message, .. } | StreamMessage::Error { message },
            ) => anyhow::bail!(message),
            ProcessEvent::Message(_) => {}
        }
    }
    anyhow::bail!("the server ended the stream before the command had ended")
}
