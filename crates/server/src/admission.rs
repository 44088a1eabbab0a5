//! From what a client wrote to a checked specification: every problem of a document, with the path of its field.
//!
//! Pure: no clock, no I/O. The rules themselves are `atoll_model::validate`.

use atoll_model::ids::{ContainerName, SandboxName, VolumeName};
use atoll_model::spec::{
    Class, Command, Container, Init, Network, PullPolicy, Resources, SandboxSpec, Signal, Tmpfs,
    Volume, VolumeMount,
};
use atoll_model::units::{Bytes, MilliCpu};
use atoll_model::validate::{self as rules, Problem, Problems};
use atoll_sys::capabilities::{self, CONTAINER_DEFAULT};
use atoll_wire::rest;

/// CPU of a container that names none.
const DEFAULT_CPU: MilliCpu = MilliCpu(1000);
/// Memory of a container that names none.
const DEFAULT_MEMORY: Bytes = Bytes::from_mib(512);
/// Disk of a container that names none. SOURCE: sandboxd-o.
pub(crate) const DEFAULT_DISK: Bytes = Bytes::from_mib(128);
/// Processes of a container that names no limit. SOURCE: sandboxd-o has 128 fixed.
const DEFAULT_PIDS: u64 = 128;
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

fn container(
    problems: &mut Problems,
    spec: &rest::SandboxSpec,
    index: usize,
    class: Option<OfferedClass>,
) -> Option<Container> {
    let wanted = &spec.containers[index];
    let path = format!("spec.containers[{index}]");
    let at = |field: &str| format!("{path}.{field}");
    let name = problems.take(&at("name"), wanted.name.parse::<ContainerName>());
    let image = problems.take(&at("image"), wanted.image.parse());
    let pull = choice(
        problems,
        &at("pull"),
        wanted.pull.as_deref(),
        &[
            ("missing", PullPolicy::Missing),
            ("always", PullPolicy::Always),
            ("never", PullPolicy::Never),
        ],
    );
    let init = choice(
        problems,
        &at("init"),
        wanted.init.as_deref(),
        &[("guest", Init::Guest), ("image", Init::Image)],
    );
    if let (Init::Image, Some(class)) = (init, class)
        && !class.image_init
    {
        problems
            .add(at("init"), format!("class {} has no 'image'; leave it out", class.class.name()));
    }
    if init == Init::Image && wanted.tty {
        let message = "a terminal is made by atoll's own first process, which init 'image' leaves out: use one of the two";
        problems.add(at("tty"), message);
    }
    let command = command(problems, &path, wanted);
    let env = env(problems, &at("env"), &wanted.env);
    let work_dir = wanted.work_dir.as_deref().filter(|text| !text.is_empty());
    let work_dir = work_dir.map(|text| problems.take(&at("work_dir"), rules::absolute_path(text)));
    let user = wanted.user.as_deref().filter(|text| !text.is_empty());
    let user = user.map(|text| problems.take(&at("user"), rules::user(text)));
    let cap_drop = security(problems, &path, wanted);
    let (tmpfs, volume_mounts) = mounts(problems, &path, wanted, &spec.volumes);
    let resources = resources(problems, &at("resource"), &wanted.resource);
    let stop_signal = wanted.stop_signal.as_deref().map(|text| {
        let signal = Signal::parse(text);
        if signal.is_none() {
            problems.add(
                at("stop_signal"),
                format!("{} is no signal; write for example SIGTERM or 15", rules::shown(text)),
            );
        }
        signal
    });
    Some(Container {
        name: name?,
        image: image?,
        pull,
        command,
        env,
        work_dir: work_dir.flatten(),
        user: user.flatten(),
        cap_drop,
        read_only: wanted.read_only,
        tmpfs,
        volume_mounts,
        resources: resources?,
        init,
        stdin: wanted.stdin,
        tty: wanted.tty,
        await_attach: wanted.await_attach,
        stop_signal: stop_signal.flatten(),
    })
}

fn choice<T: Copy + Default>(
    problems: &mut Problems,
    path: &str,
    text: Option<&str>,
    known: &[(&str, T)],
) -> T {
    let Some(text) = text else { return T::default() };
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return *value;
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    problems.add(
        path,
        format!("{} is not known; write one of: {}", rules::shown(text), names.join(", ")),
    );
    T::default()
}

fn command(problems: &mut Problems, path: &str, wanted: &rest::ContainerSpec) -> Command {
    let bytes: usize = wanted
        .command
        .iter()
        .chain(&wanted.args)
        .chain(&wanted.env)
        .map(|word| word.len() + 1)
        .sum();
    if bytes > rules::MAX_EXEC_BYTES {
        problems.add(
            path,
            format!(
                "command, args and env have {bytes} bytes, at most {} are allowed",
                rules::MAX_EXEC_BYTES
            ),
        );
        return Command::Image;
    }
    let mut words = Vec::with_capacity(wanted.command.len() + wanted.args.len());
    for (field, list) in [("command", &wanted.command), ("args", &wanted.args)] {
        for (index, word) in list.iter().enumerate() {
            words.extend(
                problems.take(&format!("{path}.{field}[{index}]"), rules::command_word(word)),
            );
        }
    }
    match words.first() {
        None => Command::Image,
        Some(program) => {
            if program.is_empty() {
                problems.add(path, "the command's first word is empty: it names the program");
            }
            Command::Replace(words)
        }
    }
}

fn env(
    problems: &mut Problems,
    path: &str,
    entries: &[String],
) -> Vec<atoll_model::spec::EnvEntry> {
    if entries.len() > rules::MAX_ENV_ENTRIES {
        problems.add(
            path,
            format!("are {}, at most {} are allowed", entries.len(), rules::MAX_ENV_ENTRIES),
        );
        return Vec::new();
    }
    let one = |(index, text): (usize, &String)| {
        problems.take(&format!("{path}[{index}]"), rules::env_entry(text))
    };
    entries.iter().enumerate().filter_map(one).collect()
}

fn security(problems: &mut Problems, path: &str, wanted: &rest::ContainerSpec) -> Vec<String> {
    let known: Vec<&str> = (0..64).filter_map(capabilities::name).collect();
    let default = CONTAINER_DEFAULT.map(|(name, _)| name);
    for (index, name) in wanted.cap_add.iter().take(rules::MAX_MOUNTS).enumerate() {
        problems.take(
            &format!("{path}.cap_add[{index}]"),
            rules::added_capability(name, &known, &default),
        );
    }
    for (index, text) in wanted.security_opt.iter().take(rules::MAX_MOUNTS).enumerate() {
        problems.take(&format!("{path}.security_opt[{index}]"), rules::security_option(text));
    }
    for (field, count) in [
        ("cap_add", wanted.cap_add.len()),
        ("cap_drop", wanted.cap_drop.len()),
        ("security_opt", wanted.security_opt.len()),
    ] {
        if count > rules::MAX_MOUNTS {
            problems.add(
                format!("{path}.{field}"),
                format!("are {count}, at most {} are allowed", rules::MAX_MOUNTS),
            );
        }
    }
    let drop = |(index, name): (usize, &String)| {
        problems.take(&format!("{path}.cap_drop[{index}]"), rules::dropped_capability(name, &known))
    };
    wanted.cap_drop.iter().take(rules::MAX_MOUNTS).enumerate().filter_map(drop).collect()
}

fn mounts(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ContainerSpec,
    volumes: &[rest::VolumeSpec],
) -> (Vec<Tmpfs>, Vec<VolumeMount>) {
    let count = wanted.tmpfs.len() + wanted.volume_mounts.len();
    if count > rules::MAX_MOUNTS {
        problems
            .add(path, format!("has {count} mounts, at most {} are allowed", rules::MAX_MOUNTS));
        return (Vec::new(), Vec::new());
    }
    let paths = wanted
        .volume_mounts
        .iter()
        .map(|it| it.mount_path.as_str())
        .chain(wanted.tmpfs.iter().map(|it| it.mount_path.as_str()));
    for index in rules::repeated(paths) {
        let field = match index.checked_sub(wanted.volume_mounts.len()) {
            None => format!("{path}.volume_mounts[{index}].mount_path"),
            Some(index) => format!("{path}.tmpfs[{index}].mount_path"),
        };
        problems.add(field, "something else is mounted there");
    }
    let mut tmpfs = Vec::new();
    for (index, it) in wanted.tmpfs.iter().enumerate() {
        let at = format!("{path}.tmpfs[{index}]");
        let target = problems.take(
            &format!("{at}.mount_path"),
            rules::mount_path(&it.mount_path, rules::MountPathRule::Tmpfs),
        );
        let options = rules::tmpfs_options(it.options.as_deref().unwrap_or_default());
        let options = problems.take(&format!("{at}.options"), options);
        if let (Some(path), Some(options)) = (target, options) {
            let rules::TmpfsOptions { size, mode, read_only, no_exec } = options;
            tmpfs.push(Tmpfs { path, size, mode, read_only, no_exec });
        }
    }
    let mut volume_mounts = Vec::new();
    for (index, it) in wanted.volume_mounts.iter().enumerate() {
        let at = format!("{path}.volume_mounts[{index}]");
        let target = problems.take(
            &format!("{at}.mount_path"),
            rules::mount_path(&it.mount_path, rules::MountPathRule::Volume),
        );
        let name = problems.take(&format!("{at}.name"), it.name.parse::<VolumeName>());
        if !volumes.iter().any(|volume| volume.name == it.name) {
            problems.add(
                format!("{at}.name"),
                format!("{} is not declared in spec.volumes", rules::shown(&it.name)),
            );
        }
        if let (Some(path), Some(name)) = (target, name) {
            volume_mounts.push(VolumeMount { name, path, read_only: it.read_only });
        }
    }
    (tmpfs, volume_mounts)
}

fn resources(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ResourceSpec,
) -> Option<Resources> {
    let cpu = wanted
        .cpu
        .as_deref()
        .map_or(Some(DEFAULT_CPU), |text| problems.take(&format!("{path}.cpu"), rules::cpu(text)));
    let mut bytes = |field: &str, text: Option<&str>, default, least| match text {
        None => Some(default),
        Some(text) => problems
            .take(&format!("{path}.{field}"), rules::bytes_between(text, least, rules::MAX_BYTES)),
    };
    let memory = bytes("memory", wanted.memory.as_deref(), DEFAULT_MEMORY, rules::MIN_MEMORY);
    let disk = bytes(
        "ephemeral_storage",
        wanted.ephemeral_storage.as_deref(),
        DEFAULT_DISK,
        rules::MIN_DISK,
    );
    let pids = match wanted.pids {
        None => Some(DEFAULT_PIDS),
        Some(pids) if rules::PIDS_RANGE.contains(&pids) => u64::try_from(pids).ok(),
        Some(pids) => {
            problems.add(
                format!("{path}.pids"),
                format!("is {pids}; allowed are 1 to {}", rules::PIDS_RANGE.end()),
            );
            None
        }
    };
    Some(Resources { cpu: cpu?, memory: memory?, disk: disk?, pids: pids? })
}

#[cfg(test)]
mod tests;
