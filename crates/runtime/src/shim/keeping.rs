//! This server's side of the keeper: what is wanted of it, sandbox by sandbox, and said again to each keeper that begins.
//!
//! Owns no kernel object: the keeper holds ports, proxies and the resolver, and outlives this process. Calls block for milliseconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_keeper::{
    KeeperClient, KeeperError, Member, Port, PortHold, ResolverPlace, StartOptions,
};
use atoll_model::causes::with_causes;
use atoll_sys::cgroup::{CgroupError, CgroupRoot};

/// Between attempts to begin a keeper, where none stays alive: first and longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));

/// A keeper that is always there.
pub(super) struct Keeping(Arc<Shared>);

struct Shared {
    options: StartOptions,
    resolver: ResolverPlace,
    /// Where the keeper belongs: it outlives the service that this server may be.
    groups: CgroupRoot,
    state: Mutex<State>,
    /// It is over.
    ending: Condvar,
}

#[derive(Default)]
struct State {
    client: Option<Arc<KeeperClient>>,
    members: BTreeMap<String, Member>,
    is_ending: bool,
}

impl Keeping {
    /// Attaches to the instance's keeper, or begins one, and says what is wanted; others that it has stay until [`Keeping::retain`].
    pub(super) fn start(
        options: StartOptions,
        resolver: ResolverPlace,
        groups: CgroupRoot,
        members: Vec<Member>,
    ) -> Result<Self, KeeperError> {
        let members = members.into_iter().map(|it| (it.uid.clone(), it)).collect();
        let state = Mutex::new(State { members, ..State::default() });
        let ending = Condvar::new();
        let shared = Arc::new(Shared { options, resolver, groups, state, ending });
        warn_of(Shared::attach(&shared, &mut shared.state())?);
        Ok(Self(shared))
    }

    /// Holds ports for a sandbox, closed: all of them or none.
    pub(super) fn hold(&self, uid: &str, ports: &[Port]) -> Result<(), KeeperError> {
        let closed = ports.iter().map(|port| Port { open: false, ..*port }).collect();
        self.change(uid, |member| member.ports = closed)
    }

    /// Makes true what a sandbox is changed to. Where that cannot be, it stays as it was.
    pub(super) fn change(
        &self,
        uid: &str,
        change: impl FnOnce(&mut Member),
    ) -> Result<(), KeeperError> {
        let mut state = self.0.state();
        let before = state.members.get(uid).cloned();
        let mut member = before.clone().unwrap_or_else(|| Member {
            uid: uid.to_owned(),
            addresses: None,
            names: atoll_keeper::Names::Refuse,
            ports: Vec::new(),
        });
        change(&mut member);
        state.members.insert(uid.to_owned(), member.clone());
        let changed = self.ask(&mut state, uid, |client| client.put(&member));
        if let Err(KeeperError::Taken { .. }) = &changed {
            match before {
                Some(before) => state.members.insert(uid.to_owned(), before),
                None => state.members.remove(uid),
            };
        }
        changed
    }

    /// Lets everything of a sandbox go.
    pub(super) fn remove(&self, uid: &str) -> Result<(), KeeperError> {
        let mut state = self.0.state();
        if state.members.remove(uid).is_none() {
            return Ok(());
        }
        self.ask(&mut state, uid, |client| client.remove(uid))
    }

    /// Lets everybody go but those of whom something is wanted.
    pub(super) fn retain(&self) -> Result<(), KeeperError> {
        let mut state = self.0.state();
        let members: Vec<Member> = state.members.values().cloned().collect();
        self.ask(&mut state, "", |client| client.set(&members).map(warn_of))
    }

    /// This server goes. With `everything` the keeper ends, and lets go of all.
    pub(super) fn stop(&self, everything: bool) {
        let mut state = self.0.state();
        state.is_ending = true;
        self.0.ending.notify_all();
        let Some(client) = state.client.take() else { return };
        if everything && let Err(error) = client.retire() {
            tracing::debug!(error = with_causes(&error), "the keeper was gone already");
        }
        client.detach();
    }

    /// Asks the keeper; one that is gone is replaced, and the new one is told all, this too.
    fn ask(
        &self,
        state: &mut State,
        uid: &str,
        question: impl FnOnce(&KeeperClient) -> Result<(), KeeperError>,
    ) -> Result<(), KeeperError> {
        if let Some(client) = state.client.clone() {
            match question(&client) {
                Err(KeeperError::Gone(error)) => {
                    tracing::warn!(%error, "the network keeper is gone and another is begun");
                }
                answered => return answered,
            }
        }
        let refused = Shared::attach(&self.0, state)?;
        let (mut own, others): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|(of, _)| of == uid);
        warn_of(others);
        own.pop().map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches and says everything. Gives what could not be done, by sandbox.
    fn attach(
        shared: &Arc<Self>,
        state: &mut State,
    ) -> Result<Vec<(String, KeeperError)>, KeeperError> {
        state.client = None;
        let client = Arc::new(KeeperClient::start_or_attach(&shared.options)?);
        if let Err(error) = shared.place(&client) {
            tracing::warn!(error = with_causes(&error), "the keeper stays in this service's group");
        }
        if let Err(error) = client.resolve(Some(&shared.resolver)) {
            // Sandboxes without names are no reason to leave them without ports.
            tracing::error!(error = with_causes(&error), "sandboxes cannot resolve names");
        }
        let mut refused = Vec::new();
        for member in state.members.values() {
            match client.put(member) {
                Ok(()) => {}
                Err(error @ KeeperError::Gone(_)) => return Err(error),
                Err(error) => refused.push((member.uid.clone(), error)),
            }
        }
        state.client = Some(Arc::clone(&client));
        let watching = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("keeper-watch".into());
        if let Err(error) = thread.spawn(move || watching.watch(&client)) {
            tracing::warn!(%error, "the network keeper is not watched");
        }
        Ok(refused)
    }

    fn place(&self, keeper: &KeeperClient) -> Result<(), CgroupError> {
        self.groups.create_own("network-keeper")?.attach(keeper.pid().cast_signed())
    }

    /// Begins another keeper when this one ends, unless somebody has, or it is over.
    fn watch(self: &Arc<Self>, client: &Arc<KeeperClient>) {
        client.wait_for_end();
        let mut pause = PAUSES.0;
        let mut state = self.state();
        // From here on every attempt leaves no client behind, or one that its own thread watches.
        let is_mine =
            |state: &State| state.client.as_ref().is_none_or(|now| Arc::ptr_eq(now, client));
        if state.client.is_none() || !is_mine(&state) {
            return;
        }
        tracing::warn!(pid = client.pid(), "the network keeper has ended; another is begun");
        while !state.is_ending && is_mine(&state) {
            match Self::attach(self, &mut state) {
                Ok(refused) => return warn_of(refused),
                Err(error) => {
                    tracing::error!(error = with_causes(&error), "no network keeper stays alive");
                }
            }
            let waited = self.ending.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

fn warn_of(refused: Vec<(String, KeeperError)>) {
    for (uid, error) in refused {
        tracing::error!(uid, error = with_causes(&error), "a sandbox's ports are not as wanted");
    }
}

/// A port of the keeper's, closed.
pub(super) fn port_of(plan: &atoll_wire::shim::PortPlan) -> Port {
    let protocol = match plan.protocol {
        atoll_wire::shim::PortProtocol::Tcp => atoll_keeper::Protocol::Tcp,
        atoll_wire::shim::PortProtocol::Udp => atoll_keeper::Protocol::Udp,
    };
    let hold = PortHold { protocol, host_port: plan.host_port };
    Port { hold, target_port: plan.container_port, open: false }
}
