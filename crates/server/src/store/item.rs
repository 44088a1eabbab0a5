//! Objects beside sandboxes and events: few, small, without an owner task. All of them are kept, written and read in one way.

use std::sync::Arc;

use atoll_wire::rest;
use serde::{Deserialize, Serialize};

use super::format::Unreadable;

/// Version of an item's form.
const ITEM_FORMAT: u32 = 1;

/// Of which kind an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ItemKind {
    External,
    Creation,
    Volume,
}

impl ItemKind {
    const ALL: [Self; 3] = [Self::External, Self::Creation, Self::Volume];

    /// The word on disk and for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Creation => "creation",
            Self::Volume => "volume",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    External(Arc<rest::External>),
    Creation(Arc<Creation>),
    Volume(Arc<rest::NamedVolume>),
}

/// A creation that may be asked for again: the client gave it a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Creation {
    /// The digest of the key, in hexadecimal digits.
    pub(crate) id: String,
    /// Of the sandbox that was created.
    pub(crate) uid: String,
    /// Its name.
    pub(crate) sandbox: String,
    /// The digest of what was asked for.
    pub(crate) request: String,
    /// RFC 3339.
    pub(crate) created_at: String,
}

impl Item {
    pub(crate) const fn kind(&self) -> ItemKind {
        match self {
            Self::External(_) => ItemKind::External,
            Self::Creation(_) => ItemKind::Creation,
            Self::Volume(_) => ItemKind::Volume,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::External(external) => &external.id,
            Self::Creation(creation) => &creation.id,
            Self::Volume(volume) => &volume.id,
        }
    }

    pub(crate) fn uid(&self) -> &str {
        match self {
            Self::External(external) => &external.uid,
            Self::Creation(creation) => &creation.uid,
            Self::Volume(volume) => &volume.uid,
        }
    }

    pub(crate) fn created_at(&self) -> &str {
        match self {
            Self::External(external) => &external.created_at,
            Self::Creation(creation) => &creation.created_at,
            Self::Volume(volume) => &volume.created_at,
        }
    }

    pub(super) fn number(&mut self, version: u64, now: String) {
        match self {
            Self::External(external) => {
                let external = Arc::make_mut(external);
                (external.resource_version, external.updated_at) = (version, now);
            }
            // Nobody sees it, and it never changes.
            Self::Creation(_) => {}
            Self::Volume(volume) => {
                let volume = Arc::make_mut(volume);
                (volume.resource_version, volume.updated_at) = (version, now);
            }
        }
    }
}

#[derive(Serialize)]
struct Stored<'a, T> {
    format: u32,
    item: &'a T,
}

#[derive(Deserialize)]
struct Envelope {
    format: u32,
    item: serde_json::Value,
}

/// Writes an item.
pub(super) fn encode(item: &Item) -> Result<Vec<u8>, String> {
    let written = match item {
        Item::External(external) => {
            serde_json::to_vec(&Stored { format: ITEM_FORMAT, item: &**external })
        }
        Item::Creation(creation) => {
            serde_json::to_vec(&Stored { format: ITEM_FORMAT, item: &**creation })
        }
        Item::Volume(volume) => {
            serde_json::to_vec(&Stored { format: ITEM_FORMAT, item: &**volume })
        }
    };
    written.map_err(|error| error.to_string())
}

/// Reads an item of the kind of that name. What is wrong is told without any of its content.
pub(super) fn decode(kind: &str, uid: &str, body: &[u8]) -> Result<Item, Unreadable> {
    let bad = |error: &serde_json::Error| Unreadable::Bad(format!("{:?}", error.classify()));
    let kind = ItemKind::from_name(kind)
        .ok_or_else(|| Unreadable::Bad(format!("the kind {kind:?} is not known")))?;
    let envelope: Envelope = serde_json::from_slice(body).map_err(|error| bad(&error))?;
    if envelope.format > ITEM_FORMAT {
        return Err(Unreadable::Newer { found: envelope.format, known: ITEM_FORMAT });
    }
    let item = match kind {
        ItemKind::External => {
            serde_json::from_value(envelope.item).map(|it| Item::External(Arc::new(it)))
        }
        ItemKind::Creation => {
            serde_json::from_value(envelope.item).map(|it| Item::Creation(Arc::new(it)))
        }
        ItemKind::Volume => {
            serde_json::from_value(envelope.item).map(|it| Item::Volume(Arc::new(it)))
        }
    };
    let item = item.map_err(|error| bad(&error))?;
    if item.uid() != uid || uid.parse::<atoll_model::ids::SandboxUid>().is_err() {
        return Err(Unreadable::Bad("names another uid".to_owned()));
    }
    if let Err(error) = item.name().parse::<atoll_model::ids::ObjectName>() {
        return Err(Unreadable::Bad(format!("its id {error}")));
    }
    Ok(item)
}
