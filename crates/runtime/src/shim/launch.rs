//! Beginning a sandbox: its directory, what it takes from the pools, the request to a spawner, the first word of its shim.
//!
//! Runs in a task of its own, so that a caller who gives up leaves nothing half-made: what nobody waits for is destroyed again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use atoll_sys::network_namespace::PreparedNetwork;
use atoll_wire::shim::{
    DescriptorRole, EVENT_KIND, Launch, NetworkPlacement, NetworkPlan, Placement, REPLY_KIND,
    SHIM_PROTOCOL_VERSION, SandboxPlan, ShimEvent, ShimReply, ShimState, SpawnRequest,
    VolumeSource,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::{EventReceiver, RuntimeError, Sandbox};
use atoll_sys::clock::monotonic_micros;

use super::connection::{FrameReader, FrameWriter, frames};
use super::directory::{SandboxDirectory, ShimLock, is_uid};
use super::launches::UnderWay;
use super::pools::PreparedDisk;
use super::sandbox::ShimSandbox;
use super::{Setup, ShimHost, blocking, destroy};

/// How long a shim may take to say its first word (guess: a fork and a read take milliseconds; a busy host takes longer).
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(20);
/// How often a request that nobody took is given to another spawner.
const ATTEMPTS: usize = 3;
/// Events that wait for the server. A shim whose events nobody takes keeps them.
const EVENTS: usize = 64;

/// See [`crate::Runtime::launch`].
pub(super) async fn launch(
    host: Arc<ShimHost>,
    setup: Setup,
    plan: SandboxPlan,
) -> Result<(Arc<dyn Sandbox>, EventReceiver), RuntimeError> {
    check(&plan)?;
    let exists =
        || RuntimeError::Launch { message: format!("a sandbox {} exists already", plan.uid) };
    // Known before there is anything of it, so that nobody takes the host for empty meanwhile.
    let under_way = host.launches.begin(&plan.uid).ok_or_else(exists)?;
    if host.layout.sandbox(&plan.uid).path.exists() {
        return Err(exists());
    }
    let (sender, receiver) = oneshot::channel();
    let (taken, heard) = oneshot::channel();
    tokio::spawn(carry_out(host, setup, plan, under_way, sender, heard));
    let begun = match receiver.await {
        Ok(begun) => begun,
        Err(_) => Err(RuntimeError::Launch { message: "its launch broke off".into() }),
    };
    if begun.is_ok() && taken.send(()).is_err() {
        return Err(RuntimeError::Launch { message: "its launch broke off".into() });
    }
    begun
}

type Begun = (Arc<dyn Sandbox>, EventReceiver);

/// Begins a sandbox for who waits at the other end of `sender` and answers `heard`. What nobody takes is removed again.
async fn carry_out(
    host: Arc<ShimHost>,
    setup: Setup,
    plan: SandboxPlan,
    under_way: UnderWay,
    mut sender: oneshot::Sender<Result<Begun, RuntimeError>>,
    heard: oneshot::Receiver<()>,
) {
    let uid = plan.uid.clone();
    let begun = {
        let given_up = async {
            tokio::select! {
                () = under_way.given_up() => {}
                () = sender.closed() => {}
            }
        };
        begin(&host, &setup, plan, given_up).await
    };
    let remove = async || {
        if let Err(error) = destroy::destroy(&host, &uid).await {
            tracing::warn!(uid, %error, "a sandbox that was not begun is not wholly removed");
        }
    };
    let failed = begun.is_err();
    if failed {
        // Before it is told: who hears of it takes what it had for free.
        remove().await;
    }
    let unheard = sender.send(begun).is_err() || (!failed && heard.await.is_err());
    if unheard && !failed {
        remove().await;
    }
    drop(under_way);
}

fn check(plan: &SandboxPlan) -> Result<(), RuntimeError> {
    let refused = |message: String| Err(RuntimeError::Launch { message });
    if !is_uid(&plan.uid) {
        return refused(format!("{:?} is no uid", plan.uid));
    }
    if plan.containers.is_empty() {
        return refused("it has no containers".into());
    }
    for (index, container) in plan.containers.iter().enumerate() {
        let name = &container.name;
        // A part of paths, always behind a prefix.
        if name.parse::<atoll_model::ids::ContainerName>().is_err() {
            return refused(format!("{name:?} is no name of a container"));
        }
        if plan.containers[..index].iter().any(|other| other.name == *name) {
            return refused(format!("two containers are called {name:?}"));
        }
    }
    Ok(())
}

/// Everything a sandbox takes along.
struct Prepared {
    request: Vec<u8>,
    network: PreparedNetwork,
    place: Option<NetworkPlacement>,
    disks: Vec<PreparedDisk>,
    volumes: Vec<OwnedFd>,
}

async fn begin(
    host: &Arc<ShimHost>,
    setup: &Setup,
    plan: SandboxPlan,
    given_up: impl Future<Output = ()>,
) -> Result<Begun, RuntimeError> {
    let mut given_up = std::pin::pin!(given_up);
    let (uid, directory) = (plan.uid.clone(), host.layout.sandbox(&plan.uid));
    let containers: Vec<String> = plan.containers.iter().map(|it| it.name.clone()).collect();
    let prepared = prepare(host, setup, plan, &directory).await?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let (stream, theirs) = conversation()?;
        let prepared_at = monotonic_micros();
        {
            let descriptors = prepared.descriptors(&theirs);
            host.spawners.send(&prepared.request, &descriptors).await?;
        }
        drop(theirs);
        let (mut reader, writer) = frames(stream);
        // Only between steps: a step that was begun is waited for, so that it makes nothing after its sandbox was removed.
        let first = tokio::select! {
            biased;
            () = &mut given_up => {
                return Err(RuntimeError::Launch { message: "it was given up".into() });
            }
            first = first_event(&mut reader) => first,
        };
        match first {
            Ok(ShimEvent::LaunchFailed { message }) => {
                return Err(RuntimeError::Launch { message });
            }
            Ok(event) => {
                let events = pump(event, reader, writer);
                let sandbox =
                    ShimSandbox::new(uid, directory, containers, Some(prepared_at), prepared.place);
                return Ok((Arc::new(sandbox), events));
            }
            Err(message) => last = Some(message),
        }
        if !matches!(directory.lock()?, ShimLock::NeverTaken) {
            break;
        }
        // No shim ever was: the spawner died with the request, another gets it.
    }
    let message = last.unwrap_or_default();
    Err(RuntimeError::Launch { message: format!("its shim was lost at its start: {message}") })
}

/// Takes from the pools and makes the directory.
async fn prepare(
    host: &Arc<ShimHost>,
    setup: &Setup,
    plan: SandboxPlan,
    directory: &SandboxDirectory,
) -> Result<Prepared, RuntimeError> {
    let (network, place) = network(host, &plan).await?;
    let mut disks = Vec::with_capacity(plan.containers.len());
    for container in &plan.containers {
        disks.push(host.pools.disk(container.disk_bytes).await?);
    }
    let request = spawn_request(directory, false, &plan)?;
    let launch = Launch {
        version: SHIM_PROTOCOL_VERSION,
        placement: placement(host, setup, &plan.uid, directory, place)?,
        plan,
    };
    let (directory, host) = (directory.clone(), Arc::clone(host));
    blocking(move || {
        let volumes = host.mount_volumes(&launch.plan)?;
        directory.create(launch.plan.containers.iter().map(|it| it.name.as_str()))?;
        for (container, disk) in launch.plan.containers.iter().zip(&mut disks) {
            disk.place(&directory.disk(&container.name, launch.placement.disk_backend))?;
        }
        directory.write_launch(&launch)?;
        Ok(Prepared { request, network, place, disks, volumes })
    })
    .await
}

/// A namespace with loopback only, or one in a slot of the instance's network: open to what the plan says before anything runs in it.
async fn network(
    host: &Arc<ShimHost>,
    plan: &SandboxPlan,
) -> Result<(PreparedNetwork, Option<NetworkPlacement>), RuntimeError> {
    if plan.network == NetworkPlan::Loopback {
        return Ok((host.pools.network().await?, None));
    }
    let (host, plan) = (Arc::clone(host), plan.clone());
    let taken = blocking(move || host.slots.take(&plan)).await?;
    Ok((taken.network, Some(taken.placement)))
}

fn placement(
    host: &ShimHost,
    setup: &Setup,
    uid: &str,
    directory: &SandboxDirectory,
    network: Option<NetworkPlacement>,
) -> Result<Placement, RuntimeError> {
    let ids = if setup.own_ids { host.ids.as_ref() } else { None };
    let first_host_id = match ids {
        Some(ids) => Some(ids.take(uid).ok_or_else(|| RuntimeError::Host {
            message: "all host ids for sandboxes are in use: delete sandboxes first".into(),
        })?),
        None => None,
    };
    Ok(Placement {
        engine: setup.engine,
        directory: directory.path.clone(),
        cgroup_instance: host.instance.clone(),
        first_host_id,
        guest_binary: host.programs.guest(),
        gvisor: setup.gvisor.clone(),
        disk_backend: host.pools.disk_backend(),
        network,
    })
}

fn spawn_request(
    directory: &SandboxDirectory,
    adopt: bool,
    plan: &SandboxPlan,
) -> Result<Vec<u8>, RuntimeError> {
    let mut descriptors = vec![DescriptorRole::Conversation];
    if !adopt {
        descriptors.extend([DescriptorRole::NetworkNamespace, DescriptorRole::Sysfs]);
        descriptors.extend(plan.containers.iter().map(|it| DescriptorRole::Disk(it.name.clone())));
        let named = plan.volumes.iter().filter(|it| matches!(it.source, VolumeSource::Named(_)));
        descriptors.extend(named.map(|it| DescriptorRole::Volume(it.name.clone())));
    }
    let count = descriptors.len();
    if count > atoll_wire::shim::MAX_SPAWN_DESCRIPTORS {
        let message = format!(
            "{} containers and {} volumes are too many for one sandbox",
            plan.containers.len(),
            plan.volumes.len()
        );
        return Err(RuntimeError::Launch { message });
    }
    let request = SpawnRequest {
        version: SHIM_PROTOCOL_VERSION,
        directory: directory.path.clone(),
        adopt,
        descriptors,
    };
    serde_json::to_vec(&request)
        .map_err(|error| RuntimeError::Launch { message: error.to_string() })
}

impl Prepared {
    fn descriptors<'a>(&'a self, conversation: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
        let mut descriptors =
            vec![conversation.as_fd(), self.network.namespace.as_fd(), self.network.sysfs.as_fd()];
        descriptors.extend(self.disks.iter().map(|disk| disk.mount.as_fd()));
        descriptors.extend(self.volumes.iter().map(AsFd::as_fd));
        descriptors
    }
}

/// Our side of a shim's first connection, and the shim's.
fn conversation() -> Result<(UnixStream, OwnedFd), RuntimeError> {
    let failed = |error: std::io::Error| RuntimeError::Host {
        message: format!("cannot make a socket pair: {error}"),
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((UnixStream::from_std(ours).map_err(failed)?, theirs.into()))
}

/// What came of an attempt to take a sandbox over.
pub(super) enum TakenOver {
    /// The state, once the shim has asked the guests, and the events after it.
    Running(ShimState, EventReceiver),
    /// It is over, and recorded.
    Over,
    /// The shim could not take it over, left it as it is, and said why.
    Refused(String),
}

/// Has a spawner fork a shim that takes over what an earlier shim left.
pub(super) async fn begin_adoption(
    host: &ShimHost,
    directory: &SandboxDirectory,
    plan: &SandboxPlan,
) -> Result<TakenOver, RuntimeError> {
    let request = spawn_request(directory, true, plan)?;
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let (stream, theirs) = conversation()?;
        host.spawners.send(&request, &[theirs.as_fd()]).await?;
        drop(theirs);
        let (mut reader, writer) = frames(stream);
        let state = tokio::time::timeout(FIRST_WORD_WITHIN, first_state(&mut reader)).await;
        match state.unwrap_or_else(|_| Err(format!("it said nothing in {FIRST_WORD_WITHIN:?}"))) {
            Ok(FirstWord::State(state)) => {
                return Ok(TakenOver::Running(state, pump(None, reader, writer)));
            }
            Ok(FirstWord::Over) => return Ok(TakenOver::Over),
            // Another attempt would find the same.
            Ok(FirstWord::Refused(message)) => return Ok(TakenOver::Refused(message)),
            Err(message) => last = message,
        }
    }
    let message = format!("no shim could take it over: {last}");
    Err(RuntimeError::Unreachable { uid: plan.uid.clone(), message })
}

/// What a shim that is to take over says first, but that it was spawned.
enum FirstWord {
    State(ShimState),
    Over,
    Refused(String),
}

async fn first_state(reader: &mut FrameReader) -> Result<FirstWord, String> {
    loop {
        let frame = reader.next().await.map_err(|error| error.to_string())?;
        let frame = frame.ok_or("it closed its first connection")?;
        if frame.kind == REPLY_KIND {
            let reply =
                serde_json::from_slice(&frame.payload).map_err(|error| error.to_string())?;
            match reply {
                ShimReply::State(state) => return Ok(FirstWord::State(state)),
                ShimReply::Refused { message } => return Ok(FirstWord::Refused(message)),
                _ => return Err("it began with an answer to nothing".into()),
            }
        }
        let event = serde_json::from_slice(&frame.payload).map_err(|error| error.to_string())?;
        if let ShimEvent::Ended | ShimEvent::LaunchFailed { .. } = event {
            return Ok(FirstWord::Over);
        }
    }
}

async fn first_event(reader: &mut FrameReader) -> Result<ShimEvent, String> {
    let first = async {
        let event = next_event(reader).await?;
        event.ok_or_else(|| "it closed its first connection".to_owned())
    };
    tokio::time::timeout(FIRST_WORD_WITHIN, first)
        .await
        .unwrap_or_else(|_| Err(format!("it said nothing in {FIRST_WORD_WITHIN:?}")))
}

/// The next event; `None` when the shim has closed.
async fn next_event(reader: &mut FrameReader) -> Result<Option<ShimEvent>, String> {
    loop {
        let frame = reader.next().await.map_err(|error| error.to_string())?;
        let Some(frame) = frame else { return Ok(None) };
        if frame.kind == EVENT_KIND {
            return serde_json::from_slice(&frame.payload)
                .map(Some)
                .map_err(|error| format!("its event is malformed: {error}"));
        }
    }
}

/// Passes events on until the last one, or until the shim or the server is gone.
pub(super) fn pump(
    first: impl Into<Option<ShimEvent>>,
    mut reader: FrameReader,
    writer: FrameWriter,
) -> EventReceiver {
    let (sender, receiver) = mpsc::channel(EVENTS);
    let mut next = first.into();
    tokio::spawn(async move {
        // Kept open: a half that closes would end the subscription.
        let _writer = writer;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => {
                    let read = tokio::select! {
                        read = next_event(&mut reader) => read,
                        () = sender.closed() => return,
                    };
                    match read {
                        Ok(Some(event)) => event,
                        Ok(None) => return,
                        Err(error) => {
                            tracing::warn!(error, "the events of a shim end");
                            return;
                        }
                    }
                }
            };
            let last = matches!(event, ShimEvent::Ended | ShimEvent::LaunchFailed { .. });
            if sender.send(event).await.is_err() || last {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests;
