//! Named volumes as the server keeps them: records in the store, disks on this host, and the book that says who has which.
//!
//! ```text
//! create: record Pending ─► disk ─► record Ready ─► offered          delete: withdrawn ─► disk condemned ─► no record ─► no disk
//! ```
//!
//! After a kill between any two steps [`recover`] goes on: a record that is Pending gets its disk, a disk that is condemned goes, with its
//! record. A disk without a record that nobody condemned stays where it is, and is told: its record may be what was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_model::causes::with_causes;
use atoll_model::ids::{ObjectName, SandboxUid};
use atoll_model::spec::SandboxSpec;
use atoll_model::units::Bytes;
use atoll_model::volumes::{InUse, VolumeBook};
use atoll_runtime::{RuntimeError, VolumeDisks};
use atoll_wire::rest;
use tokio::sync::watch;

use crate::plan::NamedVolumes;
use crate::store::{Item, ItemKind, NewEvent, Store, StoreError, Write};

/// A volume's phase in its record.
pub(crate) const PENDING: &str = "Pending";
const READY: &str = "Ready";
const LOST: &str = "Lost";

/// Why a volume was not made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See there.
    #[error("{}", with_causes(.0))]
    Disk(#[from] RuntimeError),
    /// Sandboxes have it.
    #[error("volume {name:?} is in use by {}: delete them first", sandboxes(by))]
    InUse {
        /// Which.
        name: String,
        /// Their names.
        by: Vec<String>,
    },
    /// Its creation is under way.
    #[error("volume {name:?} is being made: try again in a moment")]
    Pending {
        /// Which.
        name: String,
    },
    /// This server has none.
    #[error(
        "volumes cannot be had on this node: neither class container nor gvisor can, see 'atoll doctor'"
    )]
    NoDisks,
}

fn sandboxes(names: &[String]) -> String {
    const MOST: usize = 10;
    let shown: Vec<String> =
        names.iter().take(MOST).map(|name| format!("sandbox/{name}")).collect();
    let more = names.len().saturating_sub(MOST);
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// All that the server knows of named volumes beside their records.
pub(crate) struct Volumes {
    disks: Option<Arc<dyn VolumeDisks>>,
    book: Mutex<VolumeBook>,
    /// Counts what came to be had: who waits for a volume looks again.
    offers: watch::Sender<u64>,
}

impl Volumes {
    pub(crate) fn new(disks: Option<Arc<dyn VolumeDisks>>) -> Self {
        Self { disks, book: Mutex::default(), offers: watch::Sender::new(0) }
    }

    fn book(&self) -> MutexGuard<'_, VolumeBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disks(&self) -> Result<&Arc<dyn VolumeDisks>, VolumeError> {
        self.disks.as_ref().ok_or(VolumeError::NoDisks)
    }

    /// Hears of each volume that can be had from now on.
    pub(crate) fn offers(&self) -> watch::Receiver<u64> {
        self.offers.subscribe()
    }

    /// Gives a sandbox its volumes, or the name of one that there is not.
    pub(crate) fn bind(
        &self,
        uid: SandboxUid,
        name: &str,
        spec: &SandboxSpec,
    ) -> Result<NamedVolumes, String> {
        let bound = self.book().bind(uid, name, &spec.named_volumes());
        bound.map_err(ToString::to_string)
    }

    /// What a sandbox of an earlier server has, it keeps.
    pub(crate) fn rebind(&self, uid: SandboxUid, name: &str, spec: &SandboxSpec) {
        self.book().rebind(uid, name, &spec.named_volumes());
    }

    /// Nothing of a sandbox runs any more.
    pub(crate) fn release(&self, uid: SandboxUid) {
        self.book().release(uid);
    }

    /// A volume as it is shown, without what only its disk knows.
    pub(crate) fn shown(&self, volume: &rest::NamedVolume) -> rest::NamedVolume {
        let mut shown = volume.clone();
        if let Ok(name) = volume.id.parse() {
            shown.status.used_by = self.book().users(&name);
        }
        shown
    }

    /// The same with what its disk holds.
    pub(crate) async fn shown_with_usage(&self, volume: &rest::NamedVolume) -> rest::NamedVolume {
        let mut shown = self.shown(volume);
        let Some(disks) = self.disks.as_ref().filter(|_| volume.status.phase == READY) else {
            return shown;
        };
        match disks.usage(&volume.uid, size_of(volume)).await {
            Ok(Some(usage)) => {
                shown.status.backend = Some(usage.backend.name().to_owned());
                shown.status.limit_bytes = Some(usage.limit_bytes);
                shown.status.used_bytes = Some(usage.used_bytes);
            }
            Ok(None) => {}
            Err(error) => {
                shown.status.phase = LOST.to_owned();
                shown.status.last_error = Some(with_causes(&error));
            }
        }
        shown
    }

    fn offer(&self, volume: &rest::NamedVolume) {
        if let Ok(name) = volume.id.parse() {
            self.book().offer(name, volume.uid.clone());
            self.offers.send_modify(|count| *count += 1);
        }
    }

    /// Makes a volume whose record says Pending. Must not be dropped on the way.
    pub(crate) async fn create(
        &self,
        store: &Store,
        volume: rest::NamedVolume,
    ) -> Result<rest::NamedVolume, VolumeError> {
        self.disks()?;
        let created = event(false, "Created", &volume.id, format!("size {}", volume.spec.size));
        let write = Write::CreateItem(Item::Volume(Arc::new(volume.clone())));
        store.commit(write, vec![created]).await?;
        match self.finish(store, volume.clone()).await {
            Ok(made) => Ok(made),
            Err(error) => {
                let message = error.to_string();
                let failed = event(true, "Failed", &volume.id, message);
                if let Err(stays) = store.commit(delete_of(&volume), vec![failed]).await {
                    tracing::error!(volume = volume.id, %stays, "what could not be made is made at the next start");
                }
                Err(error)
            }
        }
    }

    /// From Pending to Ready.
    async fn finish(
        &self,
        store: &Store,
        mut volume: rest::NamedVolume,
    ) -> Result<rest::NamedVolume, VolumeError> {
        let disks = self.disks()?;
        disks.make(&volume.uid, size_of(&volume)).await?;
        volume.status = rest::NamedVolumeStatus {
            phase: READY.to_owned(),
            backend: Some(disks.backend().name().to_owned()),
            ..rest::NamedVolumeStatus::default()
        };
        if let Err(error) = update(store, &volume).await {
            disks.remove(&volume.uid).await?;
            return Err(error.into());
        }
        self.offer(&volume);
        Ok(volume_of(store, &volume.id).unwrap_or(volume))
    }

    /// Removes a volume and all that is in it. Must not be dropped on the way.
    pub(crate) async fn delete(
        &self,
        store: &Store,
        volume: &rest::NamedVolume,
    ) -> Result<(), VolumeError> {
        let disks = self.disks()?;
        if volume.status.phase == PENDING {
            return Err(VolumeError::Pending { name: volume.id.clone() });
        }
        if let Ok(name) = volume.id.parse::<ObjectName>() {
            let withdrawn = self.book().withdraw(&name, &volume.uid);
            withdrawn.map_err(|InUse { by }| VolumeError::InUse { name: volume.id.clone(), by })?;
        }
        if let Err(error) = disks.condemn(&volume.uid).await {
            self.offer(volume);
            return Err(error.into());
        }
        // From here on it goes: nobody is given it any more, and should the store fail now, another try or the next start goes on.
        let deleted = event(false, "Deleted", &volume.id, String::new());
        store.commit(delete_of(volume), vec![deleted]).await?;
        Ok(disks.remove(&volume.uid).await?)
    }

    /// Takes up the volumes of an earlier server.
    pub(crate) async fn recover(&self, store: &Store) {
        let Some(disks) = &self.disks else { return };
        let found = match disks.all().await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(
                    error = with_causes(&error),
                    "volumes on this host cannot be listed; none can be had"
                );
                return;
            }
        };
        let mut condemned: HashMap<String, bool> =
            found.into_iter().map(|it| (it.uid, it.condemned)).collect();
        for volume in volumes(store).0 {
            let on_host = condemned.remove(&volume.uid);
            let name = volume.id.clone();
            if let Err(error) = self.take_up(store, disks, volume, on_host).await {
                tracing::error!(volume = name, %error, "a volume could not be taken up");
            }
        }
        for (uid, condemned) in condemned {
            if !condemned {
                tracing::error!(
                    uid,
                    "files of a volume that no record knows are left as they are, in volumes/{uid} of the data directory"
                );
                continue;
            }
            match disks.remove(&uid).await {
                Ok(()) => {
                    tracing::info!(uid, "removed a volume whose deletion an earlier server began")
                }
                Err(error) => tracing::error!(
                    uid,
                    error = with_causes(&error),
                    "a deleted volume's files stay"
                ),
            }
        }
    }

    async fn take_up(
        &self,
        store: &Store,
        disks: &Arc<dyn VolumeDisks>,
        mut volume: rest::NamedVolume,
        condemned: Option<bool>,
    ) -> Result<(), VolumeError> {
        match condemned {
            Some(true) => {
                let deleted = event(false, "Deleted", &volume.id, String::new());
                store.commit(delete_of(&volume), vec![deleted]).await?;
                disks.remove(&volume.uid).await?;
            }
            _ if volume.status.phase == PENDING => drop(self.finish(store, volume).await?),
            Some(false) => {
                if volume.status.phase != READY {
                    READY.clone_into(&mut volume.status.phase);
                    volume.status.last_error = None;
                    update(store, &volume).await?;
                }
                self.offer(&volume);
            }
            None => {
                let why = format!("volumes/{} is not in the data directory any more", volume.uid);
                tracing::error!(volume = volume.id, why, "a volume's files are lost");
                LOST.clone_into(&mut volume.status.phase);
                volume.status.last_error = Some(why);
                update(store, &volume).await?;
            }
        }
        Ok(())
    }
}

/// All volumes in order of creation.
pub(crate) fn volumes(store: &Store) -> (Vec<rest::NamedVolume>, u64) {
    let (items, version) = store.items(ItemKind::Volume);
    let volumes = items.into_iter().filter_map(|item| match item {
        Item::Volume(volume) => Some((*volume).clone()),
        _ => None,
    });
    (volumes.collect(), version)
}

/// One volume.
pub(crate) fn volume_of(store: &Store, name: &str) -> Option<rest::NamedVolume> {
    match store.item(ItemKind::Volume, name)? {
        Item::Volume(volume) => Some((*volume).clone()),
        _ => None,
    }
}

async fn update(store: &Store, volume: &rest::NamedVolume) -> Result<(), StoreError> {
    let write = Write::UpdateItem(Item::Volume(Arc::new(volume.clone())));
    store.commit(write, Vec::new()).await.map(drop)
}

fn delete_of(volume: &rest::NamedVolume) -> Write {
    let (name, uid) = (volume.id.clone(), volume.uid.clone());
    Write::DeleteItem { kind: ItemKind::Volume, name, uid }
}

fn event(warning: bool, reason: &'static str, name: &str, message: String) -> NewEvent {
    NewEvent { warning, reason, object: format!("volume/{name}"), message }
}

/// The size of a volume that was admitted.
fn size_of(volume: &rest::NamedVolume) -> u64 {
    Bytes::parse(&volume.spec.size).map_or(0, |size| size.0)
}
