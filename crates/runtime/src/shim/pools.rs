//! What does not depend on a request is made before it: network namespaces, and disks of the sizes that are asked for.
//!
//! Owns the stock and the two threads that refill it. What is taken belongs to the taker; what is still here when the server ends is gone
//! with its descriptors, but for what lies in the pool's directory, which the next start removes. An empty stock costs time, never a request.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_sys::network_namespace::{self, PreparedNetwork};

use crate::RuntimeError;
use crate::disk::{self, Maker};
use atoll_model::causes::with_causes;
use atoll_wire::shim::DiskBackend;

use super::directory::{Layout, io_error};

/// How many of each are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSizes {
    /// Network namespaces.
    pub networks: usize,
    /// Disks of each of the [`DISK_SIZES`] sizes asked for last.
    pub disks: usize,
}

impl Default for PoolSizes {
    /// Guess: a burst as large as the server's default of launches at a time.
    fn default() -> Self {
        Self { networks: 16, disks: 16 }
    }
}

/// How many sizes of disks are kept ready.
pub const DISK_SIZES: usize = 4;
/// After a failure the next try waits this long; takers try for themselves meanwhile and tell their user why it fails.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A disk that nobody uses yet. Dropped, it goes.
#[derive(Debug)]
pub(super) struct PreparedDisk {
    /// It, mounted nowhere.
    pub(super) mount: OwnedFd,
    path: Option<PathBuf>,
}

impl PreparedDisk {
    /// Puts it where the sandbox's owner finds it.
    pub(super) fn place(&mut self, to: &Path) -> Result<(), RuntimeError> {
        if let Some(path) = self.path.take() {
            fs::rename(&path, to).map_err(io_error("move a disk to", to))?;
        }
        Ok(())
    }
}

impl Drop for PreparedDisk {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = disk::remove(path)
        {
            tracing::warn!(%error, "a disk that nobody used stays until the next start");
        }
    }
}

/// The stock.
pub(super) struct Pools {
    shared: Arc<Shared>,
    keepers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Shared {
    layout: Layout,
    maker: Box<dyn Maker>,
    sizes: PoolSizes,
    stock: Mutex<Stock>,
    /// Something was taken, or it is over.
    wanted: Condvar,
}

#[derive(Default)]
struct Stock {
    networks: VecDeque<PreparedNetwork>,
    /// By size, the size asked for last in front.
    disks: Vec<(u64, VecDeque<PreparedDisk>)>,
    made: u64,
    stopping: bool,
}

impl Shared {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_number(&self) -> u64 {
        let mut stock = self.stock();
        stock.made += 1;
        stock.made
    }

    fn make_disk(&self, size_bytes: u64) -> Result<PreparedDisk, RuntimeError> {
        let number = self.next_number();
        let (place, name) = (self.layout.pool_part(number), format!("disk-{number}"));
        let made = self.maker.make(&place, &name, size_bytes)?;
        Ok(PreparedDisk { mount: made.mount, path: Some(made.path) })
    }

    /// Waits for work; `None`: it is over.
    fn wait<T>(&self, mut find: impl FnMut(&Stock) -> Option<T>) -> Option<T> {
        let mut stock = self.stock();
        loop {
            if stock.stopping {
                return None;
            }
            if let Some(work) = find(&stock) {
                return Some(work);
            }
            stock = self.wanted.wait(stock).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pause(&self) {
        let stock = self.stock();
        drop(self.wanted.wait_timeout_while(stock, PAUSE_AFTER_FAILURE, |stock| !stock.stopping));
    }

    fn keep_networks(&self) {
        while self.wait(|it| (it.networks.len() < self.sizes.networks).then_some(())).is_some() {
            match network_namespace::prepare() {
                Ok(network) => self.stock().networks.push_back(network),
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "no network namespace was prepared"
                    );
                    self.pause();
                }
            }
        }
    }

    fn keep_disks(&self) {
        let short = |stock: &Stock| {
            let mut sizes = stock.disks.iter();
            sizes.find(|(_, ready)| ready.len() < self.sizes.disks).map(|(size, _)| *size)
        };
        while let Some(size) = self.wait(short) {
            match self.make_disk(size) {
                Ok(disk) => {
                    let mut stock = self.stock();
                    if let Some((_, ready)) = stock.disks.iter_mut().find(|(it, _)| *it == size) {
                        ready.push_back(disk);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, size, "no disk was prepared");
                    // Not asked for again until somebody wants it.
                    self.stock().disks.retain(|(it, _)| *it != size);
                    self.pause();
                }
            }
        }
    }
}

impl Pools {
    /// Begins to fill the stock.
    pub(super) fn start(
        layout: &Layout,
        sizes: PoolSizes,
        maker: Box<dyn Maker>,
    ) -> Result<Self, RuntimeError> {
        let shared = Arc::new(Shared {
            layout: layout.clone(),
            maker,
            sizes,
            stock: Mutex::default(),
            wanted: Condvar::new(),
        });
        let keep = |name: &str, keep: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || keep(&shared))
                .map_err(io_error("start a thread for", &layout.pool()))
        };
        let networks = keep("pool-networks", Shared::keep_networks)?;
        let keepers = vec![networks, keep("pool-disks", Shared::keep_disks)?];
        Ok(Self { shared, keepers: Mutex::new(keepers) })
    }

    /// Makes a disk for a volume.
    pub(super) fn lasting_disk(
        &self,
        uid: &str,
        size_bytes: u64,
    ) -> Result<PreparedDisk, RuntimeError> {
        let place = self.shared.layout.pool_part(self.shared.next_number());
        let made = self.shared.maker.make_lasting(&place, &format!("volume-{uid}"), size_bytes)?;
        Ok(PreparedDisk { mount: made.mount, path: Some(made.path) })
    }

    /// Keeps disks of this size ready from now on.
    pub(super) fn want_disk(&self, size_bytes: u64) {
        let mut stock = self.shared.stock();
        let known = stock.disks.iter().position(|(size, _)| *size == size_bytes);
        let entry = match known {
            Some(0) => return,
            Some(at) => stock.disks.remove(at),
            None => (size_bytes, VecDeque::new()),
        };
        stock.disks.insert(0, entry);
        let kept = DISK_SIZES.min(stock.disks.len());
        let forgotten = stock.disks.split_off(kept);
        drop(stock);
        self.shared.wanted.notify_all();
        drop(forgotten);
    }

    /// A network namespace: from the stock, else made now.
    pub(super) async fn network(&self) -> Result<PreparedNetwork, RuntimeError> {
        let ready = self.shared.stock().networks.pop_front();
        self.shared.wanted.notify_all();
        if let Some(network) = ready {
            return Ok(network);
        }
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own: it stays in the namespace it makes.
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || drop(sender.send(network_namespace::prepare())))
            .map_err(|error| RuntimeError::Host {
                message: format!("cannot start a thread: {error}"),
            })?;
        match receiver.await {
            Ok(Ok(network)) => Ok(network),
            Ok(Err(error)) => Err(RuntimeError::Host { message: with_causes(&error) }),
            Err(_) => {
                Err(RuntimeError::Host { message: "making a network namespace broke off".into() })
            }
        }
    }

    /// A disk of this size: from the stock, else made now.
    pub(super) async fn disk(&self, size_bytes: u64) -> Result<PreparedDisk, RuntimeError> {
        self.want_disk(size_bytes);
        let ready = {
            let mut stock = self.shared.stock();
            let mut of_size = stock.disks.iter_mut().filter(|(size, _)| *size == size_bytes);
            of_size.next().and_then(|(_, ready)| ready.pop_front())
        };
        self.shared.wanted.notify_all();
        if let Some(disk) = ready {
            return Ok(disk);
        }
        let shared = Arc::clone(&self.shared);
        super::blocking(move || shared.make_disk(size_bytes)).await
    }

    /// What its disks are.
    pub(super) fn disk_backend(&self) -> DiskBackend {
        self.shared.maker.backend()
    }

    /// Ends the threads and drops the stock. Blocks for as long as one preparation takes.
    pub(super) fn stop(&self) {
        self.begin_stop();
        for keeper in self.keepers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if keeper.join().is_err() {
                tracing::error!("a thread that refills a pool has panicked");
            }
        }
        let left = std::mem::take(&mut *self.shared.stock());
        self.shared.stock().stopping = true;
        drop(left);
    }

    fn begin_stop(&self) {
        self.shared.stock().stopping = true;
        self.shared.wanted.notify_all();
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        // Without waiting: the threads end by themselves, and with them the stock.
        self.begin_stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_made_again_and_nothing_stays() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: pools::what_is_taken_is_made_again: needs root");
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let layout = Layout { data_dir: data.path().to_owned() };
        layout.prepare().unwrap();
        let chosen = disk::choose(data.path(), disk::DiskChoice::Auto).unwrap();
        let maker = disk::maker(&chosen, data.path(), layout.templates(), 1).unwrap();
        let pools = Pools::start(&layout, PoolSizes { networks: 2, disks: 1 }, maker).unwrap();
        let first = pools.network().await.unwrap();
        let second = pools.network().await.unwrap();
        let inode =
            |network: &PreparedNetwork| rustix::fs::fstat(&network.namespace).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        let mut disk = pools.disk(8 << 20).await.unwrap();
        let to = data.path().join("taken.ext4");
        disk.place(&to).unwrap();
        drop(pools.disk(8 << 20).await.unwrap());
        let small = pools.disk(1 << 20).await.unwrap_err();
        assert!(small.to_string().contains("too small"), "{small}");
        pools.stop();
        drop(disk);
        for part in fs::read_dir(layout.pool()).unwrap() {
            let part = part.unwrap().path();
            assert_eq!(fs::read_dir(&part).unwrap().count(), 0, "no file stays in {part:?}");
        }
        assert!(to.exists(), "what was taken is the taker's");
        let mine = |(_, file): &(PathBuf, PathBuf)| file.starts_with(data.path());
        let attached = atoll_sys::loop_device::attached().unwrap();
        assert_eq!(attached.iter().filter(|it| mine(it)).count(), 0, "no loop device stays");
    }
}
