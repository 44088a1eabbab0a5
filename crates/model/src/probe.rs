//! When a probe is tried, and what its outcomes mean. Pure: times come in, decisions come out; who tries is elsewhere.
//!
//! Two kinds of tries. **Declared** ones happen at `initial_delay + n × period` after the start, and they alone are counted against the
//! thresholds. **Early** ones happen besides, while a sandbox starts, so that its readiness shows within milliseconds; a failure of one
//! means nothing, a success makes ready, and none are made when `success_threshold` asks for more than one success.
//!
//! INVARIANT: nothing fails before its `failure_threshold`-th declared try has failed, whatever came early and however late a try was
//! made; a declared time that has passed is left out, never made up for by tries in a burst.

use std::time::Duration;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A connection can be opened.
    Tcp {
        /// Where.
        port: u16,
    },
    /// `GET` answers with a code from 200 to 399.
    Http {
        /// Where.
        port: u16,
        /// What, begins with `/`.
        path: String,
    },
    /// A command in the container ends with 0.
    Exec {
        /// Its words, at least one.
        command: Vec<String>,
    },
}

/// A probe, checked: durations are whole seconds, thresholds at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is tried.
    pub check: Check,
    /// From the start to the first declared try.
    pub initial_delay: Duration,
    /// From one declared try to the next; more than 0.
    pub period: Duration,
    /// How long a declared try may take; more than 0.
    pub timeout: Duration,
    /// Successes in a row that make it pass.
    pub success_threshold: u32,
    /// Failures in a row that make it fail.
    pub failure_threshold: u32,
}

/// What a probe decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Whether there is somebody to talk to.
    Readiness,
    /// Whether a container must be started again.
    Liveness,
}

/// Where a probe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has never passed, nor failed for good.
    Starting,
    /// It passes.
    Passing,
    /// It passed before, and does not now. Only readiness comes back from here.
    NotPassing,
    /// It is over: it failed before it ever passed, or liveness is lost.
    Failed,
}

/// A try that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// Not before this moment, microseconds of the clock that the caller uses.
    pub at_micros: u64,
    /// It is given up after this long.
    pub timeout: Duration,
    /// Its outcome is counted.
    pub declared: bool,
}

/// Shortest and longest pause between early tries of a connection: the start of a server is seen within milliseconds, and a sandbox
/// that takes long costs its node 40 connections a second.
const EARLY_CONNECTION: (u64, u64) = (2_000, 25_000);
/// The same for a command, which costs a process each.
const EARLY_COMMAND: (u64, u64) = (20_000, 250_000);
/// An early try is made again after this part of the time since the start, within the bounds above.
const EARLY_PART: u64 = 16;

/// A probe under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    probe: Probe,
    purpose: Purpose,
    verdict: Verdict,
    begun_at: u64,
    /// The declared try that comes next.
    declared_at: u64,
    /// The early try that comes next.
    early_at: u64,
    successes: u32,
    failures: u32,
}

impl Progress {
    /// Of something that was started at this moment.
    #[must_use]
    pub fn begun(probe: Probe, purpose: Purpose, now_micros: u64) -> Self {
        let declared_at = now_micros.saturating_add(micros(probe.initial_delay));
        Self {
            probe,
            purpose,
            verdict: Verdict::Starting,
            begun_at: now_micros,
            declared_at,
            early_at: now_micros,
            successes: 0,
            failures: 0,
        }
    }

    /// Of something that had passed before anybody who could tell was there again: what it was it stays until its thresholds say else.
    #[must_use]
    pub fn resumed(probe: Probe, purpose: Purpose, passing: bool, now_micros: u64) -> Self {
        let verdict = if passing { Verdict::Passing } else { Verdict::NotPassing };
        let begun = Self::begun(probe, purpose, now_micros);
        Self { verdict, declared_at: now_micros, ..begun }
    }

    /// Where it stands.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What is probed.
    #[must_use]
    pub const fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The next try; `None`: it is over.
    #[must_use]
    pub fn next(&self) -> Option<Try> {
        if self.verdict == Verdict::Failed {
            return None;
        }
        let declared =
            Try { at_micros: self.declared_at, timeout: self.probe.timeout, declared: true };
        if !self.tries_early() || self.early_at >= self.declared_at {
            return Some(declared);
        }
        // It must be over when the declared one is due.
        let left = Duration::from_micros(self.declared_at - self.early_at);
        let timeout = self.probe.timeout.min(left);
        Some(Try { at_micros: self.early_at, timeout, declared: false })
    }

    fn tries_early(&self) -> bool {
        self.verdict == Verdict::Starting
            && self.purpose == Purpose::Readiness
            && self.probe.success_threshold == 1
    }

    /// Takes in how a try ended. `Some`: where it stands now, which is not where it stood before.
    pub fn ended(&mut self, made: Try, passed: bool, now_micros: u64) -> Option<Verdict> {
        if self.verdict == Verdict::Failed {
            return None;
        }
        let before = self.verdict;
        if made.declared {
            self.count(passed);
            self.declared_at = self.declared_after(now_micros);
        } else if passed && self.tries_early() {
            self.verdict = Verdict::Passing;
            self.failures = 0;
        }
        self.early_at = now_micros.saturating_add(self.early_pause(now_micros));
        (self.verdict != before).then_some(self.verdict)
    }

    fn count(&mut self, passed: bool) {
        if passed {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.probe.success_threshold {
                self.verdict = Verdict::Passing;
            }
            return;
        }
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.probe.failure_threshold {
            return;
        }
        self.verdict = match (self.purpose, self.verdict) {
            (Purpose::Liveness, _) | (_, Verdict::Starting) => Verdict::Failed,
            (Purpose::Readiness, _) => Verdict::NotPassing,
        };
    }

    /// The first declared time that lies ahead.
    fn declared_after(&self, now_micros: u64) -> u64 {
        let period = micros(self.probe.period).max(1);
        let next = self.declared_at.saturating_add(period);
        if next > now_micros {
            return next;
        }
        let missed = (now_micros - next) / period + 1;
        next.saturating_add(missed.saturating_mul(period))
    }

    fn early_pause(&self, now_micros: u64) -> u64 {
        let (least, most) = match self.probe.check {
            Check::Exec { .. } => EARLY_COMMAND,
            Check::Tcp { .. } | Check::Http { .. } => EARLY_CONNECTION,
        };
        (now_micros.saturating_sub(self.begun_at) / EARLY_PART).clamp(least, most)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
