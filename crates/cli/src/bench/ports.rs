//! How much goes through a published port, and how fast: `wrk` against a web server in a sandbox, beside the same server published by others.
//!
//! `wrk` is the client, because figures of a client that everybody has can be compared. Rounds of all contenders alternate.

use std::collections::BTreeMap;

use anyhow::Context;
use atoll_wire::rest::{PortSpec, SandboxEnvelope};
use serde::Serialize;
use tokio::process::Command;

use super::report::Machine;
use super::{Bench, sandbox_request};
use crate::args::{NamedUrl, PortsBenchArgs};
use crate::client::{Client, sandbox_path, with_query};
use crate::output;

/// What is asked for: the image of `scripts/make-images.sh` has both.
const BODIES: [&str; 2] = ["/1k", "/1m"];

/// A whole run.
#[derive(Debug, Serialize)]
struct PortsReport {
    suite: &'static str,
    version: &'static str,
    measured_at: String,
    machine: Machine,
    class: String,
    image: String,
    connections: u32,
    seconds: u32,
    rounds: u32,
    /// By body, then contender.
    bodies: BTreeMap<&'static str, Vec<Contender>>,
}

/// One published server and one body.
#[derive(Debug, Serialize)]
struct Contender {
    name: String,
    url: String,
    /// The median round's.
    requests_per_second: f64,
    /// Each round's.
    rounds: Vec<Round>,
    /// Requests a second divided by those of atoll.
    of_atoll: f64,
}

/// What `wrk` says.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Round {
    requests_per_second: f64,
    p50_micros: f64,
    p99_micros: f64,
    /// Connections that failed, and answers that were none.
    errors: u64,
}

/// Measures, and publishes what was found.
pub(super) async fn run(client: &Client, args: PortsBenchArgs) -> anyhow::Result<()> {
    let bench = Bench::begin(client, &args.bench).await?;
    let mut request = sandbox_request(&args.bench, Vec::new());
    request.spec.ports = vec![PortSpec { container_port: 80, ..PortSpec::default() }];
    // Nobody knocks before it listens.
    request.spec.readiness_probe = Some(super::service::probe());
    // As a rival has it that nobody limits.
    request.spec.containers[0].resource.cpu = Some(super::processors().to_string());
    let served = client.create_sandbox(&request).await?;
    let report = measure(client, &served.id, &args).await;
    client.delete_sandbox(&served.id).await?;
    bench.end().await?;
    let report = report?;
    match args.bench.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => return output::print_json(&report),
        Some(path) => std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => {}
    }
    output::print(&text(&report))
}

async fn measure(client: &Client, id: &str, args: &PortsBenchArgs) -> anyhow::Result<PortsReport> {
    let query = [("wait", Some("running")), ("timeout_seconds", Some("60"))];
    let envelope: SandboxEnvelope = client.get(&with_query(&sandbox_path(id), &query)).await?;
    let port = envelope.sandbox.status.assigned_ports.first().context("it has no port")?.host_port;
    let own = NamedUrl { name: "atoll".to_owned(), url: format!("http://{}:{port}", args.address) };
    let servers: Vec<&NamedUrl> = std::iter::once(&own).chain(&args.against_url).collect();
    let mut bodies = BTreeMap::new();
    for body in BODIES {
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); servers.len()];
        for _ in 0..args.bench.count {
            for (server, rounds) in servers.iter().zip(&mut rounds) {
                rounds.push(wrk(args, &format!("{}{body}", server.url)).await?);
            }
        }
        bodies.insert(body, contenders(&servers, rounds));
    }
    Ok(PortsReport {
        suite: "ports",
        version: env!("CARGO_PKG_VERSION"),
        measured_at: jiff::Timestamp::now().to_string(),
        machine: Machine::here(),
        class: args.bench.class.clone(),
        image: args.bench.image.clone(),
        connections: args.connections,
        seconds: args.seconds,
        rounds: args.bench.count,
        bodies,
    })
}

fn contenders(servers: &[&NamedUrl], rounds: Vec<Vec<Round>>) -> Vec<Contender> {
    let rate = |round: &Round| round.requests_per_second;
    let medians: Vec<f64> = rounds.iter().map(|rounds| median(rounds, rate)).collect();
    let own = medians.first().copied().unwrap_or_default().max(f64::MIN_POSITIVE);
    let one = |((server, rounds), median): ((&&NamedUrl, Vec<Round>), f64)| Contender {
        name: server.name.clone(),
        url: server.url.clone(),
        requests_per_second: median,
        rounds,
        of_atoll: (median / own * 1000.0).round() / 1000.0,
    };
    servers.iter().zip(rounds).zip(medians).map(one).collect()
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn wrk(args: &PortsBenchArgs, url: &str) -> anyhow::Result<Round> {
    let mut words = args.client.split_whitespace().chain(["wrk"]);
    let program = words.next().unwrap_or("wrk");
    let connections = args.connections.to_string();
    let seconds = format!("{}s", args.seconds);
    let finished = Command::new(program)
        .args(words)
        .args(["--threads", "1", "--connections", &connections, "--duration", &seconds])
        .args(["--latency", url])
        .output()
        .await
        .with_context(|| format!("cannot run {program}: install the package wrk"))?;
    let said = String::from_utf8_lossy(&finished.stdout);
    anyhow::ensure!(
        finished.status.success(),
        "wrk against {url} failed: {said}{}",
        String::from_utf8_lossy(&finished.stderr)
    );
    read(&said).with_context(|| format!("wrk said nothing of use: {said}"))
}

/// Reads what `wrk --latency` prints. SOURCE: its 4.1.0.
fn read(said: &str) -> Option<Round> {
    let value = |label: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(label))?;
        Some(line.trim_start_matches(':').trim())
    };
    let errors = value("Socket errors").map_or(0, |line| {
        let counts = line.split(|byte: char| !byte.is_ascii_digit());
        counts.filter_map(|count| count.parse::<u64>().ok()).sum()
    });
    let refused = value("Non-2xx or 3xx responses").and_then(|count| count.parse().ok());
    Some(Round {
        requests_per_second: value("Requests/sec")?.parse().ok()?,
        p50_micros: micros(value("50%")?)?,
        p99_micros: micros(value("99%")?)?,
        errors: errors + refused.unwrap_or(0_u64),
    })
}

/// `1.23ms` in microseconds.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|byte: char| byte.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * factor)
}

fn text(report: &PortsReport) -> String {
    let mut text = format!(
        "ports: class {}, image {}, {} connections, {} rounds of {} s\n",
        report.class, report.image, report.connections, report.rounds, report.seconds
    );
    for (body, contenders) in &report.bodies {
        text.push_str(&format!("\n{body}\n"));
        for contender in contenders {
            let errors: u64 = contender.rounds.iter().map(|round| round.errors).sum();
            text.push_str(&format!(
                "{:<12} {:>10.0} requests/s  p50 {:>7.0} µs  p99 {:>7.0} µs  {errors} errors  {:.2} of atoll  ({})\n",
                contender.name,
                contender.requests_per_second,
                median(&contender.rounds, |round| round.p50_micros),
                median(&contender.rounds, |round| round.p99_micros),
                contender.of_atoll,
                contender.url
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let said = "Running 1s test @ http://127.0.0.1:8080/1k
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   123.00us   45.00us   1.20ms   70.00%
    Req/Sec    10.00k   500.00    11.00k    60.00%
  Latency Distribution
     50%  120.00us
     75%  150.00us
     90%  200.00us
     99%    1.50ms
  10000 requests in 1.00s, 12.00MB read
  Socket errors: connect 0, read 3, write 0, timeout 1
  Non-2xx or 3xx responses: 2
Requests/sec:   9999.50
Transfer/sec:     12.00MB
";
        let expected =
            Round { requests_per_second: 9999.5, p50_micros: 120.0, p99_micros: 1500.0, errors: 6 };
        assert_eq!(read(said), Some(expected));
        assert_eq!(read("unable to connect"), None);
        assert_eq!(micros("1.5s"), Some(1_500_000.0));
        assert_eq!(micros("1.5"), None);
    }
}
