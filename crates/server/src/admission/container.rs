//! One container of a request: every problem of it, with the path of its field.

use atoll_model::ids::{ContainerName, VolumeName};
use atoll_model::spec::{
    Class, Command, Container, EnvEntry, Init, PullPolicy, Resources, Signal, Tmpfs, VolumeMount,
};
use atoll_model::units::{Bytes, MilliCpu};
use atoll_model::validate::{self as rules, Problems};
use atoll_sys::capabilities::{self, CapabilitySet};
use atoll_wire::rest;

use super::OfferedClass;

/// CPU of a container that names none.
pub(super) const DEFAULT_CPU: MilliCpu = MilliCpu(1000);
/// Memory of a container that names none.
pub(super) const DEFAULT_MEMORY: Bytes = Bytes::from_mib(512);
/// Disk of a container that names none. SOURCE: sandboxd-o.
pub(crate) const DEFAULT_DISK: Bytes = Bytes::from_mib(128);
/// Processes of a container that names no limit. SOURCE: sandboxd-o has 128 fixed.
const DEFAULT_PIDS: u64 = 128;

/// The container of that index, or `None` where something about it is noted as a problem.
pub(super) fn container(
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
    let pull = pull(problems, &at("pull"), wanted.pull.as_deref());
    let init = init(problems, &path, wanted, class);
    let command = command(problems, &path, wanted);
    let env = env(problems, &at("env"), &wanted.env);
    let work_dir =
        where_given(problems, &at("work_dir"), wanted.work_dir.as_deref(), rules::absolute_path);
    let user = where_given(problems, &at("user"), wanted.user.as_deref(), rules::user);
    let security = security(problems, &path, wanted, class);
    let (tmpfs, volume_mounts) = mounts(problems, &path, wanted, &spec.volumes);
    let resources = resources(problems, &at("resource"), &wanted.resource);
    let stop_signal = stop_signal(problems, &at("stop_signal"), wanted.stop_signal.as_deref());
    Some(Container {
        name: name?,
        image: image?,
        pull,
        command,
        env,
        work_dir,
        user,
        cap_add: security.cap_add,
        cap_drop: security.cap_drop,
        new_privileges: security.new_privileges,
        read_only: wanted.read_only,
        tmpfs,
        volume_mounts,
        resources: resources?,
        init,
        stdin: wanted.stdin,
        tty: wanted.tty,
        await_attach: wanted.await_attach,
        stop_signal,
        depends_on: wanted.depends_on.iter().filter_map(|name| name.parse().ok()).collect(),
    })
}

fn pull(problems: &mut Problems, path: &str, text: Option<&str>) -> PullPolicy {
    let known = [
        ("missing", PullPolicy::Missing),
        ("always", PullPolicy::Always),
        ("never", PullPolicy::Never),
    ];
    choice(problems, path, text, &known)
}

fn init(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ContainerSpec,
    class: Option<OfferedClass>,
) -> Init {
    let at = format!("{path}.init");
    let known = [("guest", Init::Guest), ("image", Init::Image)];
    let init = choice(problems, &at, wanted.init.as_deref(), &known);
    if let (Init::Image, Some(class)) = (init, class)
        && !class.image_init
    {
        problems.add(at, format!("class {} has no 'image'; leave it out", class.class.name()));
    }
    if init == Init::Image && wanted.tty {
        let message = "a terminal is made by atoll's own first process, which init 'image' leaves out: use one of the two";
        problems.add(format!("{path}.tty"), message);
    }
    if init == Init::Image && !wanted.depends_on.is_empty() {
        let message = "init 'image' starts the command with its container: only atoll's own first process can hold it back; use one of the two";
        problems.add(format!("{path}.depends_on"), message);
    }
    init
}

/// What a rule makes of a text; an empty one is as good as none.
fn where_given<T, E: std::fmt::Display>(
    problems: &mut Problems,
    path: &str,
    text: Option<&str>,
    rule: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = text.filter(|text| !text.is_empty())?;
    problems.take(path, rule(text))
}

fn stop_signal(problems: &mut Problems, path: &str, text: Option<&str>) -> Option<Signal> {
    let text = text?;
    let signal = Signal::parse(text);
    if signal.is_none() {
        let shown = rules::shown(text);
        problems.add(path, format!("{shown} is no signal; write for example SIGTERM or 15"));
    }
    signal
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

fn env(problems: &mut Problems, path: &str, entries: &[String]) -> Vec<EnvEntry> {
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

/// What a container has and may do beyond or short of the default.
struct Security {
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    new_privileges: bool,
}

/// Without a class nothing is allowed or refused any more: it was admitted before.
fn security(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ContainerSpec,
    class: Option<OfferedClass>,
) -> Security {
    let known: Vec<&str> = (0..64).filter_map(capabilities::name).collect();
    let allowed = |name: &str| class.is_none_or(|it| may_add(it, name));
    let add = |problems: &mut Problems, (index, name): (usize, &String)| {
        let added = rules::added_capability(name, &known, allowed);
        problems.take(&format!("{path}.cap_add[{index}]"), added)
    };
    let most = rules::MAX_MOUNTS;
    let cap_add =
        wanted.cap_add.iter().take(most).enumerate().filter_map(|it| add(problems, it)).collect();
    let may_gain = class.map_or(Ok(()), may_gain_privileges);
    let mut new_privileges = false;
    for (index, text) in wanted.security_opt.iter().take(most).enumerate() {
        let said = rules::security_option(text, may_gain);
        let said = problems.take(&format!("{path}.security_opt[{index}]"), said);
        new_privileges = said.flatten().map_or(new_privileges, |none| !none);
    }
    for (field, count) in [
        ("cap_add", wanted.cap_add.len()),
        ("cap_drop", wanted.cap_drop.len()),
        ("security_opt", wanted.security_opt.len()),
    ] {
        if count > most {
            let message = format!("are {count}, at most {most} are allowed");
            problems.add(format!("{path}.{field}"), message);
        }
    }
    let drop = |(index, name): (usize, &String)| {
        problems.take(&format!("{path}.cap_drop[{index}]"), rules::dropped_capability(name, &known))
    };
    let cap_drop = wanted.cap_drop.iter().take(most).enumerate().filter_map(drop).collect();
    Security { cap_add, cap_drop, new_privileges }
}

/// The default set is everybody's; more is the node's to allow, by name. `ALL` only where all is allowed.
fn may_add(class: OfferedClass, name: &str) -> bool {
    let Some(number) = capabilities::number(name) else {
        return name == "ALL" && class.privileges.capabilities == CapabilitySet::ALL;
    };
    CapabilitySet::container_default().contains(number)
        || class.privileges.capabilities.contains(number)
}

fn may_gain_privileges(class: OfferedClass) -> Result<(), &'static str> {
    match (class.class, class.privileges.new_privileges) {
        (Class::Gvisor, _) => Err("class gvisor keeps it on always"),
        (_, true) => Ok(()),
        (_, false) => Err(
            "this node does not allow it: its operator can, with 'atoll up --allow-new-privileges'",
        ),
    }
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
    (
        tmpfs(problems, path, &wanted.tmpfs),
        volume_mounts(problems, path, &wanted.volume_mounts, volumes),
    )
}

fn tmpfs(problems: &mut Problems, path: &str, wanted: &[rest::TmpfsSpec]) -> Vec<Tmpfs> {
    let mut tmpfs = Vec::new();
    for (index, it) in wanted.iter().enumerate() {
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
    tmpfs
}

fn volume_mounts(
    problems: &mut Problems,
    path: &str,
    wanted: &[rest::VolumeMountSpec],
    volumes: &[rest::VolumeSpec],
) -> Vec<VolumeMount> {
    let mut volume_mounts = Vec::new();
    for (index, it) in wanted.iter().enumerate() {
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
    volume_mounts
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
