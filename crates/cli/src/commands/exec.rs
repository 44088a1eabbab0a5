//! `atoll exec`: a process in a sandbox that runs, with its input, output and exit code.

use atoll_wire::rest::ExecRequest;

use super::{Outcome, connect, exit_code};
use crate::args::{ConnectionArgs, ExecArgs};
use crate::client::sandbox_path;
use crate::output::{self, OutputClosed};
use crate::terminal::{self, Session, SessionEnd, SignalPath};

/// Exit code when the process could not be begun for a reason that is not its own. SOURCE: docker run, for its users.
pub(super) const NOT_BEGUN: u8 = 125;

/// Runs a command in a sandbox.
pub(super) async fn exec(args: ExecArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let request = ExecRequest {
        container: args.container,
        command: args.command,
        env: with_terminal_kind(args.env, args.tty),
        work_dir: args.workdir,
        user: args.user,
        stdin: args.interactive,
        tty: args.tty,
        size: args.tty.then(terminal::size).flatten(),
    };
    let path = format!("{}/exec", sandbox_path(&args.name));
    let connection = match client.process(&path, &request).await {
        Ok(connection) => connection,
        Err(error) => return not_begun(error.into()),
    };
    let session = Session {
        connection,
        stdin: args.interactive,
        tty: args.tty,
        detach_keys: false,
        signals: SignalPath::Stream,
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
        SessionEnd::Signalled(signal) => Ok(exit_code(128 + signal)),
        SessionEnd::Detached => Ok(super::SUCCESS),
        SessionEnd::Output(error) => Err(output::output_error(error)),
    }
}

/// Tells an error and gives the exit code for it.
pub(super) fn not_begun(error: anyhow::Error) -> Outcome {
    if error.is::<OutputClosed>() {
        return Err(error);
    }
    output::error(&error);
    Ok(NOT_BEGUN)
}

/// Says why a process ended, where its exit code alone would mislead.
pub(super) fn explain(reason: Option<&str>) {
    let text = match reason {
        Some("OutOfMemory") => {
            "it reached its memory limit and was ended: give it more with --memory"
        }
        Some("PidsLimit") => "it reached its limit of processes: give it more with --pids",
        Some("HostPidsBackstop") => {
            "the sandbox reached the host's limit of threads for its kernel"
        }
        Some("GuestDied") => "atoll's first process in the container died, and the command with it",
        Some("SentryDied") => "the sandbox's kernel (gVisor) died, and the command with it",
        Some("HostError") => {
            "the host could not keep a limit in force, and the sandbox was ended: `atoll describe` says which"
        }
        Some("Unknown") => "nobody saw how it ended: its exit code is not known",
        _ => return,
    };
    output::warn(text);
}

/// With a terminal, TERM is that of the user's, unless it was given.
pub(super) fn with_terminal_kind(mut env: Vec<String>, tty: bool) -> Vec<String> {
    let given = env.iter().any(|entry| entry.starts_with("TERM="));
    if tty && !given {
        let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        env.push(format!("TERM={kind}"));
    }
    env
}
