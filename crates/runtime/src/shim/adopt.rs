//! Finding what became of a sandbox while no server was there.
//!
//! The evidence, best first: a shim that answers; `end.json`; a shim that holds its lock; processes in the sandbox's control group. What
//! contradicts itself or cannot be read is set aside whole, never guessed about.

use std::sync::Arc;
use std::time::Duration;

use atoll_sys::process::{self, ProcessIdentity, ProcessState};
use atoll_wire::record::{ProcessId, ShimRecord};
use atoll_wire::shim::{Launch, ShimReply, ShimRequest, ShimState};

use crate::{Adoption, EventReceiver, RuntimeError};
use atoll_model::causes::with_causes;

use super::connection::{ANSWER_WITHIN, ConnectError, ask};
use super::directory::{Found, SandboxDirectory, ShimLock, is_uid};
use super::launch::{TakenOver, begin_adoption, pump};
use super::sandbox::ShimSandbox;
use super::{ShimHost, blocking, destroy};

/// Between looks at a shim that holds its lock and does not listen yet.
const PAUSE: Duration = Duration::from_millis(5);

/// See [`crate::Runtime::adopt`].
pub(super) async fn adopt(host: &Arc<ShimHost>, uid: &str) -> Result<Adoption, RuntimeError> {
    let directory = host.layout.sandbox(uid);
    if !is_uid(uid) || !directory.path.exists() {
        return Ok(gone("its directory is missing"));
    }
    if let Some(known) = find_shim(host, uid, &directory).await? {
        return Ok(known);
    }
    let launch = match directory.launch() {
        Found::Whole(launch) if launch.plan.uid == uid => launch,
        Found::Whole(launch) => {
            let reason = format!("launch.json is of another sandbox, {:?}", launch.plan.uid);
            return quarantine(host, uid, reason).await;
        }
        Found::Damaged(reason) => return quarantine(host, uid, reason).await,
        Found::Absent | Found::Unfinished => return Ok(gone("it was never begun")),
    };
    let record = match directory.shim_record() {
        Found::Whole(record) => record,
        Found::Damaged(reason) => return quarantine(host, uid, reason).await,
        Found::Absent | Found::Unfinished => {
            return Ok(gone("it was killed before any of its commands was started"));
        }
    };
    match missing(host, uid, record).await? {
        Some(reason) => Ok(gone(&reason)),
        None => take_over(host, uid, &directory, &launch).await,
    }
}

fn gone(reason: &str) -> Adoption {
    Adoption::Gone { reason: reason.to_owned() }
}

/// What a shim, or the record of one that has ended, says. `None`: there is no shim and no record.
async fn find_shim(
    host: &Arc<ShimHost>,
    uid: &str,
    directory: &SandboxDirectory,
) -> Result<Option<Adoption>, RuntimeError> {
    let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
    loop {
        let silence = match ask(directory, &ShimRequest::Subscribe).await {
            Ok((ShimReply::State(state), reader, writer)) => {
                let events = pump(None, reader, writer);
                return Ok(Some(running(uid, directory, state, events)));
            }
            // It lives, and does not know itself: who asks again later may hear more.
            Ok((ShimReply::Refused { message }, ..)) => {
                return Err(RuntimeError::Unreachable { uid: uid.to_owned(), message });
            }
            Ok(_) => "it did not answer with its state".to_owned(),
            Err(ConnectError::NobodyListens(why)) => match directory.end() {
                Found::Whole(end) => return Ok(Some(Adoption::Ended(end))),
                Found::Damaged(reason) => return quarantine(host, uid, reason).await.map(Some),
                Found::Absent | Found::Unfinished => match directory.lock()? {
                    // Between its start and its first word, or between its last word and its end.
                    ShimLock::Held => why,
                    ShimLock::Ours(_) | ShimLock::NeverTaken => {
                        // It may have written its last word before it let go of the lock.
                        return Ok(match directory.end() {
                            Found::Whole(end) => Some(Adoption::Ended(end)),
                            _ => None,
                        });
                    }
                },
            },
            Err(ConnectError::Silent(why) | ConnectError::Unfit(why)) => why,
        };
        if tokio::time::Instant::now() >= deadline {
            let message = format!("its shim lives and does not answer: {silence}");
            return Err(RuntimeError::Unreachable { uid: uid.to_owned(), message });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why nothing of the sandbox can run any more; `None`: something does.
async fn missing(
    host: &Arc<ShimHost>,
    uid: &str,
    record: ShimRecord,
) -> Result<Option<String>, RuntimeError> {
    let (host, uid) = (Arc::clone(host), uid.to_owned());
    blocking(move || {
        let failed = |error: &dyn std::error::Error| RuntimeError::Unreachable {
            uid: uid.clone(),
            message: with_causes(error),
        };
        let boot_id = process::boot_id().map_err(|error| failed(&error))?;
        if record.shim.boot_id != boot_id {
            return Ok(Some("the host was started anew since".into()));
        }
        for container in &record.containers {
            let state = identity(&container.init).state().map_err(|error| failed(&error))?;
            if state == ProcessState::Running {
                return Ok(None);
            }
        }
        let group = host.cgroups.find(&uid, None).map_err(|error| failed(&error))?;
        if group.exists() && !group.processes().map_err(|error| failed(&error))?.is_empty() {
            return Ok(None);
        }
        Ok(Some("it was killed together with its shim: how its commands ended is not known".into()))
    })
    .await
}

pub(super) fn identity(id: &ProcessId) -> ProcessIdentity {
    ProcessIdentity {
        pid: id.pid,
        start_time_ticks: id.start_time_ticks,
        boot_id: id.boot_id.clone(),
    }
}

async fn take_over(
    host: &Arc<ShimHost>,
    uid: &str,
    directory: &SandboxDirectory,
    launch: &Launch,
) -> Result<Adoption, RuntimeError> {
    tracing::info!(uid, "the sandbox lost its shim and gets another");
    let why = match begin_adoption(host, directory, &launch.plan).await? {
        TakenOver::Running(state, events) => return Ok(running(uid, directory, state, events)),
        TakenOver::Over => "the shim that took it over was lost too".to_owned(),
        TakenOver::Refused(why) => {
            // What the shim could not believe may have been damaged since it was read here.
            let damaged = damage(directory.launch()).or_else(|| damage(directory.shim_record()));
            if let Some(reason) = damaged {
                return quarantine(host, uid, reason).await;
            }
            why
        }
    };
    // Another shim may have been there first.
    match find_shim(host, uid, directory).await? {
        Some(adoption) => Ok(adoption),
        None => Err(RuntimeError::Unreachable { uid: uid.to_owned(), message: why }),
    }
}

fn damage<T>(found: Found<T>) -> Option<String> {
    match found {
        Found::Damaged(reason) => Some(reason),
        Found::Absent | Found::Unfinished | Found::Whole(_) => None,
    }
}

fn running(
    uid: &str,
    directory: &SandboxDirectory,
    state: ShimState,
    events: EventReceiver,
) -> Adoption {
    let containers = state.containers.iter().map(|it| it.name.clone()).collect();
    let network = match directory.launch() {
        Found::Whole(launch) => launch.placement.network,
        Found::Absent | Found::Unfinished | Found::Damaged(_) => None,
    };
    let sandbox = ShimSandbox::new(uid.to_owned(), directory.clone(), containers, None, network);
    Adoption::Running(Arc::new(sandbox), state, events)
}

/// Ends what runs (nobody can know what it is) and sets the directory aside.
async fn quarantine(
    host: &Arc<ShimHost>,
    uid: &str,
    reason: String,
) -> Result<Adoption, RuntimeError> {
    let (host, uid) = (Arc::clone(host), uid.to_owned());
    blocking(move || {
        tracing::error!(uid, reason, "a sandbox's directory cannot be believed and is set aside");
        destroy::kill(&host, &uid)?;
        host.slots.release(&uid)?;
        let directory = host.layout.set_aside(&uid, &reason)?;
        if let Some(ids) = &host.ids {
            ids.release(&uid);
        }
        Ok(Adoption::Quarantined { directory, reason })
    })
    .await
}
