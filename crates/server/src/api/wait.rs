//! Waiting for a sandbox: answered by the store's changes, never by looking again and again.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::state::Phase;
use atoll_wire::rest::Sandbox;
use schemars::JsonSchema;
use serde::Deserialize;

use super::App;
use super::error::ApiError;
use crate::store::Object;

const DEFAULT_TIMEOUT_SECONDS: u64 = 30;
const MAX_TIMEOUT_SECONDS: u64 = 600;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    Running,
    Ready,
    Succeeded,
    Failed,
    Ended,
    Deleted,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitParams {
    pub(super) wait: Option<Goal>,
    pub(super) timeout_seconds: Option<u64>,
}

/// A checked wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    goal: Goal,
    timeout: Duration,
}

impl WaitParams {
    pub(super) fn checked(&self) -> Result<Option<Wait>, ApiError> {
        let seconds = self.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
        if seconds > MAX_TIMEOUT_SECONDS {
            return Err(ApiError::malformed(format!(
                "timeout_seconds: at most {MAX_TIMEOUT_SECONDS} are allowed; wait again after that"
            )));
        }
        Ok(self.wait.map(|goal| Wait { goal, timeout: Duration::from_secs(seconds) }))
    }
}

/// It holds, or it cannot hold any more.
fn is_decided(goal: Goal, sandbox: &Sandbox) -> bool {
    let Some(phase) = Phase::from_name(&sandbox.status.phase) else { return false };
    let over = phase.is_over() || phase == Phase::Deleting;
    match goal {
        Goal::Running => phase == Phase::Running || over,
        Goal::Ready => sandbox.status.ready || over,
        Goal::Succeeded | Goal::Failed | Goal::Ended => over,
        Goal::Deleted => false,
    }
}

/// Waits; `None`: it is deleted. With a uid, another sandbox of that name counts as deleted.
pub(super) async fn until(
    app: &App,
    id: &str,
    uid: Option<&str>,
    wait: &Wait,
) -> Result<Option<Arc<Sandbox>>, ApiError> {
    let decided = |sandbox: &Sandbox| is_decided(wait.goal, sandbox);
    let found = tokio::time::timeout(wait.timeout, follow(app, id, uid, decided)).await;
    match found {
        Ok(Some(sandbox)) => Ok(Some(sandbox)),
        Ok(None) if wait.goal == Goal::Deleted => Ok(None),
        Ok(None) => Err(ApiError::no_sandbox(id)),
        Err(_) => {
            let phase = app
                .context
                .store
                .sandbox(id)
                .map_or_else(|| "gone".to_owned(), |it| it.status.phase.clone());
            let goal = format!("{:?}", wait.goal).to_lowercase();
            Err(ApiError::timeout(format!(
                "sandbox {id:?} is {phase}, not {goal}, after {} s",
                wait.timeout.as_secs()
            )))
        }
    }
}

/// Waits until a record is in a phase, or gone.
pub(super) async fn until_phase(app: &App, sandbox: &Sandbox, decided: impl Fn(Phase) -> bool) {
    let look = |it: &Sandbox| Phase::from_name(&it.status.phase).is_some_and(&decided);
    follow(app, &sandbox.id, Some(&sandbox.uid), look).await;
}

/// Follows one record until it is as wanted, or gone.
pub(super) async fn follow(
    app: &App,
    id: &str,
    uid: Option<&str>,
    decided: impl Fn(&Sandbox) -> bool,
) -> Option<Arc<Sandbox>> {
    loop {
        // The version first: what changes after it is seen by the watch.
        let version = app.context.store.version();
        let sandbox =
            app.context.store.sandbox(id).filter(|it| uid.is_none_or(|uid| uid == it.uid))?;
        if decided(&sandbox) {
            return Some(sandbox);
        }
        let Ok(mut watch) = app.context.store.watch(version) else { continue };
        loop {
            // Behind the history: look at the record again.
            let Ok(changes) = watch.next().await else { break };
            let concerned = |object: &Object| matches!(object, Object::Sandbox(it) if it.id == id);
            match changes {
                Some(changes) if changes.iter().any(|it| concerned(&it.object)) => break,
                Some(_) => {}
                None => return None,
            }
        }
    }
}
