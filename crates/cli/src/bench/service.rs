//! Services: from a create request until a web server is ready and answers at its published port, as sandboxd-o measured it.

use std::time::{Duration, Instant};

use anyhow::Context;
use atoll_wire::rest::{
    CreateSandbox, PortSpec, ProbeSpec, ResourceSpec, Sandbox, SandboxEnvelope,
};

use super::published::{self, Published};
use super::report::{Report, Samples, publish};
use super::statistics::micros;
use super::{Bench, blocks, run_block, sandbox_request};
use crate::args::{ProvisionBenchArgs, Service};
use crate::client::{Client, sandbox_path, with_query};

/// From the request until a client that waits hears that it runs.
const READY: &str = "ready";
/// The sum of the phases, without the wait for the probe's first try.
const WITHOUT_PROBE: &str = "phases without the probe's wait";
/// From the request until the published port has answered.
const ANSWERED: &str = "first answer";
/// How long a published port may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What is measured of atoll, and what was published of the same.
struct Contender {
    name: String,
    request: CreateSandbox,
    samples: Samples,
    published: Published,
}

/// Measures, and publishes what was found.
pub(super) async fn run(
    client: &Client,
    args: &ProvisionBenchArgs,
    service: Service,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.bench.against.is_empty() && args.command.is_empty(),
        "a service brings its own command, and is measured beside what was published of it: leave --against and COMMAND out"
    );
    let mut bench_args = args.bench.clone();
    bench_args.image = service.image().to_owned();
    let bench = Bench::begin(client, &bench_args).await?;
    let report = measure(&bench, args, service).await;
    bench.end().await?;
    publish(&report?, args.bench.json.as_deref())
}

async fn measure(
    bench: &Bench<'_>,
    args: &ProvisionBenchArgs,
    service: Service,
) -> anyhow::Result<Report> {
    let mut report = bench.report("provision", &[service.image().to_owned()], args.concurrency)?;
    let mut contenders = contenders(bench, &args.cpu, service)?;
    // Made once: its certificates take longer than an answer.
    let visitor = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    for contender in &contenders {
        provision(bench.client, &visitor, &contender.request)
            .await
            .with_context(|| format!("the first, unmeasured run of {} failed", contender.name))?;
    }
    for size in blocks(bench.args.count, args.concurrency) {
        for Contender { request, samples, .. } in &mut contenders {
            run_block(size, args.concurrency, samples, |_| {
                provision(bench.client, &visitor, request)
            })
            .await;
        }
    }
    for Contender { name, samples, published, .. } in contenders {
        let how = "create with a probe and a port, wait until it runs, ask the port";
        report.contenders.push(samples.into_contender(&name, how));
        report.published.push(published);
    }
    Ok(report)
}

fn contenders(
    bench: &Bench<'_>,
    cpu_limits: &[String],
    service: Service,
) -> anyhow::Result<Vec<Contender>> {
    let contender = |cpu: &str, memory: &str, stages| {
        let name = format!("atoll, cpu {cpu}, memory {memory}");
        let published = Published { beside: name.clone(), stages };
        let request = request(bench, cpu, memory);
        Contender { name, request, samples: Samples::default(), published }
    };
    match service {
        Service::Nginx if cpu_limits.is_empty() => {
            Ok(vec![contender("500m", "512Mi", published::NGINX.to_vec())])
        }
        Service::Nginx => anyhow::bail!("nginx was published with 500m alone: leave --cpu out"),
        Service::Httpd => {
            let wanted = |cpu: &str| cpu_limits.is_empty() || cpu_limits.iter().any(|it| it == cpu);
            let sizes: Vec<_> = published::HTTPD.iter().filter(|size| wanted(size.cpu)).collect();
            anyhow::ensure!(
                !sizes.is_empty(),
                "no such size was published; there are {}",
                published::HTTPD.map(|size| size.cpu).join(", ")
            );
            Ok(sizes.iter().map(|it| contender(it.cpu, it.memory, it.stages())).collect())
        }
    }
}

/// The published specification: one port, a probe by HTTP with delay and period of a second.
fn request(bench: &Bench<'_>, cpu: &str, memory: &str) -> CreateSandbox {
    let mut request = sandbox_request(bench.args, Vec::new());
    request.spec.ports = vec![PortSpec { container_port: 80, ..PortSpec::default() }];
    request.spec.readiness_probe = Some(probe());
    request.spec.containers[0].resource = ResourceSpec {
        cpu: Some(cpu.to_owned()),
        memory: Some(memory.to_owned()),
        ..ResourceSpec::default()
    };
    request
}

/// By HTTP, with delay and period of a second.
pub(super) fn probe() -> ProbeSpec {
    ProbeSpec {
        protocol: "http".to_owned(),
        port: Some(80),
        path: Some("/".to_owned()),
        initial_delay_seconds: 1,
        period_seconds: 1,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: 60,
        ..ProbeSpec::default()
    }
}

/// One service from create to gone.
async fn provision(
    client: &Client,
    visitor: &reqwest::Client,
    request: &CreateSandbox,
) -> anyhow::Result<Vec<(String, u64)>> {
    let begun = Instant::now();
    let created = client.create_sandbox(request).await?;
    let answered = micros(begun.elapsed());
    let served = serve(client, visitor, &created.id, begun).await;
    let ended_at = Instant::now();
    client.delete_sandbox(&created.id).await?;
    let gone = micros(ended_at.elapsed());
    let (sandbox, ready, first_answer) = served?;
    let timeline = sandbox.status.timeline.context("a sandbox that runs has no timeline")?;
    let probe = timeline.phases.iter().filter(|phase| phase.name == "ready");
    let probe: u64 = probe.map(|phase| phase.micros).sum();
    let mut stages = vec![("request answered".to_owned(), answered), (READY.to_owned(), ready)];
    for phase in &timeline.phases {
        stages.push((format!("phase {}", phase.name), phase.micros));
    }
    stages.push(("phases together".to_owned(), timeline.total_micros));
    stages.push((WITHOUT_PROBE.to_owned(), timeline.total_micros.saturating_sub(probe)));
    stages.push((ANSWERED.to_owned(), first_answer));
    stages.push((super::provision::GONE.to_owned(), gone));
    Ok(stages)
}

/// Waits until it runs, then asks its port. Gives when each was, since `begun`.
async fn serve(
    client: &Client,
    visitor: &reqwest::Client,
    id: &str,
    begun: Instant,
) -> anyhow::Result<(Sandbox, u64, u64)> {
    let query = [("wait", Some("running")), ("timeout_seconds", Some("300"))];
    let envelope: SandboxEnvelope = client.get(&with_query(&sandbox_path(id), &query)).await?;
    let ready = micros(begun.elapsed());
    let status = &envelope.sandbox.status;
    anyhow::ensure!(status.phase == "Running", "it does not run: {:?}", status.last_error);
    let port = status.assigned_ports.first().context("it has no port")?.host_port;
    let url = format!("http://127.0.0.1:{port}/");
    let answer = visitor.get(&url).send().await?;
    anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    answer.bytes().await?;
    Ok((envelope.sandbox, ready, micros(begun.elapsed())))
}
