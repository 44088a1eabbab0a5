//! `atoll bench`: measures atoll as its clients see it, beside other ways to run the same command, interleaved in the same run.
//!
//! With one at a time, runs of atoll and of its rivals alternate; with several at a time, blocks of runs do. A benchmark measures and
//! never judges: no figure makes it fail.

mod burst;
mod disk;
mod exec;
mod ports;
mod provision;
mod published;
mod report;
mod rival;
mod service;
mod statistics;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use atoll_wire::rest::{
    ContainerSpec, CreateSandbox, ResourceSpec, Sandbox, SandboxEnvelope, SandboxSpec,
};
use atoll_wire::shim::{ContainerPlan, Launch};
use futures::StreamExt;

use crate::args::{BenchArgs, BenchSuite, ConnectionArgs};
use crate::client::{Client, sandbox_path, with_query};
use crate::instance::Instance;

use report::{Machine, Report, Samples};
use rival::Rival;

/// Seconds after which the server removes what a bench that was killed left behind.
const TTL_SECONDS: i64 = 3600;
/// Blocks into which runs are cut when several run at a time.
const BLOCKS: usize = 4;

/// Runs a suite.
pub(crate) async fn bench(suite: BenchSuite, connection: &ConnectionArgs) -> anyhow::Result<()> {
    let client = Client::new(Instance::find(connection)?)?;
    match suite {
        BenchSuite::Provision(args) => match args.service {
            Some(service) => service::run(&client, &args, service).await,
            None => provision::run(&client, args).await,
        },
        BenchSuite::Exec(args) => exec::run(&client, args).await,
        BenchSuite::Ports(args) => ports::run(&client, args).await,
    }
}

/// What both suites need.
struct Bench<'a> {
    client: &'a Client,
    args: &'a BenchArgs,
    /// A sandbox of the same class and image that runs during the bench.
    resident: Sandbox,
}

impl<'a> Bench<'a> {
    /// Begins: makes sure that the image is here, and keeps one sandbox of it.
    async fn begin(client: &'a Client, args: &'a BenchArgs) -> anyhow::Result<Self> {
        let mut request = sandbox_request(args, vec!["sleep".into(), TTL_SECONDS.to_string()]);
        request.spec.ttl_seconds = TTL_SECONDS;
        let resident = client.create_sandbox(&request).await?;
        let path = with_query(
            &sandbox_path(&resident.id),
            &[("wait", Some("running")), ("timeout_seconds", Some("600"))],
        );
        let envelope: SandboxEnvelope = client.get(&path).await?;
        let status = &envelope.sandbox.status;
        if status.phase != "Running" {
            let why = status.last_error.clone().unwrap_or_else(|| status.phase.clone());
            client.delete_sandbox(&resident.id).await?;
            anyhow::bail!(
                "a sandbox of {} in class {} does not run: {why}",
                args.image,
                args.class
            );
        }
        Ok(Self { client, args, resident: envelope.sandbox })
    }

    /// The plan of the resident sandbox's container: where the image's layers lie, and its limits.
    fn plan(&self) -> anyhow::Result<ContainerPlan> {
        let directory = self.client.instance().data_dir.as_ref().context(
            "rivals can be measured only where the data directory is: give --data-dir rather than --server",
        )?;
        let path = directory.join("sandboxes").join(&self.resident.uid).join("launch.json");
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let launch: Launch = serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        launch.plan.containers.into_iter().next().context("the sandbox has no container")
    }

    /// Prepares the rivals that were asked for; those that cannot run are told with the reason.
    async fn rivals(
        &self,
        command: &[String],
        workers: usize,
    ) -> anyhow::Result<(Vec<Box<dyn Rival>>, BTreeMap<String, String>)> {
        let mut ready = Vec::new();
        let mut absent = BTreeMap::new();
        if self.args.against.is_empty() {
            return Ok((ready, absent));
        }
        let plan = self.plan()?;
        for &against in &self.args.against {
            match rival::prepare(against, &plan, command, &self.args.class, workers).await {
                Ok(rival) => ready.push(rival),
                Err(error) => {
                    absent.insert(against.name().to_owned(), format!("{error:#}"));
                }
            }
        }
        Ok((ready, absent))
    }

    /// Ends: deletes the resident sandbox.
    async fn end(self) -> anyhow::Result<()> {
        self.client.delete_sandbox(&self.resident.id).await?;
        Ok(())
    }

    /// A report without figures.
    fn report(
        &self,
        suite: &'static str,
        command: &[String],
        concurrency: u32,
    ) -> anyhow::Result<Report> {
        let directory =
            self.client.instance().data_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        Ok(Report {
            suite,
            version: env!("CARGO_PKG_VERSION"),
            measured_at: jiff::Timestamp::now().to_string(),
            machine: Machine::here(),
            class: self.args.class.clone(),
            image: self.args.image.clone(),
            command: command.to_vec(),
            count: self.args.count,
            concurrency,
            disk_fdatasync: disk::fdatasync(&directory)?,
            contenders: Vec::new(),
            bursts: Vec::new(),
            published: Vec::new(),
            absent: BTreeMap::new(),
            ratios: BTreeMap::new(),
        })
    }
}

/// A sandbox for a bench: ordinary limits, deleted by the server if nobody else does.
fn sandbox_request(args: &BenchArgs, command: Vec<String>) -> CreateSandbox {
    CreateSandbox {
        id: None,
        metadata: atoll_wire::rest::Metadata::default(),
        spec: SandboxSpec {
            class: Some(args.class.clone()),
            ttl_seconds: TTL_SECONDS,
            containers: vec![ContainerSpec {
                name: "main".to_owned(),
                image: args.image.clone(),
                args: command,
                resource: ResourceSpec::default(),
                ..ContainerSpec::default()
            }],
            ..SandboxSpec::default()
        },
    }
}

/// Processors of this machine.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many runs each block has.
fn blocks(count: u32, concurrency: u32) -> Vec<usize> {
    let count = count as usize;
    if concurrency == 1 {
        return vec![1; count];
    }
    let size = count.div_ceil(BLOCKS).max(concurrency as usize);
    let mut left = count;
    let mut sizes = Vec::new();
    while left > 0 {
        sizes.push(left.min(size));
        left -= left.min(size);
    }
    sizes
}

/// Runs a block with so many at a time; each run gets the number of a worker that no other run has at that time.
async fn run_block<F>(
    size: usize,
    concurrency: u32,
    samples: &mut Samples,
    run: impl Fn(usize) -> F,
) where
    F: Future<Output = anyhow::Result<Vec<(String, u64)>>>,
{
    let begun = Instant::now();
    let free: std::cell::RefCell<Vec<usize>> =
        std::cell::RefCell::new((0..concurrency as usize).rev().collect());
    let results: Vec<_> = futures::stream::iter(0..size)
        .map(|_| {
            let (run, free) = (&run, &free);
            async move {
                let worker = free.borrow_mut().pop().unwrap_or(0);
                let result = run(worker).await;
                free.borrow_mut().push(worker);
                result
            }
        })
        .buffer_unordered(concurrency as usize)
        .collect()
        .await;
    samples.makespan_micros += statistics::micros(begun.elapsed());
    for result in results {
        match result {
            Ok(stages) => {
                for (stage, micros) in stages {
                    samples.add(&stage, micros);
                }
            }
            Err(error) => samples.failures.push(format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_all_runs_and_alternate_when_one_runs_at_a_time() {
        assert_eq!(blocks(3, 1), [1, 1, 1]);
        assert_eq!(blocks(100, 16), [25, 25, 25, 25]);
        assert_eq!(blocks(20, 16), [16, 4]);
    }

    #[tokio::test]
    async fn workers_are_not_shared_at_the_same_time() {
        let busy = std::cell::RefCell::new([false; 3]);
        let mut samples = Samples::default();
        run_block(20, 3, &mut samples, |worker| {
            let busy = &busy;
            async move {
                assert!(!std::mem::replace(&mut busy.borrow_mut()[worker], true));
                tokio::task::yield_now().await;
                busy.borrow_mut()[worker] = false;
                anyhow::ensure!(worker < 3);
                Ok(vec![("stage".to_owned(), 1)])
            }
        })
        .await;
        assert!(samples.failures.is_empty(), "{:?}", samples.failures);
        assert_eq!(samples.into_contender("x", "").stages[0].summary.n, 20);
    }
}
