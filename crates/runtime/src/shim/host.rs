//! What both classes with shims share on a host: data directory, programs, spawners, pools, host ids, control groups.
//!
//! One for each data directory and process. Owns their start and their end; what becomes of a sandbox is in `launch`, `adopt` and `destroy`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use atoll_network::{Network, Subnet};
use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use atoll_wire::shim::{Engine, GvisorPlacement, PortPlan};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use crate::container_host;
use crate::disk::{self, DiskChoice};
use crate::{HoldError, RuntimeError, SandboxNetwork};
use atoll_model::causes::with_causes;

use super::blocking;
use super::directory::{Found, Layout, io_error};
use super::id_ranges::IdRanges;
use super::launches::Launches;
use super::pools::{PoolSizes, Pools};
use super::programs::Programs;
use super::slots::{Keeper, Slots};
use super::spawners::Spawners;
use super::volumes::Mounting;

/// What a host is to be begun with.
#[derive(Debug, Clone)]
pub struct ShimHostConfig {
    /// The instance's data directory; made where it is missing.
    pub data_dir: PathBuf,
    /// The guest program (`atoll_programs::GUEST`).
    pub guest_program: &'static [u8],
    /// The program of spawner and shim (`atoll_programs::SHIM`).
    pub shim_program: &'static [u8],
    /// How many spawners; `None`: one for each core.
    pub spawners: Option<usize>,
    /// What is kept ready.
    pub pools: PoolSizes,
    /// Sandboxes may have a network; `None`: each has loopback only.
    pub network: Option<NetworkConfig>,
    /// A program whose `main` calls `atoll_keeper::program_main`: begun where there is a network.
    pub keeper_program: PathBuf,
    /// What bounds the disks of new sandboxes. Those from before keep theirs.
    pub disks: DiskChoice,
}

/// How the instance's network is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkConfig {
    /// Chosen by the operator; `None`: derived from the instance, the first that is free.
    pub subnet: Option<Subnet>,
}

/// The part of a host that classes `container` and `gvisor` share.
pub struct ShimHost {
    pub(super) layout: Layout,
    pub(super) instance: String,
    pub(super) programs: Programs,
    pub(super) spawners: Spawners,
    pub(super) pools: Pools,
    /// `None`: files cannot be id-mapped here.
    pub(super) ids: Option<IdRanges>,
    pub(super) cgroups: CgroupRoot,
    pub(super) launches: Launches,
    pub(super) mounting: Mounting,
    pub(super) slots: Arc<Slots>,
}

#[async_trait]
impl SandboxNetwork for ShimHost {
    async fn hold(&self, uid: &str, ports: &[PortPlan]) -> Result<(), HoldError> {
        let (slots, uid, ports) = (Arc::clone(&self.slots), uid.to_owned(), ports.to_vec());
        let held = tokio::task::spawn_blocking(move || slots.hold(&uid, &ports)).await;
        held.unwrap_or_else(|error| Err(HoldError::Failed(error.to_string())))
    }

    async fn retain(&self) {
        let slots = Arc::clone(&self.slots);
        if let Err(error) = tokio::task::spawn_blocking(move || slots.retain()).await {
            tracing::error!(%error, "ports that nobody has may stay held");
        }
    }

    async fn publish(&self, uid: &str, is_open: bool) -> Result<(), RuntimeError> {
        let (slots, uid) = (Arc::clone(&self.slots), uid.to_owned());
        blocking(move || slots.publish(&uid, is_open)).await
    }

    async fn connect(&self, uid: &str, port: u16) -> Result<TcpStream, RuntimeError> {
        self.slots.connect(uid, port).await
    }

    async fn let_go(&self, uid: &str) -> Result<(), RuntimeError> {
        let (slots, uid) = (Arc::clone(&self.slots), uid.to_owned());
        blocking(move || slots.release(&uid)).await
    }
}

/// The name of a data directory's instance, unique on a host: what belongs to it carries this name.
#[must_use]
pub fn instance_name(data_dir: &Path) -> String {
    const BYTES: usize = 6;
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    digest.iter().take(BYTES).map(|byte| format!("{byte:02x}")).collect()
}

impl ShimHost {
    /// Begins on this host: writes the programs, starts spawners and pools, reads which host ids are in use. Needs no tokio runtime, and
    /// is best called before there is one. The caller holds the data directory's lock.
    ///
    /// # Errors
    /// [`RuntimeError::Host`] says what the host lacks; [`RuntimeError::Io`].
    pub fn open(config: ShimHostConfig) -> Result<Arc<Self>, RuntimeError> {
        let given = &config.data_dir;
        std::fs::create_dir_all(given).map_err(io_error("create", given))?;
        let data_dir = given.canonicalize().map_err(io_error("resolve", given))?;
        let instance = instance_name(&data_dir);
        let layout = Layout { data_dir };
        layout.prepare()?;
        let no_cgroups = |error| RuntimeError::Host { message: with_causes(&error) };
        let groups = CgroupLayout::detect().map_err(no_cgroups)?;
        let cgroups = CgroupRoot::open(&groups, &instance).map_err(no_cgroups)?;
        let programs =
            Programs::install(&layout.data_dir, config.guest_program, config.shim_program)?;
        let ids = match container_host::id_mapping(&layout.data_dir) {
            Ok(()) => Some(id_ranges(&instance)),
            Err(why) => {
                tracing::warn!(why, "sandboxes of class container have no user namespace");
                None
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spawners = Spawners::start(
            &programs.shim(),
            config.spawners.unwrap_or(cores),
            &layout.spawner_log(),
        )?;
        disk::sweep(&layout.data_dir);
        let pools = Pools::start(&layout, config.pools, maker(&layout, &instance, config.disks)?)?;
        let launches = Launches::default();
        let keeper = Keeper { program: config.keeper_program, groups: cgroups.clone() };
        let slots = match config.network {
            Some(network) => Slots::open(&layout, &instance, network.subnet, &keeper),
            None => Slots::not_offered(&layout, &instance, &keeper),
        };
        let slots = Arc::new(slots);
        let host = Self {
            layout,
            instance,
            programs,
            spawners,
            pools,
            ids,
            cgroups,
            launches,
            mounting: Mounting::default(),
            slots,
        };
        host.read_launches()?;
        Ok(Arc::new(host))
    }

    /// Learns from the sandboxes of an earlier server which ids and programs are in use.
    fn read_launches(&self) -> Result<(), RuntimeError> {
        let mut guests = BTreeSet::new();
        for uid in self.layout.uids()? {
            if let Found::Whole(launch) = self.layout.sandbox(&uid).launch() {
                if let (Some(ids), Some(first)) = (&self.ids, launch.placement.first_host_id) {
                    ids.restore(&uid, first);
                }
                guests.insert(launch.placement.guest_binary);
            }
        }
        self.programs.remove_unused(&guests);
        Ok(())
    }

    /// The instance's name: of its control group, and of all else outside the data directory.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The data directory, resolved.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.layout.data_dir
    }

    /// The pids of the spawners that live.
    #[must_use]
    pub fn spawner_pids(&self) -> Vec<i32> {
        self.spawners.pids()
    }

    /// Whether a server of this data directory has left a network on this machine.
    #[must_use]
    pub fn has_network(data_dir: &Path) -> bool {
        Slots::are_in(data_dir)
    }

    /// The network for sandboxes, or why there is none.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn network(&self) -> Result<&Network, String> {
        self.slots.network()
    }

    /// What the engine's sandboxes of this directory say about themselves.
    pub(super) fn engine_of(&self, uid: &str) -> Option<(Engine, Option<GvisorPlacement>)> {
        match self.layout.sandbox(uid).launch() {
            Found::Whole(launch) => Some((launch.placement.engine, launch.placement.gvisor)),
            _ => None,
        }
    }

    /// Ends pools and spawners, and removes the instance's control group when nothing runs in it. Blocks.
    pub(super) fn stop(&self) {
        self.spawners.stop();
        self.pools.stop();
        let empty = self.cgroups.list().is_ok_and(|uids| uids.is_empty());
        self.slots.stop(empty);
        if empty && let Err(error) = self.cgroups.remove() {
            tracing::warn!(error = with_causes(&error), "the instance's control group stays");
        }
    }
}

fn maker(
    layout: &Layout,
    instance: &str,
    choice: DiskChoice,
) -> Result<Box<dyn disk::Maker>, RuntimeError> {
    let chosen = disk::choose(&layout.data_dir, choice).map_err(|why| RuntimeError::Host {
        message: format!("sandboxes' disks cannot be bounded: {why}"),
    })?;
    tracing::info!(backend = chosen.backend.name(), detail = chosen.detail, "disks");
    disk::maker(&chosen, &layout.data_dir, layout.templates(), seed(instance))
}

/// Spreads instances of one host over what they number.
fn seed(instance: &str) -> u32 {
    u32::from_str_radix(instance.get(..8).unwrap_or_default(), 16).unwrap_or(0)
}

fn id_ranges(instance: &str) -> IdRanges {
    let mut subordinate = String::new();
    for path in ["/etc/subuid", "/etc/subgid"] {
        // A host without the file has given nothing away.
        subordinate += &std::fs::read_to_string(path).unwrap_or_default();
        subordinate.push('\n');
    }
    IdRanges::new(&subordinate, seed(instance))
}
