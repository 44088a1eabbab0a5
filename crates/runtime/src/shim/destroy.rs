//! Ending a sandbox for good: whatever is left of it, however half-made, is killed and removed.
//!
//! Every step can be done again, in any state, and none trusts what the sandbox's directory says further than to find processes of that
//! very identity.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_sys::process::{ProcessIdentity, send_signal};
use atoll_wire::shim::{EVENT_KIND, ShimEvent, ShimReply, ShimRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{RuntimeError, disk};
use atoll_model::causes::with_causes;

use super::adopt::identity;
use super::connection::ask;
use super::directory::{Found, SandboxDirectory, ShimLock, io_error, is_uid};
use super::{ShimHost, blocking};

/// How long a shim that was asked to end at once may take (guess: removing a sandbox takes tens of milliseconds).
const END_WITHIN: Duration = Duration::from_secs(5);
/// How long a killed shim may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// Between looks at a lock.
const PAUSE: Duration = Duration::from_micros(500);

/// See [`crate::Runtime::clear`].
pub(super) async fn clear(host: &Arc<ShimHost>, uid: &str) -> Result<(), RuntimeError> {
    if !is_uid(uid) {
        return Ok(());
    }
    let directory = host.layout.sandbox(uid);
    end_if_held(&directory).await;
    let (host, uid) = (Arc::clone(host), uid.to_owned());
    blocking(move || {
        let _lock = kill(&host, &uid)?;
        host.slots.release(&uid)?;
        // Of a sandbox that never published anything there is none.
        let _ = fs::remove_file(directory.published());
        if let Found::Whole(mut launch) = directory.launch()
            && launch.placement.network.take().is_some()
        {
            // Its slot is somebody else's from now on.
            directory.write_launch(&launch)?;
        }
        // The disks are worth nothing to anybody any more.
        disk::remove_all_of(&directory.path)?;
        Ok(())
    })
    .await
}

/// See [`crate::Runtime::destroy`].
pub(super) async fn destroy(host: &Arc<ShimHost>, uid: &str) -> Result<(), RuntimeError> {
    if !is_uid(uid) {
        return Ok(());
    }
    let directory = host.layout.sandbox(uid);
    end_if_held(&directory).await;
    let (host, uid) = (Arc::clone(host), uid.to_owned());
    blocking(move || {
        // Kept until the directory is gone: a shim that was still to begin finds it taken.
        let _lock = kill(&host, &uid)?;
        host.slots.release(&uid)?;
        host.layout.remove(&uid)?;
        if let Some(ids) = &host.ids {
            ids.release(&uid);
        }
        Ok(())
    })
    .await
}

async fn end_if_held(directory: &SandboxDirectory) {
    if matches!(directory.lock(), Ok(ShimLock::Held)) {
        end_orderly(directory).await;
    }
}

/// Asks the shim to kill and remove everything itself, which it does best. In vain, the rest is done without it.
async fn end_orderly(directory: &SandboxDirectory) {
    let ended = async {
        let subscribed = ask(directory, &ShimRequest::Subscribe).await;
        let Ok((ShimReply::State(_), mut reader, _writer)) = subscribed else { return };
        if ask(directory, &ShimRequest::Stop { grace_millis: 0 }).await.is_err() {
            return;
        }
        while let Ok(Some(frame)) = reader.next().await {
            let event = serde_json::from_slice(&frame.payload).ok();
            if frame.kind == EVENT_KIND
                && matches!(event, Some(ShimEvent::Ended | ShimEvent::LaunchFailed { .. }))
            {
                return;
            }
        }
    };
    drop(tokio::time::timeout(END_WITHIN, ended).await);
}

/// Kills the shim and everything in the sandbox, and removes its control groups. Gives the shim's lock. Blocks.
pub(super) fn kill(host: &ShimHost, uid: &str) -> Result<Option<File>, RuntimeError> {
    let directory = host.layout.sandbox(uid);
    let lock = end_shim(uid, &directory)?;
    let left = |error| RuntimeError::Unreachable {
        uid: uid.to_owned(),
        message: format!("its control group stays: {}", with_causes(&error)),
    };
    host.cgroups.find(uid, None).and_then(|group| group.remove()).map_err(left)?;
    if let Some((_, Some(gvisor))) = host.engine_of(uid) {
        // All that runsc keeps on disk of this sandbox.
        let state = gvisor.root.join(uid);
        match fs::remove_dir_all(&state) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("remove", &state)(error));
            }
            _ => {}
        }
    }
    Ok(lock)
}

/// Takes the shim's lock, from a shim that does not give it by killing it. `None`: there is no directory (any more).
fn end_shim(uid: &str, directory: &SandboxDirectory) -> Result<Option<File>, RuntimeError> {
    let deadline = Instant::now() + KILLED_WITHIN;
    let mut killed = false;
    loop {
        match directory.take_lock() {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) => {}
            Err(_) if !directory.path.exists() => return Ok(None),
            Err(error) => return Err(error),
        }
        if !killed {
            killed = kill_shim(uid, directory)?;
        }
        if Instant::now() >= deadline {
            let message = "its shim could not be ended".into();
            return Err(RuntimeError::Unreachable { uid: uid.to_owned(), message });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Kills the shim of the record and waits for its end. False: the record does not say who it is.
fn kill_shim(uid: &str, directory: &SandboxDirectory) -> Result<bool, RuntimeError> {
    let failed = |error: &dyn std::error::Error| RuntimeError::Unreachable {
        uid: uid.to_owned(),
        message: format!("its shim cannot be killed: {}", with_causes(error)),
    };
    let shim = match directory.shim_record() {
        Found::Whole(record) => Some(identity(&record.shim)),
        // Before its first record, or with a damaged one: whoever holds the lock.
        _ => lock_holder(directory),
    };
    let Some(shim) = shim else { return Ok(false) };
    let Some(pidfd) = shim.open().map_err(|error| failed(&error))? else { return Ok(false) };
    send_signal(pidfd.as_fd(), 9).map_err(|error| failed(&error))?;
    let timeout = Timespec::try_from(KILLED_WITHIN).ok();
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref());
    ended.map(|_| true).map_err(|errno| failed(&errno))
}

/// SOURCE: proc_locks(5): `1: FLOCK ADVISORY WRITE <pid> <major:minor:inode> 0 EOF`.
fn lock_holder(directory: &SandboxDirectory) -> Option<ProcessIdentity> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(directory.path.join("shim.lock")).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { return None };
        let of_inode = place.rsplit(':').next() == Some(inode.as_str());
        of_inode.then(|| pid.parse::<i32>().ok()).flatten().filter(|pid| *pid > 0)
    };
    let pid = locks.lines().find_map(holder)?;
    let process = ProcessIdentity::of(pid).ok()??;
    // The inode's number alone could be another file system's, and this very process may hold the lock to remove the directory: only a
    // program of ours is ever killed.
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let lock = directory.path.join("shim.lock").canonicalize().ok()?;
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut links = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let is_shim = program.file_name()?.to_str()?.starts_with(super::programs::SHIM);
    (is_shim && links.any(|link| link == lock)).then_some(process)
}
