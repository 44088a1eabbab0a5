//! `sbxctl`: what the binary is when it is called by that name. Verbs, flags, configuration and columns of sandboxd-o's own client, over the
//! same client code as atoll's. SOURCE: sandboxd-o, sbxctl.
//!
//! What this server does not have is sent all the same, and refused by it: `cordon`, `uncordon`, `label`.

mod arguments;
mod config;
mod objects;
mod tables;

use std::path::Path;

use atoll_wire::log::{LogRecord, LogStream};
use atoll_wire::rest::SandboxEnvelope;
use clap::{CommandFactory, Parser};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, encoded, sandbox_path, with_query};
use crate::instance::Instance;
use crate::{manifest, output};
use arguments::{Command, CommandLine, Kind, Reference};
use config::Config;

/// Whether this program was called by that name.
pub(crate) fn is_meant() -> bool {
    let called = std::env::args_os().next().unwrap_or_default();
    Path::new(&called).file_name().is_some_and(|name| name == "sbxctl")
}

/// Executes the command line.
pub(crate) fn execute() -> anyhow::Result<u8> {
    let line = CommandLine::parse();
    if let Command::Completion { shell } = line.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut CommandLine::command(), "sbxctl", &mut script);
        output::print_bytes(&script)?;
        return Ok(0);
    }
    let config = Config::of(&line.global)?;
    let instance = Instance::known(&config.server, &config.shared_secret)?;
    let session = Session { client: Client::new(instance)?, config };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(session.execute(line.command))?;
    Ok(0)
}

/// A server, and how to speak to it.
struct Session {
    client: Client,
    config: Config,
}

impl Session {
    async fn execute(&self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Get { objects, show_labels } => self.get(&objects, show_labels).await,
            Command::Spec { sandbox } => self.spec(&sandbox).await,
            Command::Create { filename } => self.create(&filename).await,
            Command::Delete { object, force } => self.delete(&object, force).await,
            Command::Cordon { object } => self.unschedulable(&object, true).await,
            Command::Uncordon { object } => self.unschedulable(&object, false).await,
            Command::Label { object, label } => self.label(&object, &label).await,
            Command::Logs { sandbox, container, watch } => {
                self.logs(&sandbox, container.as_deref(), watch).await
            }
            // Needs no server: executed before there was one.
            Command::Completion { .. } => Ok(()),
        }
    }

    /// Sends a request and gives the answer.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let request = self.client.request(method, path).timeout(self.config.timeout);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        Ok(self.client.json(request).await?)
    }

    async fn spec(&self, sandbox: &Reference) -> anyhow::Result<()> {
        let id = sandbox.of(Kind::Sandbox)?;
        let found = self.ask(Method::GET, &sandbox_path(id), None).await?;
        let envelope: SandboxEnvelope = serde_json::from_value(found)?;
        let manifest = atoll_wire::rest::Manifest {
            api_version: Some(atoll_wire::rest::API_VERSION.to_owned()),
            kind: "Sandbox".to_owned(),
            id: envelope.sandbox.id,
            metadata: envelope.sandbox.metadata,
            spec: envelope.sandbox.spec,
        };
        output::print_yaml(&manifest)
    }

    async fn create(&self, filename: &Path) -> anyhow::Result<()> {
        for document in manifest::read(filename)? {
            let kind: Kind = document["kind"]
                .as_str()
                .unwrap_or_default()
                .parse()
                .map_err(anyhow::Error::msg)?;
            let answer = self.ask(Method::POST, kind.path(), Some(&document)).await?;
            output::print_json(&answer)?;
        }
        Ok(())
    }

    async fn delete(&self, object: &Reference, force: bool) -> anyhow::Result<()> {
        anyhow::ensure!(!force || object.kind == Kind::Node, "--force is for nodes only");
        let path = format!("{}/{}", object.kind.path(), encoded(&object.name));
        let path = with_query(&path, &[("force", force.then_some("true"))]);
        let answer = self.ask(Method::DELETE, &path, None).await?;
        output::print_json(&answer)
    }

    async fn unschedulable(&self, node: &Reference, value: bool) -> anyhow::Result<()> {
        self.patch(node, &json!({"spec": {"unschedulable": value}})).await
    }

    async fn label(&self, node: &Reference, label: &str) -> anyhow::Result<()> {
        let (key, value) = match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Value::from(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => anyhow::bail!("write KEY=VALUE, or KEY- to remove a label"),
        };
        self.patch(node, &json!({"metadata": {"labels": {key: value}}})).await
    }

    async fn patch(&self, node: &Reference, change: &Value) -> anyhow::Result<()> {
        let path = format!("{}/{}", Kind::Node.path(), encoded(node.of(Kind::Node)?));
        let answer = self.ask(Method::PATCH, &path, Some(change)).await?;
        output::print_json(&answer)
    }

    /// Of one container its lines; of a sandbox those of all containers, each with its container's name, in order of time.
    async fn logs(
        &self,
        sandbox: &Reference,
        container: Option<&str>,
        watch: bool,
    ) -> anyhow::Result<()> {
        let id = sandbox.of(Kind::Sandbox)?;
        let found = self.ask(Method::GET, &sandbox_path(id), None).await?;
        let names: Vec<String> = match container {
            Some(name) => vec![name.to_owned()],
            None => {
                let envelope: SandboxEnvelope = serde_json::from_value(found)?;
                envelope.sandbox.spec.containers.into_iter().map(|it| it.name).collect()
            }
        };
        let mut streams = Vec::new();
        for name in names {
            let path = with_query(
                &format!("{}/logs", sandbox_path(id)),
                &[
                    ("container", Some(&name)),
                    ("follow", watch.then_some("true")),
                    ("format", Some("records")),
                ],
            );
            let lines = self.client.lines(self.client.request(Method::GET, &path)).await?;
            let prefix = if container.is_some() { String::new() } else { format!("[{name}] ") };
            streams.push(Box::pin(futures::stream::try_unfold(
                (lines, prefix),
                |(mut lines, prefix)| async move {
                    let line = lines.next_line().await?;
                    Ok::<_, crate::client::ClientError>(
                        line.map(|line| {
                            ((prefix.clone(), LogRecord::parse(&line)), (lines, prefix))
                        }),
                    )
                },
            )));
        }
        let mut all = futures::stream::select_all(streams);
        let mut gathered = Vec::new();
        while let Some(line) = all.next().await {
            let (prefix, Some(record)) = line? else { continue };
            if record.stream == LogStream::Gap {
                continue;
            }
            if watch {
                print_record(&prefix, &record)?;
            } else {
                gathered.push((prefix, record));
            }
        }
        gathered.sort_by(|a, b| a.1.time.cmp(&b.1.time));
        gathered.iter().try_for_each(|(prefix, record)| print_record(prefix, record))
    }
}

fn print_record(prefix: &str, record: &LogRecord) -> anyhow::Result<()> {
    let mut line = prefix.as_bytes().to_vec();
    line.extend_from_slice(&record.text);
    line.push(b'\n');
    output::print_bytes(&line)
}
