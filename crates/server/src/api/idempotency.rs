//! Creations that may be sent again: the header `Idempotency-Key`. What was created for a key is written together with the sandbox, so a
//! client that lost the answer, or a server that was killed before it gave one, never makes two.
//!
//! Keys and requests are kept as digests: neither is anybody's to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_wire::rest::Sandbox;
use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::App;
use super::error::ApiError;
use crate::store::{Creation, Item, ItemKind, Write};
use crate::time;

/// The header. SOURCE: draft-ietf-httpapi-idempotency-key-header.
const HEADER: &str = "idempotency-key";
/// Longest key.
const MAX_KEY_BYTES: usize = 255;
/// How long a key is kept. Guess: clients give up sooner.
const KEPT: Duration = Duration::from_secs(86_400);
/// How long a creation waits for its turn: each is a write to the store and no more.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// Keys that are kept, besides those of [`FORGET_EVERY`] creations. Guess: two megabytes of memory.
const MAX_KEPT: usize = 10_000;
/// Creations with a key after which old ones are forgotten.
const FORGET_EVERY: u64 = 64;

/// Creations with a key: those with the same one come in turn.
#[derive(Default)]
pub(super) struct Keys {
    /// By the last digit of the key: two keys seldom share one, and then only wait for each other.
    turns: [Arc<Mutex<()>>; 16],
    created: AtomicU64,
}

impl Keys {
    /// Waits until no other creation with this key is under way.
    pub(super) async fn in_turn(&self, once: Once) -> Result<InTurn, ApiError> {
        let digit = once.key.chars().last().and_then(|digit| digit.to_digit(16)).unwrap_or(0);
        let turn = Arc::clone(&self.turns[digit as usize % self.turns.len()]);
        let turn = tokio::time::timeout(TURN_WITHIN, turn.lock_owned()).await;
        let busy = "another creation with such an Idempotency-Key is under way: try again";
        Ok(InTurn { once, _turn: turn.map_err(|_| ApiError::unavailable(busy))? })
    }
}

/// A creation whose turn it is, until this is dropped.
pub(super) struct InTurn {
    once: Once,
    _turn: OwnedMutexGuard<()>,
}

impl std::ops::Deref for InTurn {
    type Target = Once;

    fn deref(&self) -> &Once {
        &self.once
    }
}

/// A creation that names a key.
#[derive(Debug, Clone)]
pub(super) struct Once {
    key: String,
    request: String,
}

impl Once {
    /// What the headers say, and what is asked for.
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Result<Option<Self>, ApiError> {
        let mut keys = headers.get_all(HEADER).iter();
        let Some(key) = keys.next() else { return Ok(None) };
        let key = key.as_bytes();
        let good = (1..=MAX_KEY_BYTES).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
        if !good || keys.next().is_some() {
            return Err(ApiError::malformed(format!(
                "Idempotency-Key: must be one of 1 to {MAX_KEY_BYTES} visible ASCII characters"
            )));
        }
        Ok(Some(Self { key: digest(key), request: digest(body) }))
    }

    /// What is kept of it.
    pub(super) fn creation(&self, sandbox: &Sandbox) -> Arc<Creation> {
        Arc::new(Creation {
            id: self.key.clone(),
            uid: sandbox.uid.clone(),
            sandbox: sandbox.id.clone(),
            request: self.request.clone(),
            created_at: time::now_text(),
        })
    }

    /// The sandbox that was created for the key, if one was.
    pub(super) async fn earlier(&self, app: &App) -> Result<Option<Arc<Sandbox>>, ApiError> {
        let Some(Item::Creation(creation)) = app.context.store.item(ItemKind::Creation, &self.key)
        else {
            return Ok(None);
        };
        if creation.created_at < oldest_kept() {
            forget(app, &creation).await;
            return Ok(None);
        }
        if creation.request != self.request {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "key_reused",
                "Idempotency-Key: the key was used with another body: use a new key for a new sandbox",
            ));
        }
        let sandbox = app.context.store.sandbox(&creation.sandbox);
        match sandbox.filter(|it| it.uid == creation.uid) {
            Some(sandbox) => Ok(Some(sandbox)),
            None => Err(ApiError::new(
                StatusCode::GONE,
                "gone",
                format!(
                    "sandbox {:?}, which was created for this Idempotency-Key, has been deleted since",
                    creation.sandbox
                ),
            )),
        }
    }
}

/// Counts a creation with a key; now and then old keys are forgotten behind it.
pub(super) fn count(app: &Arc<App>) {
    if !app.keys.created.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGET_EVERY) {
        return;
    }
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let (kept, _) = app.context.store.items(ItemKind::Creation);
        let oldest = oldest_kept();
        let old = surplus(&kept, &oldest);
        let old = old.iter().filter_map(|item| match item {
            Item::Creation(creation) => Some(forget(&app, creation)),
            _ => None,
        });
        futures::future::join_all(old).await;
    });
}

/// The first of these, in order of creation, that are too old or too many.
fn surplus<'a>(kept: &'a [Item], oldest: &str) -> &'a [Item] {
    let too_old = kept.partition_point(|item| item.created_at() < oldest);
    &kept[..too_old.max(kept.len().saturating_sub(MAX_KEPT))]
}

fn oldest_kept() -> String {
    let now = time::now();
    let kept = i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX);
    time::text(atoll_model::units::UnixMicros(now.0.saturating_sub(kept)))
}

async fn forget(app: &App, creation: &Creation) {
    let (name, uid) = (creation.id.clone(), creation.uid.clone());
    let write = Write::DeleteItem { kind: ItemKind::Creation, name, uid };
    // Another request may have been first; and on a full disk it is forgotten later.
    app.context.store.commit(write, Vec::new()).await.ok();
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(times: impl IntoIterator<Item = String>) -> Vec<Item> {
        let creation = |created_at| {
            let (id, uid) = (String::new(), String::new());
            let (sandbox, request) = (String::new(), String::new());
            Item::Creation(Arc::new(Creation { id, uid, sandbox, request, created_at }))
        };
        times.into_iter().map(creation).collect()
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten_from_the_oldest_on() {
        let few = kept(["1", "2", "3"].map(str::to_owned));
        assert_eq!(surplus(&few, "0").len(), 0);
        assert_eq!(surplus(&few, "3").len(), 2);
        let many = kept((0..MAX_KEPT + 5).map(|it| format!("{it:06}")));
        assert_eq!(surplus(&many, "0").len(), 5);
    }

    #[test]
    fn a_key_is_one_visible_word() {
        let of = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, key.parse().unwrap());
            Once::of(&headers, b"")
        };
        assert!(of("4f1c-a b").is_err() && of("").is_err() && of(&"x".repeat(256)).is_err());
        assert!(of(&"x".repeat(255)).unwrap().is_some());
        assert!(Once::of(&HeaderMap::new(), b"").unwrap().is_none());
    }
}
