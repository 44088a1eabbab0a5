//! Numbers for Prometheus. Labels come from closed sets only: never a name, an image or anything a client wrote.

use std::sync::atomic::AtomicI64;

use atoll_model::state::Phase;
use atoll_model::timeline::{self, Timeline};
use atoll_wire::rest;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// One label: a phase's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// One label: why something ended. Only words of this program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// One label: the first digit of a status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

/// All metrics of the server.
pub(crate) struct Metrics {
    registry: Registry,
    created: Counter,
    ended: Family<ReasonLabel, Counter>,
    creation: Histogram,
    phases: Family<PhaseLabel, Histogram>,
    requests: Family<StatusLabel, Counter>,
    sandboxes: Family<PhaseLabel, Gauge<i64, AtomicI64>>,
}

/// Seconds: from half a millisecond, which a phase may take, to a minute, which a pull may.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// Reasons that are told apart; all others are `Other`.
const REASONS: [&str; 16] = [
    "Completed",
    "Error",
    "OutOfMemory",
    "PidsLimit",
    "HostPidsBackstop",
    "Stopped",
    "StartFailed",
    "GuestDied",
    "SentryDied",
    "Unknown",
    "ImagePull",
    "ImageNotFound",
    "HostError",
    "Lost",
    "Quarantined",
    "ClassMissing",
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: Registry::with_prefix("atoll"),
            created: Counter::default(),
            ended: Family::default(),
            creation: histogram(),
            phases: Family::new_with_constructor(histogram),
            requests: Family::default(),
            sandboxes: Family::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("sandboxes_created", "Sandboxes accepted", self.created.clone());
        registry.register("sandboxes_ended", "Sandboxes that ended, by reason", self.ended.clone());
        registry.register("creation_seconds", "From request to Running", self.creation.clone());
        registry.register(
            "creation_phase_seconds",
            "Phases of a creation; they sum to it",
            self.phases.clone(),
        );
        registry.register(
            "http_requests",
            "Requests answered, by class of status",
            self.requests.clone(),
        );
        registry.register("sandboxes", "Sandboxes by phase", self.sandboxes.clone());
        self
    }

    /// A sandbox was accepted.
    pub(crate) fn created(&self) {
        self.created.inc();
    }

    /// A sandbox runs.
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a creation are far below 2^52")]
    pub(crate) fn running(&self, timeline: &Timeline) {
        let seconds = |micros: u64| micros as f64 / 1e6;
        self.creation.observe(seconds(timeline.total_micros()));
        for (phase, micros) in timeline.phases() {
            self.phases.get_or_create(&PhaseLabel { phase: phase.name() }).observe(seconds(micros));
        }
    }

    /// A sandbox ended.
    pub(crate) fn ended(&self, reason: &str) {
        let reason = REASONS.into_iter().find(|known| *known == reason).unwrap_or("Other");
        self.ended.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A request was answered.
    pub(crate) fn answered(&self, status: u16) {
        let status = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&StatusLabel { status }).inc();
    }

    /// The text that Prometheus reads.
    pub(crate) fn text<'a>(&self, sandboxes: impl Iterator<Item = &'a rest::Sandbox>) -> String {
        let mut counts = [0_i64; Phase::ALL.len()];
        for sandbox in sandboxes {
            if let Some(index) =
                Phase::ALL.iter().position(|phase| phase.name() == sandbox.status.phase)
            {
                counts[index] += 1;
            }
        }
        for (phase, count) in Phase::ALL.iter().zip(counts) {
            self.sandboxes.get_or_create(&PhaseLabel { phase: phase.name() }).set(count);
        }
        // Every phase of a timeline is there from the start: a scrape before the first creation shows what there will be.
        for phase in timeline::Phase::ALL {
            drop(self.phases.get_or_create(&PhaseLabel { phase: phase.name() }));
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
