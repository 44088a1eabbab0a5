//! `atoll run`: a new sandbox for one command, with its input, output and exit code.
//!
//! The sandbox is created and attached to; all output comes from its beginning (`await_attach`). Unless kept it is deleted when the
//! command has ended or the user ends this process; when this process is killed, the server deletes it `DETACH_TTL_SECONDS` later.

use std::time::Duration;

use anyhow::Context;
use atoll_wire::rest::{
    AttachRequest, ContainerSpec, CreateSandbox, Metadata, PortSpec, ResourceSpec, Sandbox,
    SandboxEnvelope, SandboxSpec, StopSandbox, VolumeMountSpec, VolumeSpec,
};
use reqwest::Method;
use tokio::sync::oneshot;

use super::exec::{NOT_BEGUN, explain, not_begun, with_terminal_kind};
use super::{Outcome, connect, exit_code};
use crate::args::{ConnectionArgs, MountedVolume, PublishedPort, PullPolicy, RunArgs};
use crate::client::{Client, sandbox_path, with_query};
use crate::output::{self, Spinner};
use crate::terminal::{self, Session, SessionEnd, SignalPath};

/// Seconds that a sandbox outlives a client that was killed. Guess: long enough for a server to restart meanwhile.
const DETACH_TTL_SECONDS: u32 = 15;
/// The one container's name.
const CONTAINER: &str = "main";
/// Exit code when --timeout ended the command. SOURCE: timeout(1).
const TIMED_OUT: u8 = 124;
/// Exit code of a command that SIGKILL ended: only the sandbox's status knows whether a limit did it.
const KILLED: i32 = 137;
/// When to tell a person what is being waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs a command in a new sandbox.
pub(super) async fn run(args: RunArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    if let Err(error) = volumes_are_there(&args, &client).await {
        return not_begun(error);
    }
    let sandbox = match client.create_sandbox(&request(&args)).await {
        Ok(sandbox) => sandbox,
        Err(error) => return not_begun(error.into()),
    };
    let outcome = attended(&args, &client, &sandbox).await;
    if args.keep {
        return outcome;
    }
    match client.delete_sandbox(&sandbox.id).await {
        Ok(()) => outcome,
        // Its time was over, or somebody else deleted it: gone is what was wanted.
        Err(error) if error.is_not_found() => outcome,
        Err(error) => {
            output::warn(&format!("sandbox/{} could not be deleted: {error}", sandbox.id));
            outcome
        }
    }
}

/// The server would wait for a volume that is not there; who types a command had rather hear of it.
async fn volumes_are_there(args: &RunArgs, client: &Client) -> anyhow::Result<()> {
    for MountedVolume { volume, .. } in &args.volume {
        client.volume(volume).await.with_context(|| {
            format!("-v {volume}: create it first: atoll create volume {volume} --size 1Gi")
        })?;
    }
    Ok(())
}

/// The volumes, and where they stand. One that is mounted twice is one volume.
fn volumes(args: &RunArgs) -> (Vec<VolumeSpec>, Vec<VolumeMountSpec>) {
    let mut names: Vec<&String> = args.volume.iter().map(|it| &it.volume).collect();
    names.sort_unstable();
    names.dedup();
    // By number: an id may be longer than a name in a sandbox.
    let local = |volume: &String| format!("v{}", names.binary_search(&volume).unwrap_or(0));
    let spec = |volume: &&String| VolumeSpec {
        name: local(volume),
        volume: Some((*volume).clone()),
        ..VolumeSpec::default()
    };
    let mount = |it: &MountedVolume| VolumeMountSpec {
        name: local(&it.volume),
        mount_path: it.path.clone(),
        read_only: it.read_only,
    };
    (names.iter().map(spec).collect(), args.volume.iter().map(mount).collect())
}

fn request(args: &RunArgs) -> CreateSandbox {
    let (volumes, volume_mounts) = volumes(args);
    let container = ContainerSpec {
        name: CONTAINER.to_owned(),
        image: args.image.clone(),
        pull: (args.pull != PullPolicy::Missing).then(|| args.pull.name().to_owned()),
        args: args.command.clone(),
        env: with_terminal_kind(args.env.clone(), args.tty),
        work_dir: args.workdir.clone(),
        user: args.user.clone(),
        resource: ResourceSpec {
            cpu: args.cpus.clone(),
            memory: args.memory.clone(),
            ephemeral_storage: args.disk.clone(),
            pids: args.pids,
        },
        stdin: args.interactive,
        tty: args.tty,
        await_attach: true,
        volume_mounts,
        ..ContainerSpec::default()
    };
    CreateSandbox {
        id: args.name.clone(),
        metadata: Metadata::default(),
        spec: SandboxSpec {
            class: args.class.clone(),
            detach_ttl_seconds: (!args.keep).then_some(DETACH_TTL_SECONDS),
            egress: args.egress,
            ports: args.publish.iter().map(port).collect(),
            volumes,
            containers: vec![container],
            ..SandboxSpec::default()
        },
    }
}

fn port(wanted: &PublishedPort) -> PortSpec {
    PortSpec {
        container_port: wanted.container_port.into(),
        host_port: None,
        published_port: wanted.host_port.map(i64::from),
        protocol: Some(wanted.protocol.name().to_owned()),
    }
}

/// Connects to the main process until it ends, the user ends it, or its time is over.
async fn attended(args: &RunArgs, client: &Client, sandbox: &Sandbox) -> Outcome {
    let request = AttachRequest {
        container: None,
        from_start: true,
        stdin: args.interactive,
        size: args.tty.then(terminal::size).flatten(),
    };
    let path = format!("{}/attach", sandbox_path(&sandbox.id));
    let connection = match client.process(&path, &request).await {
        Ok(connection) => connection,
        Err(error) => return why_not_begun(client, sandbox, error.into()).await,
    };
    let session = Session {
        connection,
        stdin: args.interactive,
        tty: args.tty,
        detach_keys: args.keep,
        signals: SignalPath::Request {
            client: client.clone(),
            name: sandbox.id.clone(),
            container: None,
        },
    };
    let waiting = tokio::spawn(tell_what_is_awaited(client.clone(), sandbox.id.clone()));
    let told = waiting.abort_handle();
    let (begun, begins) = oneshot::channel();
    let running = session.run(move || {
        told.abort();
        // Nobody listens where the time is not limited.
        let _ = begun.send(());
    });
    let end = limited(args.timeout, begins, running).await;
    waiting.abort();
    match end {
        Some(end) => outcome(end?, args, client, sandbox).await,
        None => {
            if args.keep {
                stop(client, sandbox).await?;
            }
            output::error(&anyhow::anyhow!("its time (--timeout) is over: it was ended"));
            Ok(TIMED_OUT)
        }
    }
}

/// What comes of a command; `None` once its time is over, which begins with the command: pulling and starting are not its doing.
async fn limited<T>(
    limit: Option<Duration>,
    begins: oneshot::Receiver<()>,
    running: impl Future<Output = T>,
) -> Option<T> {
    let over = async {
        match (limit, begins.await) {
            (Some(limit), Ok(())) => tokio::time::sleep(limit).await,
            // It never begins, and ends by itself.
            (None, _) | (_, Err(_)) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        end = running => Some(end),
        () = over => None,
    }
}

async fn outcome(end: SessionEnd, args: &RunArgs, client: &Client, sandbox: &Sandbox) -> Outcome {
    match end {
        SessionEnd::Exited { code, reason } => {
            if code == KILLED {
                explain(reason_of_kill(client, sandbox).await.or(reason).as_deref());
            } else {
                explain(reason.as_deref());
            }
            Ok(exit_code(code))
        }
        SessionEnd::StartFailed { code, message } => {
            output::error(&anyhow::anyhow!(message));
            Ok(exit_code(code))
        }
        SessionEnd::Failed { message } => {
            why_not_begun(client, sandbox, anyhow::anyhow!(message)).await
        }
        SessionEnd::Lost(error) => why_not_begun(client, sandbox, error.into()).await,
        SessionEnd::Detached => {
            output::note(&format!("sandbox/{} goes on: `atoll attach {}`", sandbox.id, sandbox.id));
            Ok(super::SUCCESS)
        }
        SessionEnd::Signalled(signal) => {
            if args.keep {
                stop(client, sandbox).await?;
            }
            Ok(exit_code(128 + signal))
        }
        SessionEnd::Output(error) => Err(output::output_error(error)),
    }
}

/// The sandbox's own account of what went wrong is better than the stream's, where there is one.
async fn why_not_begun(client: &Client, sandbox: &Sandbox, error: anyhow::Error) -> Outcome {
    let status = match client.sandbox(&sandbox.id).await {
        Ok(sandbox) => sandbox.status,
        Err(_) => return not_begun(error),
    };
    let ended = status.containers.first().and_then(|container| container.exit_code);
    match (status.last_error, ended) {
        (Some(message), code) => {
            output::error(&anyhow::anyhow!(message));
            Ok(code.map_or(NOT_BEGUN, exit_code))
        }
        (None, Some(code)) => {
            output::warn(&format!("the connection to its output was lost: {error}"));
            Ok(exit_code(code))
        }
        (None, None) => not_begun(error),
    }
}

/// Why the command was killed, as the sandbox's status has it once it is over.
async fn reason_of_kill(client: &Client, sandbox: &Sandbox) -> Option<String> {
    let path = with_query(
        &sandbox_path(&sandbox.id),
        &[("wait", Some("ended")), ("timeout_seconds", Some("5"))],
    );
    let envelope: SandboxEnvelope = client.get(&path).await.ok()?;
    envelope.sandbox.status.containers.into_iter().next()?.reason
}

async fn stop(client: &Client, sandbox: &Sandbox) -> anyhow::Result<()> {
    let path = format!("{}/stop", sandbox_path(&sandbox.id));
    client
        .send(client.request(Method::POST, &path).json(&StopSandbox::default()))
        .await
        .with_context(|| format!("cannot stop sandbox/{}", sandbox.id))?;
    Ok(())
}

/// After a while, shows what the sandbox waits for; ends when aborted.
async fn tell_what_is_awaited(client: Client, name: String) {
    tokio::time::sleep(PATIENCE).await;
    let spinner = Spinner::new(&format!("sandbox/{name} is being created"));
    loop {
        if let Some(message) = super::events::latest_message(&client, &name).await {
            spinner.set(&message);
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn time_before_the_command_begins_is_not_counted() {
        let (begun, begins) = oneshot::channel();
        let slow_to_begin = async {
            tokio::time::sleep(LIMIT * 5).await;
            begun.send(()).unwrap();
            7
        };
        assert_eq!(limited(Some(LIMIT), begins, slow_to_begin).await, Some(7));
        let (never, begins) = oneshot::channel();
        drop(never);
        assert_eq!(limited(Some(LIMIT), begins, tokio::time::sleep(LIMIT * 5)).await, Some(()));
    }

    #[tokio::test]
    async fn a_command_that_has_begun_has_its_time_and_no_more() {
        let (begun, begins) = oneshot::channel();
        begun.send(()).unwrap();
        let endless = std::future::pending::<()>();
        assert_eq!(limited(Some(LIMIT), begins, endless).await, None);
    }
}
