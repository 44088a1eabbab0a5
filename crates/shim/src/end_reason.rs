//! Why a container ended: a pure function from what was seen.

use atoll_sys::process::Exit;
use atoll_wire::guest::{Exited, StartFailure};
use atoll_wire::record::{ContainerExit, ExitReason};

use crate::engine::EndEvidence;

/// The signal that ends what does not end by itself. SOURCE: signal(7).
const SIGKILL: i32 = 9;

/// How the end of a container became known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The command ended, as its guest, or the kernel where it has no guest, told.
    Command(Exited),
    /// The command could not be started.
    StartFailed(StartFailure),
    /// The first process is gone, and with it whoever could have told.
    FirstProcessGone,
    /// It was gone before this shim came.
    Nobody,
}

/// All that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) seen: Seen,
    pub(crate) evidence: EndEvidence,
    /// A client asked for the end of the sandbox.
    pub(crate) stop_asked: bool,
    /// Why this shim ended the sandbox by itself.
    pub(crate) host_failure: Option<String>,
    /// Bit n: a client sent signal n + 1.
    pub(crate) signals_sent: u64,
    /// What the guest said last about itself.
    pub(crate) last_words: String,
}

/// Decides.
pub(crate) fn decide(
    container: &str,
    observation: &Observation,
    at_unix_micros: i64,
) -> ContainerExit {
    let (code, signal, reason, message) = match &observation.seen {
        Seen::Command(exited) => {
            let (reason, message) = command_ended(exited, observation);
            (exited.code, exited.signal, reason, message)
        }
        Seen::StartFailed(failure) => {
            (Some(failure.kind.exit_code()), None, ExitReason::StartFailed, failure.message.clone())
        }
        Seen::FirstProcessGone => {
            let (reason, message) = first_process_gone(observation);
            let killed = matches!(
                reason,
                ExitReason::Stopped | ExitReason::OutOfMemory | ExitReason::HostError
            );
            (None, killed.then_some(SIGKILL), reason, message)
        }
        Seen::Nobody => (
            None,
            None,
            ExitReason::Unknown,
            "it ended while no shim watched it, and its guest left no record".into(),
        ),
    };
    ContainerExit {
        container: container.into(),
        code,
        signal,
        reason,
        message,
        finished_at_unix_micros: (observation.seen != Seen::Nobody).then_some(at_unix_micros),
    }
}

fn command_ended(exited: &Exited, observation: &Observation) -> (ExitReason, String) {
    let evidence = observation.evidence;
    let clean = exited.code == Some(0);
    // With a code it ended by itself, before it was killed.
    if let Some(why) = observation.host_failure.as_ref().filter(|_| exited.code.is_none()) {
        return (ExitReason::HostError, why.clone());
    }
    let (reason, message) = if exited.pids_limit {
        (ExitReason::PidsLimit, "it reached its limit of processes and was ended")
    } else if observation.stop_asked {
        (ExitReason::Stopped, "")
    } else if clean {
        (ExitReason::Completed, "")
    } else if evidence.out_of_memory {
        (ExitReason::OutOfMemory, "it reached its memory limit")
    } else if evidence.pids_limit {
        (ExitReason::PidsLimit, "it reached its limit of processes")
    } else if evidence.host_pids_backstop {
        (ExitReason::HostPidsBackstop, BACKSTOP)
    } else if exited.signal.is_some_and(|signal| sent(observation.signals_sent, signal)) {
        (ExitReason::Stopped, "")
    } else {
        (ExitReason::Error, "")
    };
    (reason, message.into())
}

const BACKSTOP: &str = "the isolating process reached the host's backstop for its threads";

fn first_process_gone(observation: &Observation) -> (ExitReason, String) {
    let evidence = observation.evidence;
    if let Some(why) = &observation.host_failure {
        (ExitReason::HostError, why.clone())
    } else if observation.stop_asked {
        (ExitReason::Stopped, String::new())
    } else if evidence.out_of_memory {
        (ExitReason::OutOfMemory, "it reached its memory limit".into())
    } else if evidence.host_pids_backstop {
        (ExitReason::HostPidsBackstop, BACKSTOP.into())
    } else if evidence.sentry_died {
        (ExitReason::SentryDied, format!("the isolating process {}", how(evidence.init_exit)))
    } else {
        let mut message = format!("its first process {}", how(evidence.init_exit));
        if !observation.last_words.is_empty() {
            message = format!("{message}; it said: {}", observation.last_words);
        }
        (ExitReason::GuestDied, message)
    }
}

fn how(exit: Option<Exit>) -> String {
    match exit {
        Some(Exit::Code(code)) => format!("ended with code {code}"),
        Some(Exit::Signal(signal)) => format!("was ended by signal {signal}"),
        None => "ended".into(),
    }
}

const fn sent(signals: u64, signal: i32) -> bool {
    matches!(signal, 1..=64) && signals & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use atoll_wire::guest::StartFailureKind;

    use super::*;

    const NOTHING: EndEvidence = EndEvidence {
        init_exit: None,
        out_of_memory: false,
        pids_limit: false,
        host_pids_backstop: false,
        sentry_died: false,
    };

    const fn exit(code: Option<i32>, signal: Option<i32>, pids_limit: bool) -> Seen {
        Seen::Command(Exited { code, signal, pids_limit })
    }

    #[test]
    fn every_end_has_its_reason() {
        use ExitReason as R;
        let oom = EndEvidence { out_of_memory: true, ..NOTHING };
        let pids = EndEvidence { pids_limit: true, ..NOTHING };
        let backstop = EndEvidence { host_pids_backstop: true, sentry_died: true, ..NOTHING };
        let sentry = EndEvidence { sentry_died: true, ..NOTHING };
        let killed = EndEvidence { init_exit: Some(Exit::Signal(9)), ..NOTHING };
        let failed = Seen::StartFailed(StartFailure {
            kind: StartFailureKind::NotFound,
            message: "no such program".into(),
        });
        let term = 1 << 14;
        let zero = || exit(Some(0), None, false);
        let three = || exit(Some(3), None, false);
        let by = |signal| exit(None, Some(signal), false);
        let gone = || Seen::FirstProcessGone;
        // seen, evidence, stop asked, signals sent: reason, code, signal
        let rows = [
            (zero(), NOTHING, false, 0, R::Completed, Some(0), None),
            (zero(), oom, false, 0, R::Completed, Some(0), None),
            (zero(), pids, false, 0, R::Completed, Some(0), None),
            (zero(), NOTHING, true, 0, R::Stopped, Some(0), None),
            (three(), NOTHING, false, 0, R::Error, Some(3), None),
            (three(), NOTHING, false, term, R::Error, Some(3), None),
            (three(), oom, false, 0, R::OutOfMemory, Some(3), None),
            (three(), pids, false, 0, R::PidsLimit, Some(3), None),
            (three(), backstop, false, 0, R::HostPidsBackstop, Some(3), None),
            (by(9), NOTHING, false, 0, R::Error, None, Some(9)),
            (by(9), oom, false, 0, R::OutOfMemory, None, Some(9)),
            (by(9), oom, true, 0, R::Stopped, None, Some(9)),
            (by(15), NOTHING, false, term, R::Stopped, None, Some(15)),
            (by(11), NOTHING, false, term, R::Error, None, Some(11)),
            (exit(None, Some(9), true), NOTHING, false, 0, R::PidsLimit, None, Some(9)),
            (failed, NOTHING, false, 0, R::StartFailed, Some(127), None),
            (gone(), killed, false, 0, R::GuestDied, None, None),
            (gone(), NOTHING, false, 0, R::GuestDied, None, None),
            (gone(), oom, false, 0, R::OutOfMemory, None, Some(9)),
            (gone(), backstop, false, 0, R::HostPidsBackstop, None, None),
            (gone(), sentry, false, 0, R::SentryDied, None, None),
            (gone(), sentry, true, 0, R::Stopped, None, Some(9)),
            (Seen::Nobody, oom, true, term, R::Unknown, None, None),
        ];
        for (seen, evidence, stop_asked, signals_sent, reason, code, signal) in rows {
            let host_failure = None;
            let last_words = "it panicked".to_owned();
            let observation =
                Observation { seen, evidence, stop_asked, host_failure, signals_sent, last_words };
            let decided = decide("main", &observation, 7);
            assert_eq!(
                (decided.reason, decided.code, decided.signal),
                (reason, code, signal),
                "{observation:?}"
            );
            let known = observation.seen != Seen::Nobody;
            assert_eq!(decided.finished_at_unix_micros, known.then_some(7), "{observation:?}");
            let says = decided.message.ends_with("; it said: it panicked");
            assert_eq!(says, reason == R::GuestDied, "{decided:?}");
        }
    }
}
