//! Streams of changes: newline-delimited JSON, one object a line, a bookmark now and then.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use atoll_wire::rest::{Event, Sandbox, WatchEvent};
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use super::App;
use super::error::ApiError;
use crate::serve::until_true;
use crate::store::{Change, ChangeKind, Object, Watch};

/// A line at least so often: a client that is gone is found out, and one that resumes is not too far behind.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);

/// Sandboxes: from a version on, or all that are there and then every change.
pub(super) fn sandboxes(
    app: &Arc<App>,
    from: Option<u64>,
    matches: impl Fn(&Sandbox) -> bool + Send + 'static,
) -> Result<Response, ApiError> {
    let (existing, version) = app.context.store.sandboxes();
    let watch = app.context.store.watch(from.unwrap_or(version))?;
    let mut first = Vec::new();
    if from.is_none() {
        for sandbox in existing.iter().filter(|it| matches(it)) {
            line(&mut first, "ADDED", Some(&*app.shown(sandbox)), sandbox.resource_version);
        }
        line::<Sandbox>(&mut first, "BOOKMARK", None, version);
    }
    let shown_by = Arc::clone(app);
    let write = move |out: &mut Vec<u8>, change: &Change| {
        if let Object::Sandbox(sandbox) = &change.object
            && matches(sandbox)
        {
            line(out, kind(change.kind), Some(&*shown_by.shown(sandbox)), change.version);
        }
    };
    Ok(stream(app, watch, first, write))
}

/// Events: from a version on, or all that are kept and then every new one.
pub(super) fn events(
    app: &Arc<App>,
    from: Option<u64>,
    object: Option<String>,
) -> Result<Response, ApiError> {
    let (existing, version) = app.context.store.events();
    let watch = app.context.store.watch(from.unwrap_or(version))?;
    let matches = move |event: &Event| object.as_ref().is_none_or(|object| *object == event.object);
    let mut first = Vec::new();
    if from.is_none() {
        for event in existing.iter().filter(|it| matches(it)) {
            line(&mut first, "ADDED", Some(&**event), event.resource_version);
        }
        line::<Event>(&mut first, "BOOKMARK", None, version);
    }
    let write = move |out: &mut Vec<u8>, change: &Change| {
        if let Object::Event(event) = &change.object
            && matches(event)
        {
            line(out, "ADDED", Some(&**event), change.version);
        }
    };
    Ok(stream(app, watch, first, write))
}

const fn kind(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "ADDED",
        ChangeKind::Modified => "MODIFIED",
        ChangeKind::Deleted => "DELETED",
    }
}

#[derive(Serialize)]
struct Line<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a T>,
    resource_version: u64,
}

fn line<T: Serialize>(
    out: &mut Vec<u8>,
    kind: &'static str,
    object: Option<&T>,
    resource_version: u64,
) {
    let begin = out.len();
    if serde_json::to_writer(&mut *out, &Line { kind, object, resource_version }).is_err() {
        // Cannot happen with these types; half a line would be worse than none.
        out.truncate(begin);
        return;
    }
    out.push(b'\n');
}

/// Where a stream of changes stands.
struct Following<W> {
    watch: Watch,
    first: Option<Vec<u8>>,
    write: W,
    seen: u64,
    ending: tokio::sync::watch::Receiver<bool>,
    over: bool,
}

fn stream(
    app: &Arc<App>,
    watch: Watch,
    first: Vec<u8>,
    write: impl Fn(&mut Vec<u8>, &Change) + Send + 'static,
) -> Response {
    let seen = watch.seen();
    let following =
        Following { watch, first: Some(first), write, seen, ending: app.ending(), over: false };
    let lines = futures::stream::unfold(following, |mut following| async move {
        if following.over {
            return None;
        }
        let bytes = following.next_lines().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), following))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

impl<W: Fn(&mut Vec<u8>, &Change)> Following<W> {
    /// The next lines, at least one; `None` at the end.
    async fn next_lines(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take().filter(|it| !it.is_empty()) {
            return Some(first);
        }
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(BOOKMARK_EVERY, self.watch.next()) => next,
                () = until_true(&mut self.ending) => return None,
            };
            let mut out = Vec::new();
            match next {
                Ok(Ok(Some(changes))) => {
                    changes.iter().for_each(|change| (self.write)(&mut out, change));
                    self.seen = changes.last().map_or(self.seen, |it| it.version);
                }
                Ok(Ok(None)) => return None,
                Ok(Err(gone)) => {
                    // The status line is long sent: the error comes as a line, and the stream ends.
                    self.over = true;
                    let error = ApiError::from(gone);
                    let text = WatchEvent {
                        kind: "ERROR".to_owned(),
                        object: Some(error.body()),
                        resource_version: self.seen,
                    };
                    out = serde_json::to_vec(&text).unwrap_or_default();
                    out.push(b'\n');
                }
                Err(_) => line::<Sandbox>(&mut out, "BOOKMARK", None, self.seen),
            }
            if !out.is_empty() {
                return Some(out);
            }
        }
    }
}
