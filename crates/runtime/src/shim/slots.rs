//! Which sandbox has which slot of the instance's network, who may visit it, and a few slots made ahead.
//!
//! Owns the network of the instance while a server runs. A slot is a sandbox's from before its first instruction until nothing of it
//! runs; who has it is in the sandbox's `launch.json`, and whether visitors are let in is its file `published`: the next server learns
//! both from there. What user space must hold of it (ports, names) is the keeper's.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use atoll_keeper::{KeeperError, Member, Names, Port, ResolverPlace, StartOptions};
use atoll_model::causes::with_causes;
use atoll_network::{
    Grant, KnownSlot, Network, OpenOptions, Policy, Protocol, PublishedPort, Reach, Slot,
    SlotNumber, Subnet,
};
use atoll_sys::cgroup::CgroupRoot;
use atoll_sys::network_namespace::PreparedNetwork;
use atoll_wire::shim::{
    GrantPlan, NetworkPlacement, NetworkPlan, PortPlan, PortProtocol, SandboxPlan,
};

use crate::{HoldError, RuntimeError};

use super::directory::{Found, Layout};
use super::keeping::{Keeping, port_of};
use super::ring_io::RingIo;

/// Why sandboxes have loopback only.
const NOT_OFFERED: &str = "the server was started with --network=off";
/// SOURCE: RFC 1035, 4.2.
const NAMES_PORT: u16 = 53;
/// Slots that are kept ready (guess: most sandboxes of a burst have no network).
const READY: usize = 4;

/// How the instance's keeper is begun.
pub(super) struct Keeper {
    /// A program whose `main` calls `atoll_keeper::program_main`.
    pub(super) program: std::path::PathBuf,
    /// The instance's groups: it gets one of its own.
    pub(super) groups: CgroupRoot,
}

/// The instance's network, or why there is none.
pub(super) struct Slots {
    shared: Result<Arc<Shared>, String>,
    /// New sandboxes may have it.
    offered: bool,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    layout: Layout,
    network: Network,
    keeping: Keeping,
    io: RingIo,
    stock: Mutex<Stock>,
    /// Who publishes or releases does so alone: what was released meanwhile must not be told to the keeper again.
    turn: Mutex<()>,
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
#[derive(Debug, Clone)]
struct Place {
    number: SlotNumber,
    plan: NetworkPlan,
    grants: Vec<GrantPlan>,
    ports: Vec<PortPlan>,
    /// Visitors are let in.
    is_open: bool,
}

impl Place {
    fn published(&self) -> Vec<PublishedPort> {
        let ports = if self.is_open { &self.ports[..] } else { &[] };
        let published = |port: &PortPlan| PublishedPort {
            protocol: protocol_of(port.protocol),
            host_port: port.host_port,
            slot_port: port.container_port,
        };
        ports.iter().map(published).collect()
    }

    fn policy(&self) -> Policy {
        let reach = match self.plan {
            NetworkPlan::World => Reach::World,
            NetworkPlan::Isolated | NetworkPlan::Loopback => Reach::Isolated,
        };
        let grant = |it: &GrantPlan| Grant {
            addresses: it.addresses.clone(),
            protocol: protocol_of(it.protocol),
            ports: it.ports.clone(),
        };
        Policy { reach, grants: self.grants.iter().map(grant).collect() }
    }

    /// What is wanted of the keeper for it.
    fn describe(&self, subnet: &Subnet, member: &mut Member) {
        let addresses = subnet.slot(self.number);
        member.addresses =
            Some(atoll_keeper::Addresses { ipv4: addresses.ipv4, ipv6: addresses.ipv6 });
        member.names = match self.plan {
            NetworkPlan::World => Names::Forward {
                granted: self.grants.iter().map(|grant| grant.addresses.clone()).collect(),
            },
            NetworkPlan::Isolated | NetworkPlan::Loopback => Names::Refuse,
        };
        member.ports =
            self.ports.iter().map(|port| Port { open: self.is_open, ..port_of(port) }).collect();
    }
}

impl Shared {
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

    /// Whether a server of this data directory has left a network.
    pub(super) fn are_in(data_dir: &Path) -> bool {
        Network::is_in(&network_directory(data_dir))
    }

    /// For a server that offers no network: one that an earlier server left is taken over all the same, so that what still runs in it keeps
    /// it, and so that it is taken down in the end.
    pub(super) fn not_offered(layout: &Layout, instance: &str, keeper: &Keeper) -> Self {
        if Self::are_in(&layout.data_dir) {
            return Self { offered: false, ..Self::open(layout, instance, None, keeper) };
        }
        Self::none(NOT_OFFERED)
    }

    /// Opens the network and finds the slots of sandboxes that an earlier server began. A host that cannot have one is no error.
    pub(super) fn open(
        layout: &Layout,
        instance: &str,
        subnet: Option<Subnet>,
        keeper: &Keeper,
    ) -> Self {
        match Self::begin(layout, instance, subnet, keeper) {
            Ok(slots) => slots,
            Err(why) => Self::none(why),
        }
    }

    fn begin(
        layout: &Layout,
        instance: &str,
        subnet: Option<Subnet>,
        keeper: &Keeper,
    ) -> Result<Self, String> {
        let taken = known_places(layout);
        let known: Vec<KnownSlot> = taken.values().map(known_slot).collect();
        let directory = network_directory(&layout.data_dir);
        let options = OpenOptions { directory, instance: instance.to_owned(), subnet };
        let (network, lost) =
            Network::open(&options, &known).map_err(|error| with_causes(&error))?;
        for slot in lost {
            tracing::error!(slot = slot.0, "a running sandbox has lost its network");
        }
        let keeping =
            begin_keeping(layout, &network, keeper, &taken).map_err(|error| with_causes(&error))?;
        let io = RingIo::start(&network)?;
        let stock = Mutex::new(Stock { taken, ..Stock::default() });
        let layout = layout.clone();
        let wanted = Condvar::new();
        let turn = Mutex::new(());
        let shared = Arc::new(Shared { layout, network, keeping, io, stock, turn, wanted });
        let keeping = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("pool-slots".into())
            .spawn(move || keeping.keep())
            .map_err(|error| tracing::warn!(%error, "no network slots are prepared ahead"));
        Ok(Self { shared: Ok(shared), offered: true, keeper: Mutex::new(keeper.ok()) })
    }

    /// The network, or why there is none.
    pub(super) fn network(&self) -> Result<&Network, String> {
        match &self.shared {
            Ok(shared) if self.offered => Ok(&shared.network),
            Ok(_) => Err(NOT_OFFERED.to_owned()),
            Err(why) => Err(why.clone()),
        }
    }

    /// A slot for a sandbox, open to what the plan says and to nothing else; its published ports are closed. Blocks for a millisecond or two.
    pub(super) fn take(&self, plan: &SandboxPlan) -> Result<Taken, RuntimeError> {
        let failed = |message: String| RuntimeError::Host { message };
        let shared = self.shared.as_ref().map_err(|why| failed(why.clone()))?;
        let ready = shared.stock().ready.pop();
        shared.wanted.notify_all();
        let slot = match ready {
            Some(slot) => slot,
            None => shared.network.prepare_slot().map_err(|error| failed(with_causes(&error)))?,
        };
        let uid = &plan.uid;
        let place = Place {
            number: slot.number,
            plan: plan.network,
            grants: plan.grants.clone(),
            ports: plan.ports.clone(),
            is_open: false,
        };
        shared.stock().taken.insert(uid.clone(), place.clone());
        let opened = shared.tell_keeper(uid, &place).and_then(|()| {
            let admitted = shared.network.admit(slot.number, &place.policy());
            admitted.map_err(|error| with_causes(&error))
        });
        if let Err(why) = opened {
            self.release(uid)?;
            return Err(failed(why));
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

    /// Lets visitors of a sandbox's published ports in, or no new ones from now on. The same again changes nothing.
    pub(super) fn publish(&self, uid: &str, is_open: bool) -> Result<(), RuntimeError> {
        let shared = self.shared()?;
        let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut place) = shared.stock().taken.get(uid).cloned() else {
            return if is_open { Err(host_error("it has no slot".to_owned())) } else { Ok(()) };
        };
        place.is_open = is_open;
        let mark = shared.layout.sandbox(uid).published();
        if is_open && let Err(error) = std::fs::File::create(&mark) {
            // It then stays closed for a moment after a restart of the server.
            tracing::warn!(uid, %error, "it could not be noted that a sandbox's ports are open");
        }
        // To the world last, and from it first.
        let told = if is_open {
            shared.tell_keeper(uid, &place).and_then(|()| shared.let_in(&place))
        } else {
            let shut = shared.let_in(&place);
            shared.tell_keeper(uid, &place).and(shut)
        };
        if is_open && told.is_err() {
            // All the way or not at all: it may have been open before this server, with a port that is another program's by now.
            place.is_open = false;
            if let Err(why) = shared.let_in(&place) {
                tracing::error!(uid, why, "a sandbox's ports stay open");
            }
        } else if !is_open {
            told.clone().map_err(host_error)?;
        }
        if let Some(known) = shared.stock().taken.get_mut(uid) {
            known.is_open = place.is_open;
        }
        if !place.is_open {
            // Gone with its directory at the latest.
            let _ = std::fs::remove_file(mark);
        }
        told.map_err(host_error)
    }

    /// Holds ports of this host for a sandbox that is to come: all of them or none.
    pub(super) fn hold(&self, uid: &str, ports: &[PortPlan]) -> Result<(), HoldError> {
        let shared = self.shared.as_ref().map_err(|why| HoldError::Failed(why.clone()))?;
        let ports: Vec<Port> = ports.iter().map(port_of).collect();
        match shared.keeping.hold(uid, &ports) {
            Ok(()) => Ok(()),
            Err(KeeperError::Taken { hold, by }) => {
                Err(HoldError::Taken { host_port: hold.host_port, by_sandbox: by.is_some() })
            }
            Err(error) => Err(HoldError::Failed(with_causes(&error))),
        }
    }

    /// Lets go of the ports of those who have neither a slot nor were held for since this server began.
    pub(super) fn retain(&self) {
        let Ok(shared) = &self.shared else { return };
        if let Err(error) = shared.keeping.retain() {
            tracing::warn!(
                error = with_causes(&error),
                "ports of sandboxes that are gone stay held"
            );
        }
    }

    /// A connection to a port of a sandbox.
    pub(super) async fn connect(
        &self,
        uid: &str,
        port: u16,
    ) -> Result<tokio::net::TcpStream, RuntimeError> {
        let shared = self.shared()?;
        let number = shared.stock().taken.get(uid).map(|place| place.number);
        let number = number.ok_or_else(|| host_error("it has no slot".to_owned()))?;
        let addresses = shared.network.subnet().slot(number).both();
        let connected = shared.io.connect(addresses, port).await;
        connected.map_err(|error| host_error(format!("port {port}: {error}")))
    }

    fn shared(&self) -> Result<&Arc<Shared>, RuntimeError> {
        self.shared.as_ref().map_err(|why| host_error(why.clone()))
    }

    /// A sandbox has ended, or will never begin: its slot and its ports are somebody else's afterwards. One without is fine. Blocks for a
    /// few milliseconds.
    pub(super) fn release(&self, uid: &str) -> Result<(), RuntimeError> {
        let Ok(shared) = &self.shared else { return Ok(()) };
        let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let place = shared.stock().taken.get(uid).cloned();
        if let Some(place) = place {
            shared.network.release(place.number).map_err(|error| {
                unreachable(uid, format!("its network slot stays: {}", with_causes(&error)))
            })?;
        }
        // Its ports are held until nothing leads from them any more.
        shared.keeping.remove(uid).map_err(|error| unreachable(uid, with_causes(&error)))?;
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
        shared.io.stop();
        shared.keeping.stop(everything);
        if everything && let Err(error) = shared.network.remove() {
            tracing::warn!(error = with_causes(&error), "the instance's network stays");
        }
    }
}

const fn protocol_of(protocol: PortProtocol) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
    }
}

/// Where the network keeps its mount and its record.
fn network_directory(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("network")
}

impl Shared {
    fn tell_keeper(&self, uid: &str, place: &Place) -> Result<(), String> {
        let subnet = self.network.subnet();
        let told = self.keeping.change(uid, |member| place.describe(&subnet, member));
        told.map_err(|error| with_causes(&error))
    }

    fn let_in(&self, place: &Place) -> Result<(), String> {
        let published = self.network.publish(place.number, &place.published());
        published.map_err(|error| with_causes(&error))
    }
}

fn host_error(message: String) -> RuntimeError {
    RuntimeError::Host { message }
}

fn unreachable(uid: &str, message: String) -> RuntimeError {
    RuntimeError::Unreachable { uid: uid.to_owned(), message }
}

fn begin_keeping(
    layout: &Layout,
    network: &Network,
    keeper: &Keeper,
    taken: &HashMap<String, Place>,
) -> Result<Keeping, KeeperError> {
    let subnet = network.subnet();
    let gateway = subnet.gateway();
    let resolver = ResolverPlace {
        ring: network_directory(&layout.data_dir).join("ring"),
        gateway: atoll_keeper::Addresses { ipv4: gateway.ipv4, ipv6: gateway.ipv6 },
        port: NAMES_PORT,
        servers: Vec::new(),
    };
    let member = |(uid, place): (&String, &Place)| {
        let mut member =
            Member { uid: uid.clone(), addresses: None, names: Names::Refuse, ports: Vec::new() };
        place.describe(&subnet, &mut member);
        member
    };
    let members = taken.iter().map(member).collect();
    let options = StartOptions::new(&keeper.program, &layout.data_dir);
    Keeping::start(options, resolver, keeper.groups.clone(), members)
}

/// The places of sandboxes that have not ended, by their directories.
fn known_places(layout: &Layout) -> HashMap<String, Place> {
    let mut taken = HashMap::new();
    for uid in layout.uids().unwrap_or_default() {
        let directory = layout.sandbox(&uid);
        let Found::Whole(launch) = directory.launch() else { continue };
        let Some(placement) = launch.placement.network else { continue };
        if matches!(directory.end(), Found::Whole(_)) {
            continue;
        }
        let number = SlotNumber(placement.slot);
        let is_open = directory.published().exists();
        let (plan, grants, ports) = (launch.plan.network, launch.plan.grants, launch.plan.ports);
        taken.insert(uid, Place { number, plan, grants, ports, is_open });
    }
    taken
}

fn known_slot(place: &Place) -> KnownSlot {
    KnownSlot { number: place.number, policy: Some(place.policy()), published: place.published() }
}
