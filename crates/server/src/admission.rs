//! From what a client wrote to a checked specification: every problem of a document, with the path of its field.
//!
//! Pure: no clock, no I/O. The rules themselves are `atoll_model::validate`.

mod container;

use atoll_model::ids::{SandboxName, VolumeName};
use atoll_model::spec::{Class, Container, Network, SandboxSpec, Volume};
use atoll_model::units::Bytes;
use atoll_model::validate::{self as rules, Problem, Problems};
use atoll_wire::rest;

pub(crate) use container::DEFAULT_DISK;
use container::container;

/// The boost of a sandbox that names none.
const DEFAULT_BOOST_SECONDS: u32 = 10;

/// What this node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Strongest first: the first is the default.
    pub(crate) classes: Vec<OfferedClass>,
    /// Not to be had, and why.
    pub(crate) missing: Vec<(Class, String)>,
    /// A network for sandboxes, or why there is none.
    pub(crate) network: Result<(), String>,
}

/// A class that can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfferedClass {
    pub(crate) class: Class,
    pub(crate) image_init: bool,
}

/// A checked request.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    /// `None`: to be made up.
    pub(crate) name: Option<SandboxName>,
    /// Where it will run.
    pub(crate) class: Class,
    /// What is wanted.
    pub(crate) spec: SandboxSpec,
}

/// Checks a request.
pub(crate) fn admit(
    request: &rest::CreateSandbox,
    offer: &Offer,
) -> Result<Admitted, Vec<Problem>> {
    let mut problems = Problems::default();
    let name = request.id.as_deref().and_then(|id| problems.take("id", id.parse::<SandboxName>()));
    labels(&mut problems, &request.metadata);
    let class = class(&mut problems, request.spec.class.as_deref(), offer);
    let spec = specification(&mut problems, &request.spec, class);
    if request.spec.egress {
        egress(&mut problems, class, offer);
    }
    match (class, spec) {
        (Some(class), Some(spec)) if problems.is_empty() => {
            Ok(Admitted { name, class: class.class, spec })
        }
        _ => Err(problems.into_vec()),
    }
}

/// Reads a specification that was admitted before, by this or an earlier version: what the node offers now does not matter.
pub(crate) fn read_admitted(spec: &rest::SandboxSpec) -> Result<SandboxSpec, Vec<Problem>> {
    let mut problems = Problems::default();
    match specification(&mut problems, spec, None) {
        Some(spec) if problems.is_empty() => Ok(spec),
        _ => Err(problems.into_vec()),
    }
}

fn labels(problems: &mut Problems, metadata: &rest::Metadata) {
    if metadata.labels.len() > rules::MAX_LABELS {
        problems.add(
            "metadata.labels",
            format!("are {}, at most {} are allowed", metadata.labels.len(), rules::MAX_LABELS),
        );
    }
    for (key, value) in metadata.labels.iter().take(rules::MAX_LABELS) {
        problems.take(&format!("metadata.labels[{}]", rules::shown(key)), rules::label(key, value));
    }
}

fn class(problems: &mut Problems, wanted: Option<&str>, offer: &Offer) -> Option<OfferedClass> {
    let path = "spec.class";
    let Some(wanted) = wanted else {
        let default = offer.classes.first().copied();
        if default.is_none() {
            problems.add(path, "this node offers no class; see 'atoll doctor'");
        }
        return default;
    };
    let Some(class) = Class::from_name(wanted) else {
        // Class sim isolates nothing: nobody is led to it.
        let isolating = Class::ALL.into_iter().filter(|class| *class != Class::Sim);
        let names: Vec<&str> = isolating.map(Class::name).collect();
        problems.add(
            path,
            format!("{} is no class; known: {}", rules::shown(wanted), names.join(", ")),
        );
        return None;
    };
    let offered = offer.classes.iter().find(|it| it.class == class).copied();
    if offered.is_none() {
        let why = offer
            .missing
            .iter()
            .find(|(missing, _)| *missing == class)
            .map_or("it is not set up", |(_, why)| why.as_str());
        problems.add(path, format!("{wanted} cannot be had on this node: {why}"));
    }
    offered
}

fn specification(
    problems: &mut Problems,
    spec: &rest::SandboxSpec,
    class: Option<OfferedClass>,
) -> Option<SandboxSpec> {
    not_enforced(problems, spec);
    let ttl_seconds = ttl(problems, spec.ttl_seconds);
    let hostname =
        spec.hostname.as_deref().map(|text| problems.take("spec.hostname", rules::hostname(text)));
    let boost_seconds = spec.boost_seconds.unwrap_or(DEFAULT_BOOST_SECONDS);
    if boost_seconds > rules::MAX_BOOST_SECONDS {
        problems.add(
            "spec.boost_seconds",
            format!("is {boost_seconds}, at most {} are allowed", rules::MAX_BOOST_SECONDS),
        );
    }
    let shm_size = spec.shm_size.as_deref().map(|text| {
        problems.take("spec.shm_size", rules::bytes_between(text, Bytes(4096), rules::MAX_BYTES))
    });
    let volumes = volumes(problems, &spec.volumes);
    let containers = containers(problems, spec, class);
    Some(SandboxSpec {
        class: spec.class.as_deref().and_then(Class::from_name),
        ttl_seconds,
        detach_ttl_seconds: spec.detach_ttl_seconds,
        hostname: hostname.flatten(),
        boost_seconds,
        shm_size: shm_size.flatten(),
        network: if spec.egress { Network::World } else { Network::Loopback },
        volumes,
        containers: containers?,
    })
}

fn not_enforced(problems: &mut Problems, spec: &rest::SandboxSpec) {
    if !spec.ports.is_empty() {
        problems.not_enforced("spec.ports", "published ports");
    }
    if spec.readiness_probe.is_some() {
        problems.not_enforced("spec.readiness_probe", "readiness probes");
    }
    if !spec.node_selector.is_empty() {
        problems.not_enforced("spec.node_selector", "the choice of a node");
    }
}

fn egress(problems: &mut Problems, class: Option<OfferedClass>, offer: &Offer) {
    match (class.map(|it| it.class), &offer.network) {
        (Some(Class::Sim), _) => {
            problems.not_enforced("spec.egress", "outbound traffic (class sim has no network)");
        }
        (_, Err(why)) => problems.not_enforced("spec.egress", &format!("outbound traffic ({why})")),
        (_, Ok(())) => {}
    }
}

fn ttl(problems: &mut Problems, seconds: i64) -> Option<u64> {
    match seconds {
        0 => None,
        1..=rules::MAX_TTL_SECONDS => u64::try_from(seconds).ok(),
        _ => {
            problems.add(
                "spec.ttl_seconds",
                format!(
                    "is {seconds}; allowed are 0 (never) to {} (ten years)",
                    rules::MAX_TTL_SECONDS
                ),
            );
            None
        }
    }
}

fn volumes(problems: &mut Problems, volumes: &[rest::VolumeSpec]) -> Vec<Volume> {
    if volumes.len() > rules::MAX_MOUNTS {
        problems.add(
            "spec.volumes",
            format!("are {}, at most {} are allowed", volumes.len(), rules::MAX_MOUNTS),
        );
        return Vec::new();
    }
    for index in rules::repeated(volumes.iter().map(|it| it.name.as_str())) {
        problems.add(
            format!("spec.volumes[{index}].name"),
            format!("{} is there before", rules::shown(&volumes[index].name)),
        );
    }
    let one = |(index, volume): (usize, &rest::VolumeSpec)| {
        let path = format!("spec.volumes[{index}]");
        let name = problems.take(&format!("{path}.name"), volume.name.parse::<VolumeName>());
        let size = rules::bytes_between(&volume.ephemeral_storage, Bytes(4096), rules::MAX_BYTES);
        let size = problems.take(&format!("{path}.ephemeral_storage"), size);
        Some(Volume { name: name?, size: size? })
    };
    volumes.iter().enumerate().filter_map(one).collect()
}

fn containers(
    problems: &mut Problems,
    spec: &rest::SandboxSpec,
    class: Option<OfferedClass>,
) -> Option<Vec<Container>> {
    let wanted = &spec.containers;
    if wanted.is_empty() {
        problems.add("spec.containers", "must have at least one container");
        return None;
    }
    if wanted.len() > rules::MAX_CONTAINERS {
        problems.add(
            "spec.containers",
            format!("are {}, at most {} are allowed", wanted.len(), rules::MAX_CONTAINERS),
        );
        return None;
    }
    for index in rules::repeated(wanted.iter().map(|it| it.name.as_str())) {
        problems.add(
            format!("spec.containers[{index}].name"),
            format!("{} is there before", rules::shown(&wanted[index].name)),
        );
    }
    // All are walked, so that every problem is told.
    let read: Vec<_> =
        (0..wanted.len()).map(|index| container(problems, spec, index, class)).collect();
    read.into_iter().collect()
}

#[cfg(test)]
mod tests;
