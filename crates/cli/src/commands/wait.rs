//! `atoll wait`: returns as soon as an object is in a state, or can no longer come into it.

use std::time::{Duration, Instant};

use atoll_wire::rest::{Sandbox, SandboxEnvelope};

use super::{FAILURE, Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, ResourceKind, WaitArgs, WaitCondition};
use crate::client::{Client, ClientError, sandbox_path, with_query};
use crate::output;

/// The longest that the server lets one request wait.
const LONGEST_REQUEST: Duration = Duration::from_secs(600);

/// What one request found.
enum Answer {
    /// The state holds.
    Reached,
    /// It cannot be reached any more.
    Unreachable(Box<Sandbox>),
    /// Not yet.
    NotYet,
}

/// Waits for a state.
pub(super) async fn wait(args: WaitArgs, connection: &ConnectionArgs) -> Outcome {
    let name = format!("{}/{}", args.object.kind.name(), args.object.name);
    anyhow::ensure!(
        args.object.kind == ResourceKind::Sandbox,
        "only sandboxes can be waited for, not {name}"
    );
    let client = connect(connection)?;
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map_or(LONGEST_REQUEST, |deadline| {
            deadline.saturating_duration_since(Instant::now()).min(LONGEST_REQUEST)
        });
        let asking = ask(&client, &args.object.name, args.condition, left);
        let answer = match tokio::time::timeout(left, asking).await {
            Ok(answer) => answer?,
            Err(_) => Answer::NotYet,
        };
        match answer {
            Answer::Reached => {
                output::print(&format!("{name} is {}\n", args.condition.name()))?;
                return Ok(SUCCESS);
            }
            Answer::Unreachable(sandbox) => {
                anyhow::bail!(
                    "{name} cannot become {}: {}",
                    args.condition.name(),
                    state_of(&sandbox)
                );
            }
            Answer::NotYet if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                let state = match client.sandbox(&args.object.name).await {
                    Ok(sandbox) => state_of(&sandbox),
                    Err(error) => error.to_string(),
                };
                output::error(&anyhow::anyhow!(
                    "{name} is not {} in time: {state}",
                    args.condition.name()
                ));
                return Ok(FAILURE);
            }
            Answer::NotYet => {}
        }
    }
}

async fn ask(
    client: &Client,
    name: &str,
    condition: WaitCondition,
    left: Duration,
) -> Result<Answer, ClientError> {
    // A whole second more than is left: the own deadline is exact, the server's is its backstop.
    let seconds = (left.as_secs() + 1).min(LONGEST_REQUEST.as_secs()).to_string();
    let path = with_query(
        &sandbox_path(name),
        &[("wait", Some(condition.name())), ("timeout_seconds", Some(&seconds))],
    );
    let answer: serde_json::Value = match client.get(&path).await {
        Ok(answer) => answer,
        Err(error) if error.is_not_found() && condition == WaitCondition::Deleted => {
            return Ok(Answer::Reached);
        }
        Err(ClientError::Refused { status: 408, .. }) => return Ok(Answer::NotYet),
        Err(error) => return Err(error),
    };
    if condition == WaitCondition::Deleted && answer.get("deleted").is_some() {
        return Ok(Answer::Reached);
    }
    let envelope: SandboxEnvelope =
        serde_json::from_value(answer).map_err(|error| ClientError::answer(&error))?;
    let sandbox = envelope.sandbox;
    Ok(if holds(&sandbox, condition) {
        Answer::Reached
    } else {
        Answer::Unreachable(Box::new(sandbox))
    })
}

fn holds(sandbox: &Sandbox, condition: WaitCondition) -> bool {
    let status = &sandbox.status;
    match condition {
        WaitCondition::Running => {
            status.phase == "Running"
                || (!status.containers.is_empty()
                    && status.containers.iter().all(|container| container.started_at.is_some()))
        }
        WaitCondition::Ready => status.ready,
        WaitCondition::Succeeded => status.phase == "Succeeded",
        WaitCondition::Failed => status.phase == "Failed",
        WaitCondition::Deleted => false,
    }
}

/// A sandbox's state in a few words.
fn state_of(sandbox: &Sandbox) -> String {
    let status = &sandbox.status;
    let mut text = format!("it is {}", status.phase);
    if let Some(reason) = &status.reason {
        text.push_str(&format!(" ({reason})"));
    }
    if let Some(message) = &status.last_error {
        text.push_str(&format!(": {message}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(phase: &str, started: bool) -> Sandbox {
        let container = serde_json::json!({
            "name": "a", "state": "exited", "started_at": started.then_some("2026-01-01T00:00:00Z"),
        });
        serde_json::from_value(serde_json::json!({
            "id": "x", "uid": "0", "resource_version": 1, "spec": {"containers": []},
            "status": {"phase": phase, "last_error": "no such image", "containers": [container]},
            "created_at": "", "updated_at": "",
        }))
        .unwrap()
    }

    #[test]
    fn running_means_that_the_command_was_started() {
        assert!(holds(&sandbox("Running", false), WaitCondition::Running));
        assert!(holds(&sandbox("Succeeded", true), WaitCondition::Running));
        assert!(!holds(&sandbox("Failed", false), WaitCondition::Running));
        assert!(!holds(&sandbox("Failed", true), WaitCondition::Succeeded));
    }

    #[test]
    fn the_state_names_its_reason() {
        assert_eq!(state_of(&sandbox("Failed", false)), "it is Failed: no such image");
    }
}
