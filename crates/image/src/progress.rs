//! What a pull or import tells its caller while it runs. Never blocks: a sink is called from the download itself.

use std::sync::Arc;

use crate::digest::Digest;

/// One step of a pull or import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// The manifest is known: so many layers, of so many compressed bytes each, are to be had.
    Layers {
        /// Blob digest and compressed size in bytes of each layer, lowest first.
        layers: Vec<(Digest, u64)>,
    },
    /// Bytes of a layer that are on disk by now (a resumed download begins above 0).
    Downloaded {
        /// The layer's blob.
        layer: Digest,
        /// Bytes on disk.
        done_bytes: u64,
        /// Bytes of the whole blob.
        total_bytes: u64,
    },
    /// A download broke and is tried again.
    Retrying {
        /// The layer's blob.
        layer: Digest,
        /// What broke.
        reason: String,
    },
    /// The layer is being unpacked.
    Unpacking {
        /// The layer's blob.
        layer: Digest,
    },
    /// The layer is there, by this pull or an earlier one.
    LayerReady {
        /// The layer's blob.
        layer: Digest,
        /// It was there before; nothing was downloaded.
        reused: bool,
    },
}

type Receive = dyn Fn(&ProgressEvent) + Send + Sync;

/// Receives [`ProgressEvent`]s. Must return quickly.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<Receive>>);

impl ProgressSink {
    /// A sink that hands every event to `receive`.
    pub fn new(receive: impl Fn(&ProgressEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(receive)))
    }

    /// A sink that drops every event.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn send(&self, event: &ProgressEvent) {
        if let Some(receive) = &self.0 {
            receive(event);
        }
    }
}

impl std::fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "ProgressSink(..)" } else { "ProgressSink(none)" })
    }
}
