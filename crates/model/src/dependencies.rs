//! The order in which the containers of a sandbox start: what depends on what, when it may start, and when it never will.
//!
//! A dependency is **ready** once its own readiness probe has passed, and where it has none, once its command was exec'ed. It stays ready
//! for those that depend on it, however it ends later: a container that prepares something and exits needs no probe, and one with a probe
//! must pass it before it ends, also where it ends with 0. So the order is the same whoever looked on, and when.

use crate::spec::SandboxSpec;
use crate::state::{Cause, ContainerPhase, ContainerState, SandboxState};

/// The reason of a sandbox that fails because a dependency ended before it was ready.
pub const DEPENDENCY_FAILED: &str = "DependencyFailed";

/// A wish that cannot be: of which container (index), which of its dependencies (index), and why.
pub type Problem = (usize, usize, String);

/// What is wrong with the dependencies of containers: `wanted[i]` are those of the container named `names[i]`.
#[must_use]
pub fn problems(names: &[&str], wanted: &[&[String]]) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, dependencies) in wanted.iter().enumerate() {
        // More than there are containers cannot all be right: the first that is too much is told.
        for (at, dependency) in dependencies.iter().enumerate().take(names.len() + 1) {
            let shown = crate::validate::shown(dependency);
            let why = if dependencies[..at].contains(dependency) {
                format!("{shown} is there before")
            } else if names.get(index) == Some(&dependency.as_str()) {
                "a container cannot depend on itself".to_owned()
            } else if !names.contains(&dependency.as_str()) {
                format!("{shown} is no container of this sandbox")
            } else if leads_to(names, wanted, dependency, index) {
                let name = names.get(index).copied().unwrap_or_default();
                format!("{shown} depends on {name} itself: none of them could ever start")
            } else {
                continue;
            };
            found.push((index, at, why));
        }
    }
    found
}

/// Whether a container depends, over however many others, on the one of that index.
fn leads_to(names: &[&str], wanted: &[&[String]], from: &str, to: usize) -> bool {
    let mut seen = vec![false; names.len()];
    let mut left = vec![from];
    while let Some(name) = left.pop() {
        let Some(index) = names.iter().position(|it| *it == name) else { continue };
        if index == to {
            return true;
        }
        if !std::mem::replace(&mut seen[index], true) {
            left.extend(wanted[index].iter().map(String::as_str));
        }
    }
    false
}

impl SandboxState {
    /// A sandbox of that specification that was just accepted.
    #[must_use]
    pub fn of_spec(spec: &SandboxSpec) -> Self {
        let mut state = Self::new(spec.containers.iter().map(|it| it.name.as_str()));
        for (container, wanted) in state.containers.iter_mut().zip(&spec.containers) {
            container.depends_on = wanted.depends_on.iter().map(ToString::to_string).collect();
            container.is_probed =
                spec.probes.iter().any(|probe| probe.container.as_ref() == Some(&wanted.name));
        }
        if spec.is_gated() { state.gated() } else { state }
    }

    /// What a container that was not started waits for: those of its dependencies that are not ready.
    #[must_use]
    pub fn waits_for<'a>(&self, container: &'a ContainerState) -> Vec<&'a str> {
        if container.phase != ContainerPhase::Waiting {
            return Vec::new();
        }
        let ready = |name: &str| self.containers.iter().any(|it| it.name == name && it.was_ready());
        container.depends_on.iter().map(String::as_str).filter(|name| !ready(name)).collect()
    }

    /// Containers that are held and may start now.
    #[must_use]
    pub fn startable(&self) -> Vec<&str> {
        let may = |it: &&ContainerState| {
            it.phase == ContainerPhase::Waiting
                && !it.depends_on.is_empty()
                && self.waits_for(it).is_empty()
        };
        self.containers.iter().filter(may).map(|it| it.name.as_str()).collect()
    }

    /// Why a container can never start, where a dependency of one has ended before it was ready.
    #[must_use]
    pub fn broken_dependency(&self) -> Option<Cause> {
        for waiting in &self.containers {
            for name in self.waits_for(waiting) {
                let mut containers = self.containers.iter();
                let Some(broken) = containers.find(|it| it.name == name) else { continue };
                let ContainerPhase::Ended(end) = &broken.phase else { continue };
                let how = crate::state::describe_end(name, end);
                let what = if broken.started_at.is_none() { "could start" } else { "was ready" };
                let message = format!(
                    "container {} was never started: it depends on {name}, which ended before it {what} ({how})",
                    waiting.name
                );
                return Some(Cause { reason: DEPENDENCY_FAILED.to_owned(), message });
            }
        }
        None
    }
}

impl ContainerState {
    /// It runs, or ran.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running | ContainerPhase::Ended(_))
    }

    /// Those that depend on it may start.
    #[must_use]
    pub const fn was_ready(&self) -> bool {
        if self.is_probed { self.has_passed } else { self.started_at.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{End, EndReason, Event, Phase};
    use crate::units::UnixMicros;

    fn checked(containers: &[(&str, &[&str])]) -> Vec<(usize, usize, String)> {
        let names: Vec<&str> = containers.iter().map(|(name, _)| *name).collect();
        let wanted: Vec<Vec<String>> = containers
            .iter()
            .map(|(_, on)| on.iter().map(|name| (*name).to_owned()).collect())
            .collect();
        let wanted: Vec<&[String]> = wanted.iter().map(Vec::as_slice).collect();
        problems(&names, &wanted)
    }

    #[test]
    fn what_can_never_start_is_told_where_it_is_written() {
        assert_eq!(checked(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]), []);
        let places = |containers: &[(&str, &[&str])]| -> Vec<(usize, usize)> {
            checked(containers).into_iter().map(|(container, at, _)| (container, at)).collect()
        };
        assert_eq!(places(&[("a", &["b", "nobody"]), ("b", &[])]), [(0, 1)], "not known");
        assert_eq!(places(&[("a", &["a"])]), [(0, 0)], "itself");
        assert_eq!(places(&[("a", &["b", "b"]), ("b", &[])]), [(0, 1)], "twice");
        let circle = places(&[("a", &["b"]), ("b", &["c"]), ("c", &["d", "a"]), ("d", &[])]);
        assert_eq!(circle, [(0, 0), (1, 0), (2, 1)], "each side of a circle, and no other");
        // Leads into a circle without being of it.
        assert_eq!(places(&[("x", &["a"]), ("a", &["b"]), ("b", &["a"])]), [(1, 0), (2, 0)]);
    }

    /// `web` depends on `db`, which has a probe, and on `files`, which has none.
    fn shop() -> SandboxState {
        let mut state = SandboxState::new(["db", "files", "web"]);
        state.containers[0].is_probed = true;
        state.containers[2].depends_on = vec!["db".to_owned(), "files".to_owned()];
        state.apply(Event::Scheduled);
        state
    }

    fn started(state: &mut SandboxState, container: &str) {
        state.apply(Event::Started { container: container.to_owned(), at: UnixMicros(7) });
    }

    fn ended(state: &mut SandboxState, container: &str, code: i32) {
        let reason = if code == 0 { EndReason::Completed } else { EndReason::Error };
        let end = End { code: Some(code), reason, ..End::unknown("") };
        state.apply(Event::Ended { container: container.to_owned(), end });
    }

    #[test]
    fn a_container_starts_when_all_it_depends_on_are_ready() {
        let mut state = shop();
        assert_eq!(state.waits_for(&state.containers[2]), ["db", "files"]);
        started(&mut state, "db");
        started(&mut state, "files");
        assert_eq!(state.waits_for(&state.containers[2]), ["db"], "its probe has not passed");
        assert!(state.startable().is_empty());
        state.apply(Event::Passed { container: "db".to_owned() });
        assert_eq!(state.startable(), ["web"]);
        assert_eq!(state.phase, Phase::Scheduled, "not all are started");
        started(&mut state, "web");
        assert!(state.startable().is_empty() && state.waits_for(&state.containers[2]).is_empty());
        assert_eq!(state.phase, Phase::Running);
    }

    #[test]
    fn what_ended_after_it_was_ready_holds_nobody_back() {
        let mut state = shop();
        started(&mut state, "files");
        ended(&mut state, "files", 0);
        started(&mut state, "db");
        state.apply(Event::Passed { container: "db".to_owned() });
        ended(&mut state, "db", 3);
        assert_eq!((state.startable(), state.broken_dependency()), (vec!["web"], None));
    }

    #[test]
    fn what_ended_before_it_was_ready_fails_the_sandbox() {
        for code in [0, 3] {
            let mut state = shop();
            started(&mut state, "db");
            assert_eq!(state.broken_dependency(), None);
            ended(&mut state, "db", code);
            let cause = state.broken_dependency().unwrap();
            assert_eq!(cause.reason, DEPENDENCY_FAILED);
            for part in ["container web", "depends on db", &format!("exit code {code}")] {
                assert!(cause.message.contains(part), "{part}: {}", cause.message);
            }
            state.apply(Event::GivenUp(cause));
            assert_eq!(state.phase, Phase::Failed);
            assert!(matches!(state.containers[2].phase, ContainerPhase::Ended(_)));
        }
        let mut state = shop();
        ended(&mut state, "files", 127);
        assert!(state.broken_dependency().unwrap().message.contains("before it could start"));
    }
}
