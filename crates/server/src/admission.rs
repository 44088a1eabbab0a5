//! From what a client wrote to a checked specification: every problem of a document, with the path of its field.
//!
//! Pure: no clock, no I/O. The rules themselves are `atoll_model::validate`.

mod container;
mod network;

use std::collections::BTreeMap;

use atoll_model::dependencies;
use atoll_model::egress::Grant;
use atoll_model::ids::{SandboxName, VolumeName};
use atoll_model::spec::{
    Class, Container, Network, ReadinessProbe, SandboxSpec, Volume, VolumeSource,
};
use atoll_model::units::Bytes;
use atoll_model::validate::{self as rules, Problem, Problems};
use atoll_wire::rest;

use crate::config::Privileges;
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
    /// Private destinations that sandboxes may ask for.
    pub(crate) grants: Vec<Grant>,
}

/// A class that can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfferedClass {
    pub(crate) class: Class,
    pub(crate) image_init: bool,
    pub(crate) privileges: Privileges,
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
    needs_of_network(&mut problems, &request.spec, class, offer);
    if let Some(spec) = &spec {
        network::refuse_grants(&mut problems, &spec.grants, &offer.grants);
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

pub(crate) fn labels(problems: &mut Problems, metadata: &rest::Metadata) {
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

/// A document says of which kind it is, or nothing.
pub(crate) fn kind_of_object(
    problems: &mut Problems,
    api_version: Option<&str>,
    kind: Option<&str>,
    wanted: &str,
) {
    if api_version.is_some_and(|version| version != rest::API_VERSION) {
        problems.add("apiVersion", format!("must be {:?}", rest::API_VERSION));
    }
    if let Some(kind) = kind.filter(|kind| !kind.eq_ignore_ascii_case(wanted)) {
        problems.add("kind", format!("{} is not {wanted}", rules::shown(kind)));
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
    let node_selector = node_selector(problems, spec);
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
    let ports = network::ports(problems, &spec.ports);
    let grants = network::grants(problems, &spec.egress_allow);
    let probes = probes(problems, spec);
    let reached =
        !ports.is_empty() || !grants.is_empty() || probes.iter().any(ReadinessProbe::needs_network);
    Some(SandboxSpec {
        class: spec.class.as_deref().and_then(Class::from_name),
        ttl_seconds,
        detach_ttl_seconds: spec.detach_ttl_seconds,
        hostname: hostname.flatten(),
        boost_seconds,
        shm_size: shm_size.flatten(),
        network: match (spec.egress, reached) {
            (true, _) => Network::World,
            (false, true) => Network::Isolated,
            (false, false) => Network::Loopback,
        },
        grants,
        ports,
        node_selector,
        probes,
        volumes,
        containers: containers?,
    })
}

/// Labels that a node must have.
fn node_selector(problems: &mut Problems, spec: &rest::SandboxSpec) -> BTreeMap<String, String> {
    let wanted = &spec.node_selector;
    if wanted.len() > rules::MAX_LABELS {
        let message = format!("are {}, at most {} are allowed", wanted.len(), rules::MAX_LABELS);
        problems.add("spec.node_selector", message);
        return BTreeMap::new();
    }
    for (key, value) in wanted {
        let path = format!("spec.node_selector[{}]", rules::shown(key));
        problems.take(&path, rules::label(key, value));
    }
    wanted.clone()
}

/// The sandbox's own probe first, then those of its containers in order.
fn probes(problems: &mut Problems, spec: &rest::SandboxSpec) -> Vec<ReadinessProbe> {
    let own = spec.readiness_probe.as_ref();
    let own = own.and_then(|it| network::probe(problems, "spec.readiness_probe", it, None));
    let mut probes: Vec<ReadinessProbe> = own.into_iter().collect();
    for (index, container) in spec.containers.iter().enumerate().take(rules::MAX_CONTAINERS) {
        // A name that cannot be is told where it stands.
        let (Some(wanted), Ok(name)) = (&container.readiness_probe, container.name.parse()) else {
            continue;
        };
        let path = format!("spec.containers[{index}].readiness_probe");
        probes.extend(network::probe(problems, &path, wanted, Some(&name)));
    }
    probes
}

/// What a sandbox wants of a network is refused where there is none.
fn needs_of_network(
    problems: &mut Problems,
    spec: &rest::SandboxSpec,
    class: Option<OfferedClass>,
    offer: &Offer,
) {
    let why = match (class.map(|it| it.class), &offer.network) {
        (Some(Class::Sim), _) => "class sim has no network",
        (_, Err(why)) => why,
        (_, Ok(())) => return,
    };
    if spec.egress {
        problems.not_enforced("spec.egress", &format!("outbound traffic ({why})"));
    }
    if !spec.egress_allow.is_empty() {
        problems.not_enforced("spec.egress_allow", &format!("outbound traffic ({why})"));
    }
    if !spec.ports.is_empty() {
        problems.not_enforced("spec.ports", &format!("published ports ({why})"));
    }
    let asks = |probe: &Option<rest::ProbeSpec>| {
        probe.as_ref().is_some_and(|probe| matches!(probe.protocol.as_str(), "tcp" | "http"))
    };
    let of_network = format!("probes over the network ({why})");
    if asks(&spec.readiness_probe) {
        problems.not_enforced("spec.readiness_probe", &of_network);
    }
    for (index, container) in spec.containers.iter().enumerate().take(rules::MAX_CONTAINERS) {
        if asks(&container.readiness_probe) {
            let path = format!("spec.containers[{index}].readiness_probe");
            problems.not_enforced(path, &of_network);
        }
    }
}

/// A new time to live, counted from now.
pub(crate) fn patched_ttl(patch: &rest::PatchSandbox) -> Result<Option<u64>, Vec<Problem>> {
    let mut problems = Problems::default();
    let ttl = ttl(&mut problems, patch.spec.ttl_seconds);
    if problems.is_empty() { Ok(ttl) } else { Err(problems.into_vec()) }
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
        let source = rules::volume_source(rules::WrittenSource {
            ephemeral_storage: volume.ephemeral_storage.as_deref(),
            volume: volume.volume.as_deref(),
        });
        let source = source.map_err(|(field, refused)| {
            let at = if field.is_empty() { path.clone() } else { format!("{path}.{field}") };
            problems.add(at, refused.to_string());
        });
        Some(Volume { name: name?, source: source.ok()? })
    };
    let read: Vec<Volume> = volumes.iter().enumerate().filter_map(one).collect();
    let named = read.iter().filter(|it| matches!(it.source, VolumeSource::Named(_))).count();
    if named > rules::MAX_NAMED_VOLUMES {
        let most = rules::MAX_NAMED_VOLUMES;
        problems.add("spec.volumes", format!("name {named} volumes, at most {most} are allowed"));
    }
    read
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
    let names: Vec<&str> = wanted.iter().map(|it| it.name.as_str()).collect();
    let depends_on: Vec<&[String]> = wanted.iter().map(|it| it.depends_on.as_slice()).collect();
    for (index, at, why) in dependencies::problems(&names, &depends_on) {
        problems.add(format!("spec.containers[{index}].depends_on[{at}]"), why);
    }
    // All are walked, so that every problem is told.
    let read: Vec<_> =
        (0..wanted.len()).map(|index| container(problems, spec, index, class)).collect();
    read.into_iter().collect()
}

#[cfg(test)]
mod tests;
