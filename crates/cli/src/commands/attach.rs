//! `atoll attach`: the input and output of a main process, from now on.

use atoll_wire::rest::AttachRequest;

use super::exec::{explain, not_begun};
use super::{Outcome, connect, exit_code};
use crate::args::{AttachArgs, ConnectionArgs};
use crate::client::sandbox_path;
use crate::output;
use crate::terminal::{self, Session, SessionEnd, SignalPath};

/// Connects until the main process ends or the user leaves.
pub(super) async fn attach(args: AttachArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let sandbox = client.sandbox(&args.name).await?;
    let container = match &args.container {
        Some(name) => sandbox.spec.containers.iter().find(|container| container.name == *name),
        None => sandbox.spec.containers.first(),
    };
    let Some(container) = container else {
        let names: Vec<&str> =
            sandbox.spec.containers.iter().map(|container| container.name.as_str()).collect();
        anyhow::bail!("sandbox/{} has no such container: it has {}", args.name, names.join(", "));
    };
    if args.interactive && !container.stdin {
        anyhow::bail!(
            "sandbox/{} takes no input: it was created without it (`atoll run -i`, or stdin: true)",
            args.name
        );
    }
    let tty = container.tty && args.interactive;
    let request = AttachRequest {
        container: args.container,
        from_start: container.await_attach,
        stdin: args.interactive,
        size: tty.then(terminal::size).flatten(),
    };
    let path = format!("{}/attach", sandbox_path(&args.name));
    let session = Session {
        connection: client.process(&path, &request).await?,
        stdin: args.interactive,
        tty,
        detach_keys: true,
        signals: SignalPath::Leave,
    };
    match session.run(|| {}).await? {
        SessionEnd::Exited { code, reason } => {
            explain(reason.as_deref());
            Ok(exit_code(code))
        }
        SessionEnd::StartFailed { code, message } => {
            output::error(&anyhow::anyhow!(message));
            Ok(exit_code(code))
        }
        SessionEnd::Failed { message } => not_begun(anyhow::anyhow!(message)),
        SessionEnd::Lost(error) => not_begun(error.into()),
        SessionEnd::Detached => {
            output::note(&format!("sandbox/{} goes on", args.name));
            Ok(super::SUCCESS)
        }
        SessionEnd::Signalled(signal) => Ok(exit_code(128 + signal)),
        SessionEnd::Output(error) => Err(output::output_error(error)),
    }
}
