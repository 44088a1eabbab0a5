use super::*;

fn end(code: i32) -> End {
    let reason = if code == 0 { EndReason::Completed } else { EndReason::Error };
    End {
        code: Some(code),
        signal: None,
        reason,
        message: String::new(),
        finished_at: Some(UnixMicros(9)),
    }
}

fn started(container: &str) -> Event {
    Event::Started { container: container.into(), at: UnixMicros(5) }
}

fn ended(container: &str, end: End) -> Event {
    Event::Ended { container: container.into(), end }
}

fn cause(reason: &str) -> Cause {
    Cause { reason: reason.into(), message: String::new() }
}

fn running(names: &[&str]) -> SandboxState {
    let mut state = SandboxState::new(names.iter().copied());
    state.apply(Event::Scheduled);
    for name in names {
        state.apply(started(name));
    }
    assert_eq!(state.phase, Phase::Running);
    state
}

#[test]
fn running_means_that_every_container_was_started() {
    let mut state = SandboxState::new(["a", "b"]);
    assert!(state.apply(Event::Scheduled));
    assert!(!state.apply(Event::Scheduled), "nothing new");
    state.apply(started("a"));
    assert_eq!((state.phase, state.is_ready()), (Phase::Scheduled, false));
    state.apply(ended("a", end(0)));
    assert_eq!(state.phase, Phase::Scheduled, "b has not started");
    state.apply(started("b"));
    assert_eq!((state.phase, state.is_ready()), (Phase::Running, false), "a is over: not ready");
    state.apply(ended("b", end(0)));
    assert_eq!(state.phase, Phase::Succeeded);
}

#[test]
fn a_failure_names_the_container_that_explains_it() {
    let mut state = running(&["web", "db"]);
    state.apply(ended("web", End { code: None, signal: Some(15), ..end(1) }));
    let oom = End {
        code: None,
        signal: Some(9),
        reason: EndReason::OutOfMemory,
        message: "64Mi".into(),
        finished_at: None,
    };
    state.apply(ended("db", oom));
    assert_eq!(state.phase, Phase::Failed);
    let cause = state.cause.unwrap();
    assert_eq!(
        (cause.reason.as_str(), cause.message.as_str()),
        ("OutOfMemory", "container db: signal 9: 64Mi")
    );
}

#[test]
fn a_stop_with_code_0_is_a_success_and_with_a_signal_is_not() {
    for (end, phase) in [
        (End { reason: EndReason::Stopped, ..end(0) }, Phase::Succeeded),
        (End { reason: EndReason::Stopped, code: None, signal: Some(15), ..end(0) }, Phase::Failed),
    ] {
        let mut state = running(&["a"]);
        state.apply(ended("a", end));
        assert_eq!(state.phase, phase);
    }
}

#[test]
fn what_cannot_be_seen_is_unknown_until_seen_again() {
    let mut state = running(&["a"]);
    state.apply(Event::Unreachable("the shim does not answer".into()));
    assert_eq!(
        (state.phase, &state.containers[0].phase),
        (Phase::Unknown, &ContainerPhase::Unknown)
    );
    let mut back = state.clone();
    let seen = ContainerState {
        phase: ContainerPhase::Running,
        log_dropped_bytes: 3,
        ..ContainerState::waiting("a")
    };
    back.apply(Event::Seen { containers: vec![seen], adopted: true });
    assert_eq!(
        (back.phase, back.adopted, back.is_ready(), back.cause),
        (Phase::Running, true, true, None)
    );
    assert_eq!(back.containers[0].started_at, Some(UnixMicros(5)), "kept");
    state.apply(Event::Lost(cause("Lost")));
    assert_eq!(state.phase, Phase::Failed);
    assert!(
        matches!(&state.containers[0].phase, ContainerPhase::Ended(end) if end.reason == EndReason::Unknown)
    );
}

#[test]
fn an_end_is_the_end() {
    let mut state = running(&["a"]);
    state.apply(ended("a", end(3)));
    let over = state.clone();
    for event in [
        started("a"),
        ended("a", end(0)),
        Event::Scheduled,
        Event::Unreachable("x".into()),
        Event::Lost(cause("Lost")),
        Event::LaunchFailed(cause("x")),
        Event::Seen { containers: over.containers.clone(), adopted: false },
    ] {
        assert!(!state.apply(event.clone()), "{event:?}");
    }
    assert!(state.apply(Event::Delete(cause("Deleted"))));
    assert_eq!(state.phase, Phase::Deleting);
}

#[test]
fn words_read_back() {
    assert!(Phase::ALL.iter().all(|phase| Phase::from_name(phase.name()) == Some(*phase)));
    assert!(
        EndReason::ALL.iter().all(|reason| EndReason::from_name(reason.name()) == Some(*reason))
    );
}

/// Walks every state that can be reached with two containers and checks the invariants on every edge.
#[test]
fn no_state_is_without_an_exit_and_no_event_breaks_an_invariant() {
    let events = || {
        let mut events = vec![
            Event::Scheduled,
            Event::ImagesReady,
            Event::LaunchFailed(cause("StartFailed")),
            Event::Unreachable("?".into()),
            Event::Lost(cause("Lost")),
            Event::Delete(cause("Deleted")),
        ];
        for name in ["a", "b"] {
            events.extend([
                started(name),
                ended(name, end(0)),
                ended(name, end(1)),
                Event::LogDropped { container: name.into(), bytes: 1 },
            ]);
            let seen =
                ContainerState { phase: ContainerPhase::Running, ..ContainerState::waiting(name) };
            events.push(Event::Seen { containers: vec![seen], adopted: true });
        }
        events
    };
    let mut seen = vec![SandboxState::new(["a", "b"])];
    let mut index = 0;
    while index < seen.len() {
        let from = seen[index].clone();
        for event in events() {
            let mut to = from.clone();
            let changed = to.apply(event.clone());
            assert_eq!(changed, to != from);
            if from.phase.is_over() {
                assert!(
                    to.phase == from.phase || to.phase == Phase::Deleting,
                    "{from:?} {event:?}"
                );
            }
            if from.phase == Phase::Deleting {
                assert_eq!(to.phase, Phase::Deleting);
            }
            for (before, after) in from.containers.iter().zip(&to.containers) {
                if matches!(before.phase, ContainerPhase::Ended(_)) {
                    assert_eq!(before.phase, after.phase, "{event:?}");
                }
            }
            assert!(!to.is_ready() || to.phase == Phase::Running);
            if !seen.contains(&to) {
                seen.push(to);
            }
        }
        index += 1;
    }
    assert!(
        Phase::ALL.iter().all(|phase| seen.iter().any(|state| state.phase == *phase)),
        "every phase is reached"
    );
}
