//! A state as the API shows it, and back again after a restart.

use atoll_model::spec::SandboxSpec;
use atoll_model::state::{
    Cause, ContainerPhase, ContainerState, End, EndReason, Gate, Phase, SandboxState,
};
use atoll_model::units::UnixMicros;
use atoll_wire::{record, rest, shim};

use crate::time;

/// The condition that shows the gate.
const GATE: &str = "ReadinessGate";
/// Its reason while it is shut after it was open.
const FAILING: &str = "Failing";

/// Writes a state into a record's status; what a state does not say stays as it was. Conditions keep the time of their last change.
pub(crate) fn show(state: &SandboxState, status: &mut rest::SandboxStatus) {
    status.phase = state.phase.name().to_owned();
    status.ready = state.is_ready();
    if state.phase.is_over() {
        // Address and ports are somebody else's before long.
        status.ip = None;
        status.assigned_ports.clear();
    }
    status.reason = state.cause.as_ref().map(|cause| cause.reason.clone());
    let asked_for = |cause: &Cause| matches!(cause.reason.as_str(), "Deleted" | "Shutdown");
    let troubled = !matches!(state.phase, Phase::Running | Phase::Succeeded)
        && !state.cause.as_ref().is_some_and(asked_for);
    let message = state
        .cause
        .as_ref()
        .map(|cause| cause.message.clone())
        .filter(|message| !message.is_empty());
    status.last_error = message.filter(|_| troubled);
    for container in &state.containers {
        let shown = status.containers.iter_mut().find(|it| it.name == container.name);
        match shown {
            Some(shown) => show_container(state, container, shown),
            None => {
                let mut shown =
                    rest::ContainerStatus { name: container.name.clone(), ..Default::default() };
                show_container(state, container, &mut shown);
                status.containers.push(shown);
            }
        }
    }
    show_conditions(state, &mut status.conditions);
}

fn show_container(
    state: &SandboxState,
    container: &ContainerState,
    shown: &mut rest::ContainerStatus,
) {
    let is_held = matches!(state.phase, Phase::Pending | Phase::Scheduled);
    let waits_for = if is_held { state.waits_for(container) } else { Vec::new() };
    shown.waiting_for = waits_for.into_iter().map(str::to_owned).collect();
    shown.has_passed = container.has_passed;
    shown.started_at = container.started_at.map(time::text);
    shown.log_dropped_bytes = container.log_dropped_bytes;
    shown.state = match &container.phase {
        ContainerPhase::Waiting => "waiting",
        ContainerPhase::Running => "running",
        ContainerPhase::Ended(_) => "exited",
        ContainerPhase::Unknown => "unknown",
    }
    .to_owned();
    if let ContainerPhase::Ended(end) = &container.phase {
        shown.exit_code = end.shell_code();
        shown.signal = end.signal;
        shown.finished_at = end.finished_at.map(time::text);
        shown.reason = Some(end.reason.name().to_owned());
        shown.message = Some(end.message.clone()).filter(|message| !message.is_empty());
    }
}

fn show_conditions(state: &SandboxState, conditions: &mut Vec<rest::Condition>) {
    let (reason, message) = match &state.cause {
        Some(cause) => (cause.reason.as_str(), cause.message.as_str()),
        None if state.is_ready() => ("Started", ""),
        None => (state.phase.name(), ""),
    };
    let ready = match state.phase {
        Phase::Unknown => "Unknown",
        _ if state.is_ready() => "True",
        _ => "False",
    };
    set(conditions, "Ready", ready, reason, message);
    let gate = match state.gate {
        Gate::Absent => None,
        Gate::Waiting => Some(("False", "Waiting")),
        Gate::Open => Some(("True", "Passing")),
        Gate::Shut => Some(("False", FAILING)),
    };
    if let Some((status, reason)) = gate {
        set(conditions, GATE, status, reason, "");
    }
    let images = if state.images_ready { ("True", "Resolved") } else { ("False", "NotYet") };
    set(conditions, "ImagesReady", images.0, images.1, "");
    if state.adopted {
        set(conditions, "Adopted", "True", "Restarted", "an earlier server began it");
    }
}

fn set(
    conditions: &mut Vec<rest::Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) {
    let new = |since: String| rest::Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|it| it.kind == kind) {
        Some(known) if known.status == status => *known = new(known.last_transition_time.clone()),
        Some(known) => *known = new(time::now_text()),
        None => conditions.push(new(time::now_text())),
    }
}

/// The state that a record tells of. Containers are the specification's, whatever the record says.
pub(crate) fn read(spec: &SandboxSpec, status: &rest::SandboxStatus) -> SandboxState {
    let mut state = SandboxState::of_spec(spec);
    if spec.is_gated() {
        match status.conditions.iter().find(|it| it.kind == GATE) {
            Some(it) if it.status == "True" => state.gate = Gate::Open,
            Some(it) if it.reason == FAILING => state.gate = Gate::Shut,
            _ => {}
        }
    }
    state.phase = Phase::from_name(&status.phase).unwrap_or(Phase::Unknown);
    let message = status.last_error.clone().unwrap_or_default();
    state.cause = status.reason.clone().map(|reason| Cause { reason, message });
    let condition =
        |kind: &str| status.conditions.iter().any(|it| it.kind == kind && it.status == "True");
    state.images_ready = condition("ImagesReady");
    state.adopted = condition("Adopted");
    for container in &mut state.containers {
        if let Some(shown) = status.containers.iter().find(|it| it.name == container.name) {
            read_container(shown, container);
        }
    }
    state
}

fn read_container(shown: &rest::ContainerStatus, container: &mut ContainerState) {
    container.started_at = shown.started_at.as_deref().and_then(time::parse);
    container.log_dropped_bytes = shown.log_dropped_bytes;
    container.has_passed = shown.has_passed;
    container.phase = match shown.state.as_str() {
        "running" => ContainerPhase::Running,
        "unknown" => ContainerPhase::Unknown,
        "exited" => ContainerPhase::Ended(End {
            code: shown.exit_code.filter(|_| shown.signal.is_none()),
            signal: shown.signal,
            reason: shown
                .reason
                .as_deref()
                .and_then(EndReason::from_name)
                .unwrap_or(EndReason::Unknown),
            message: shown.message.clone().unwrap_or_default(),
            finished_at: shown.finished_at.as_deref().and_then(time::parse),
        }),
        _ => ContainerPhase::Waiting,
    };
}

/// How a container ended, from what its shim recorded.
pub(crate) fn end_of(exit: &record::ContainerExit) -> End {
    End {
        code: exit.code,
        signal: exit.signal,
        reason: match exit.reason {
            record::ExitReason::Completed => EndReason::Completed,
            record::ExitReason::Error => EndReason::Error,
            record::ExitReason::OutOfMemory => EndReason::OutOfMemory,
            record::ExitReason::PidsLimit => EndReason::PidsLimit,
            record::ExitReason::HostPidsBackstop => EndReason::HostPidsBackstop,
            record::ExitReason::Stopped => EndReason::Stopped,
            record::ExitReason::StartFailed => EndReason::StartFailed,
            record::ExitReason::GuestDied => EndReason::GuestDied,
            record::ExitReason::SentryDied => EndReason::SentryDied,
            record::ExitReason::HostError => EndReason::HostError,
            record::ExitReason::Unknown => EndReason::Unknown,
        },
        message: exit.message.clone(),
        finished_at: exit.finished_at_unix_micros.map(UnixMicros),
    }
}

/// The containers of a sandbox as its shim sees them.
pub(crate) fn seen(state: &shim::ShimState) -> Vec<ContainerState> {
    let container = |it: &shim::ContainerState| ContainerState {
        phase: match (&it.exit, it.started_at_unix_micros) {
            (Some(exit), _) => ContainerPhase::Ended(end_of(exit)),
            (None, Some(_)) => ContainerPhase::Running,
            (None, None) => ContainerPhase::Waiting,
        },
        started_at: it.started_at_unix_micros.map(UnixMicros),
        log_dropped_bytes: it.log_dropped_bytes,
        ..ContainerState::waiting(&it.name)
    };
    state.containers.iter().map(container).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_model::state::Event;

    fn spec() -> SandboxSpec {
        let container = |name: &str| rest::ContainerSpec {
            name: name.into(),
            image: "busybox".into(),
            ..Default::default()
        };
        let containers = vec![container("a"), container("b")];
        crate::admission::read_admitted(&rest::SandboxSpec { containers, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn an_address_is_shown_for_as_long_as_it_is_the_sandboxs() {
        let mut state = SandboxState::new(["a"]);
        let mut status =
            rest::SandboxStatus { ip: Some("10.200.0.16".into()), ..Default::default() };
        let mut shown = |event| {
            state.apply(event);
            show(&state, &mut status);
            status.ip.is_some()
        };
        assert!(shown(Event::Scheduled) && shown(Event::ImagesReady));
        assert!(shown(Event::Started { container: "a".into(), at: UnixMicros(5) }));
        assert!(shown(Event::Unreachable("no answer".into())), "nobody took it away");
        let cause = Cause { reason: "Lost".into(), message: "it was killed".into() };
        assert!(!shown(Event::Lost(cause)));
    }

    #[test]
    fn a_state_reads_back_from_what_is_shown() {
        let port = atoll_model::spec::Port {
            protocol: atoll_model::ports::PortProtocol::Tcp,
            container_port: 80,
            published_port: None,
        };
        let spec = SandboxSpec { ports: vec![port], ..spec() };
        let mut state = SandboxState::new(["a", "b"]).gated();
        let end = End {
            code: None,
            signal: Some(9),
            reason: EndReason::OutOfMemory,
            message: "64Mi".into(),
            finished_at: Some(UnixMicros(7)),
        };
        let events = [
            Event::Scheduled,
            Event::ImagesReady,
            Event::Started { container: "a".into(), at: UnixMicros(5) },
            Event::Started { container: "b".into(), at: UnixMicros(6) },
            Event::LogDropped { container: "b".into(), bytes: 12 },
            Event::Ended { container: "a".into(), end: end.clone() },
            Event::GateOpened,
            Event::GateShut(Cause { reason: "NotReady".into(), message: "no answer".into() }),
            Event::Unreachable("no answer".into()),
            Event::Seen { containers: state.containers.clone(), adopted: true },
            Event::GateOpened,
            Event::Ended { container: "b".into(), end },
            Event::Delete(Cause { reason: "Deleted".into(), message: "by a client".into() }),
        ];
        let mut status = rest::SandboxStatus::default();
        for event in events {
            state.apply(event.clone());
            show(&state, &mut status);
            let mut read = read(&spec, &status);
            // A message that is no error is not shown, and need not come back.
            if status.last_error.is_none() {
                read.cause = state.cause.clone();
            }
            assert_eq!(read, state, "{event:?}");
        }
    }

    #[test]
    fn conditions_change_their_time_only_with_their_status() {
        let mut state = SandboxState::new(["a"]);
        let mut status = rest::SandboxStatus::default();
        show(&state, &mut status);
        status.conditions[0].last_transition_time = "then".into();
        state.apply(Event::Scheduled);
        show(&state, &mut status);
        assert_eq!(
            (
                status.conditions[0].reason.as_str(),
                status.conditions[0].last_transition_time.as_str()
            ),
            ("Scheduled", "then")
        );
        state.apply(Event::Started { container: "a".into(), at: UnixMicros(1) });
        show(&state, &mut status);
        assert_eq!((status.conditions[0].status.as_str(), status.ready), ("True", true));
        assert_ne!(status.conditions[0].last_transition_time, "then");
    }
}
