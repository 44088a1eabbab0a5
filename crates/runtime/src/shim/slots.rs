//! Which sandbox has which slot of the instance's network, and a few slots made ahead.
//!
//! Owns the network of the instance while a server runs. A slot is a sandbox's from before its first instruction until nothing of it
//! runs; who has it is in the sandbox's `launch.json`, and learned from there by the next server.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use atoll_keeper::{Asker, Resolver, ResolverSockets, Servers};
use atoll_model::causes::with_causes;
use atoll_network::{KnownSlot, Network, OpenOptions, Policy, Reach, Slot, SlotNumber, Subnet};
use atoll_sys::network_namespace::PreparedNetwork;
use atoll_wire::shim::{NetworkPlacement, NetworkPlan};

use crate::RuntimeError;

use super::directory::{Found, Layout};

/// Why sandboxes have loopback only.
const NOT_OFFERED: &str = "the server was started without --network";
/// SOURCE: RFC 1035, 4.2.
const NAMES_PORT: u16 = 53;
/// How long the port is waited for that a killed server, or a child it had just forked, may hold for a moment more.
const HELD_UNTIL_AN_EXEC: Duration = Duration::from_millis(500);
/// Between two tries.
const PORT_PAUSE: Duration = Duration::from_millis(5);
/// Slots that are kept ready (guess: most sandboxes of a burst have no network).
const READY: usize = 4;

/// The instance's network, or why there is none.
pub(super) struct Slots {
    shared: Result<Arc<Shared>, String>,
    /// New sandboxes may have it.
    offered: bool,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    network: Network,
    /// Serves from when there are threads for it.
    resolver: OnceLock<Resolver>,
    stock: Mutex<Stock>,
    /// Something was taken, or it is over.
    wanted: Condvar,
}

#[derive(Default)]
struct Stock {
    ready: Vec<Slot>,
    taken: HashMap<String, Place>,
    stopping: bool,
}

/// A sandbox's place in the network.
#[derive(Debug, Clone, Copy)]
struct Place {
    number: SlotNumber,
    plan: NetworkPlan,
}

impl Shared {
    /// What the resolver knows of a sandbox.
    fn asker(&self, place: Place) -> Asker {
        let addresses = self.network.subnet().slot(place.number).both();
        Asker { addresses, forward: place.plan == NetworkPlan::World, granted: Vec::new() }
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        loop {
            {
                let mut stock = self.stock();
                while stock.ready.len() >= READY && !stock.stopping {
                    stock = self.wanted.wait(stock).unwrap_or_else(PoisonError::into_inner);
                }
                if stock.stopping {
                    return;
                }
            }
            match self.network.prepare_slot() {
                Ok(slot) => self.stock().ready.push(slot),
                Err(error) => {
                    tracing::warn!(error = with_causes(&error), "no network slot was prepared");
                    // Whoever takes one tries by himself, and hears why it fails.
                    let stock = self.stock();
                    drop(self.wanted.wait(stock));
                }
            }
        }
    }
}

/// What a sandbox takes along of its slot.
pub(super) struct Taken {
    pub(super) network: PreparedNetwork,
    pub(super) placement: NetworkPlacement,
}

impl Slots {
    /// No network, and why.
    pub(super) fn none(why: impl Into<String>) -> Self {
        Self { shared: Err(why.into()), offered: false, keeper: Mutex::new(None) }
    }

    /// For a server that offers no network: one that an earlier server left is taken over all the same, so that what still runs in it keeps
    /// it, and so that it is taken down in the end.
    pub(super) fn not_offered(layout: &Layout, instance: &str) -> Self {
        if network_directory(&layout.data_dir).exists() {
            return Self { offered: false, ..Self::open(layout, instance, None) };
        }
        Self::none(NOT_OFFERED)
    }

    /// Opens the network and finds the slots of sandboxes that an earlier server began. A host that cannot have one is no error.
    pub(super) fn open(layout: &Layout, instance: &str, subnet: Option<Subnet>) -> Self {
        let (known, taken) = known_slots(layout);
        let directory = network_directory(&layout.data_dir);
        let options = OpenOptions { directory, instance: instance.to_owned(), subnet };
        let network = match Network::open(&options, &known) {
            Ok((network, lost)) => {
                for slot in lost {
                    tracing::error!(slot = slot.0, "a running sandbox has lost its network");
                }
                network
            }
            Err(error) => return Self::none(with_causes(&error)),
        };
        let stock = Stock { taken, ..Stock::default() };
        let shared = Arc::new(Shared {
            network,
            resolver: OnceLock::new(),
            stock: Mutex::new(stock),
            wanted: Condvar::new(),
        });
        let keeping = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("pool-slots".into())
            .spawn(move || keeping.keep())
            .map_err(|error| tracing::warn!(%error, "no network slots are prepared ahead"));
        Self { shared: Ok(shared), offered: true, keeper: Mutex::new(keeper.ok()) }
    }

    /// The network, or why there is none.
    pub(super) fn network(&self) -> Result<&Network, String> {
        match &self.shared {
            Ok(shared) if self.offered => Ok(&shared.network),
            Ok(_) => Err(NOT_OFFERED.to_owned()),
            Err(why) => Err(why.clone()),
        }
    }

    /// Answers sandboxes' questions for names from now on. Needs a tokio runtime. Without a network there is nobody to ask.
    pub(super) fn serve_names(&self) -> Result<(), RuntimeError> {
        let Ok(shared) = &self.shared else { return Ok(()) };
        let failed = |error: &dyn std::error::Error| RuntimeError::Host {
            message: format!("sandboxes cannot resolve names: {}", with_causes(error)),
        };
        let gateway = shared.network.subnet().gateway().both();
        let give_up_at = Instant::now() + HELD_UNTIL_AN_EXEC;
        let sockets = loop {
            match shared.network.inside_ring(|| ResolverSockets::open(&gateway, NAMES_PORT)) {
                Ok(sockets) => break sockets,
                Err(_) if Instant::now() < give_up_at => std::thread::sleep(PORT_PAUSE),
                Err(error) => return Err(failed(&error)),
            }
        };
        let resolver =
            Resolver::serve(sockets, Servers::of_host()).map_err(|error| failed(&error))?;
        let known: Vec<Place> = shared.stock().taken.values().copied().collect();
        for place in known {
            resolver.admit(&shared.asker(place));
        }
        // Told once; another call finds it serving.
        drop(shared.resolver.set(resolver));
        Ok(())
    }

    /// A slot for a sandbox, open to what the plan says and to nothing else. Blocks for a millisecond or two.
    pub(super) fn take(&self, uid: &str, plan: NetworkPlan) -> Result<Taken, RuntimeError> {
        let failed = |message: String| RuntimeError::Host { message };
        let shared = self.shared.as_ref().map_err(|why| failed(why.clone()))?;
        let ready = shared.stock().ready.pop();
        shared.wanted.notify_all();
        let slot = match ready {
            Some(slot) => slot,
            None => shared.network.prepare_slot().map_err(|error| failed(with_causes(&error)))?,
        };
        let place = Place { number: slot.number, plan };
        shared.stock().taken.insert(uid.to_owned(), place);
        if let Some(resolver) = shared.resolver.get() {
            resolver.admit(&shared.asker(place));
        }
        if let Err(error) = shared.network.admit(slot.number, &policy(plan)) {
            self.release(uid)?;
            return Err(failed(with_causes(&error)));
        }
        let placement = NetworkPlacement {
            slot: slot.number.0,
            ipv4: slot.addresses.ipv4,
            ipv6: slot.addresses.ipv6,
            gateway_ipv4: slot.gateway.ipv4,
            gateway_ipv6: slot.gateway.ipv6,
        };
        Ok(Taken { network: slot.network, placement })
    }

    /// A sandbox has ended: its slot is gone afterwards. One without a slot is fine. Blocks for a few milliseconds.
    pub(super) fn release(&self, uid: &str) -> Result<(), RuntimeError> {
        let Ok(shared) = &self.shared else { return Ok(()) };
        let Some(place) = shared.stock().taken.get(uid).copied() else { return Ok(()) };
        if let Some(resolver) = shared.resolver.get() {
            resolver.forget(shared.network.subnet().slot(place.number).both());
        }
        shared.network.release(place.number).map_err(|error| RuntimeError::Unreachable {
            uid: uid.to_owned(),
            message: format!("its network slot stays: {}", with_causes(&error)),
        })?;
        shared.stock().taken.remove(uid);
        Ok(())
    }

    /// Ends the thread, and removes the slots that nobody took; with `everything` the network too.
    pub(super) fn stop(&self, everything: bool) {
        let Ok(shared) = &self.shared else { return };
        shared.stock().stopping = true;
        shared.wanted.notify_all();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if keeper.is_some_and(|keeper| keeper.join().is_err()) {
            tracing::error!("the thread that prepares network slots has panicked");
        }
        let unused = std::mem::take(&mut shared.stock().ready);
        for slot in unused {
            if let Err(error) = shared.network.release(slot.number) {
                tracing::warn!(error = with_causes(&error), "an unused network slot stays");
            }
        }
        if everything && let Err(error) = shared.network.remove() {
            tracing::warn!(error = with_causes(&error), "the instance's network stays");
        }
    }
}

fn policy(plan: NetworkPlan) -> Policy {
    let reach = match plan {
        NetworkPlan::World => Reach::World,
        NetworkPlan::Isolated | NetworkPlan::Loopback => Reach::Isolated,
    };
    Policy { reach, grants: Vec::new() }
}

/// Where the network keeps its mount and its record.
fn network_directory(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("network")
}

/// The slots of sandboxes that have not ended, by their directories.
fn known_slots(layout: &Layout) -> (Vec<KnownSlot>, HashMap<String, Place>) {
    let (mut known, mut taken) = (Vec::new(), HashMap::new());
    for uid in layout.uids().unwrap_or_default() {
        let directory = layout.sandbox(&uid);
        let Found::Whole(launch) = directory.launch() else { continue };
        let Some(placement) = launch.placement.network else { continue };
        if matches!(directory.end(), Found::Whole(_)) {
            continue;
        }
        let number = SlotNumber(placement.slot);
        known.push(KnownSlot {
            number,
            policy: Some(policy(launch.plan.network)),
            published: Vec::new(),
        });
        taken.insert(uid, Place { number, plan: launch.plan.network });
    }
    (known, taken)
}
