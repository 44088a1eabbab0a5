//! What a specification says of its network: private destinations, published ports and probes.

use std::time::Duration;

use atoll_model::egress::{Cidr, Grant, MAX_GRANTS, first_refused};
use atoll_model::ids::ContainerName;
use atoll_model::ports::PortProtocol;
use atoll_model::probe::{Check, Probe};
use atoll_model::spec::{Port, ReadinessProbe};
use atoll_model::validate::{self as rules, Problems};
use atoll_wire::rest;

/// Ports of one sandbox. Guess: more than any image exposes.
const MAX_PORTS: usize = 64;
/// Longest delay, period or time-out of a probe: a day.
const MAX_PROBE_SECONDS: i64 = 86_400;
/// Most tries that a threshold asks for.
const MAX_THRESHOLD: i64 = 10_000;
/// Longest path of a probe.
const MAX_PATH_BYTES: usize = 1024;

/// Published ports.
pub(super) fn ports(problems: &mut Problems, wanted: &[rest::PortSpec]) -> Vec<Port> {
    if wanted.len() > MAX_PORTS {
        let message = format!("are {}, at most {MAX_PORTS} are allowed", wanted.len());
        problems.add("spec.ports", message);
        return Vec::new();
    }
    let one = |(index, port): (usize, &rest::PortSpec)| {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let protocol = protocol(problems, at("protocol"), port.protocol.as_deref())?;
        let container_port = number(problems, &at("container_port"), port.container_port)?;
        let published_port = match port.published_port {
            Some(port) => Some(number(problems, &at("published_port"), port)?),
            None => None,
        };
        Some(Port { protocol, container_port, published_port })
    };
    wanted.iter().enumerate().filter_map(one).collect()
}

/// Private destinations, as they are written; whether the node allows them is another question.
pub(super) fn grants(problems: &mut Problems, wanted: &[rest::EgressSpec]) -> Vec<Grant> {
    if wanted.len() > MAX_GRANTS {
        let message = format!("are {}, at most {MAX_GRANTS} are allowed", wanted.len());
        problems.add("spec.egress_allow", message);
        return Vec::new();
    }
    let one = |(index, wanted): (usize, &rest::EgressSpec)| {
        let at = |field: &str| format!("spec.egress_allow[{index}].{field}");
        let addresses = problems.take(&at("cidr"), Cidr::parse(&wanted.cidr));
        let protocol = protocol(problems, at("protocol"), wanted.protocol.as_deref());
        let first_port = number(problems, &at("port"), wanted.port)?;
        let last_port = number(problems, &at("end_port"), wanted.end_port.unwrap_or(wanted.port))?;
        if last_port < first_port {
            problems.add(at("end_port"), format!("is below port {first_port}"));
        }
        Some(Grant { addresses: addresses?, protocol: protocol?, first_port, last_port })
    };
    wanted.iter().enumerate().filter_map(one).collect()
}

/// Tells the first private destination that the node's operator does not allow.
pub(super) fn refuse_grants(problems: &mut Problems, wanted: &[Grant], allowed: &[Grant]) {
    if let Some(index) = first_refused(wanted, allowed) {
        let message = format!(
            "leads to {grant}, which this node does not allow: start it with 'atoll up --allow-egress {grant}', or leave it out",
            grant = wanted[index]
        );
        problems.add(format!("spec.egress_allow[{index}]"), message);
    }
}

fn protocol(problems: &mut Problems, path: String, wanted: Option<&str>) -> Option<PortProtocol> {
    let wanted = wanted.unwrap_or("tcp");
    let protocol = PortProtocol::from_name(wanted);
    if protocol.is_none() {
        problems.add(path, format!("{} is neither tcp nor udp", rules::shown(wanted)));
    }
    protocol
}

/// The number of a port.
fn number(problems: &mut Problems, path: &str, wanted: i64) -> Option<u16> {
    let number = u16::try_from(wanted).ok().filter(|port| *port > 0);
    if number.is_none() {
        problems.add(path, format!("is {wanted}; allowed are 1 to 65535"));
    }
    number
}

/// A probe, of the sandbox or of a container.
pub(super) fn probe(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ProbeSpec,
    container: Option<&ContainerName>,
) -> Option<ReadinessProbe> {
    let check = check(problems, path, wanted, container.is_some());
    let mut within = |field: &str, value: i64, most: i64| {
        if (1..=most).contains(&value) {
            return u32::try_from(value).ok();
        }
        problems.add(format!("{path}.{field}"), format!("is {value}; allowed are 1 to {most}"));
        None
    };
    let delay = within("initial_delay_seconds", wanted.initial_delay_seconds, MAX_PROBE_SECONDS);
    let period = within("period_seconds", wanted.period_seconds, MAX_PROBE_SECONDS);
    let timeout = within("timeout_seconds", wanted.timeout_seconds, MAX_PROBE_SECONDS);
    let successes = within("success_threshold", wanted.success_threshold, MAX_THRESHOLD);
    let failures = within("failure_threshold", wanted.failure_threshold, MAX_THRESHOLD);
    let seconds = |value: u32| Duration::from_secs(value.into());
    let probe = Probe {
        check: check?,
        initial_delay: seconds(delay?),
        period: seconds(period?),
        timeout: seconds(timeout?),
        success_threshold: successes?,
        failure_threshold: failures?,
    };
    Some(ReadinessProbe { container: container.cloned(), probe })
}

fn check(
    problems: &mut Problems,
    path: &str,
    wanted: &rest::ProbeSpec,
    of_container: bool,
) -> Option<Check> {
    let mut needless = |field: &str, is_there: bool| {
        if is_there {
            let message = format!("means nothing to a probe of protocol {}", wanted.protocol);
            problems.add(format!("{path}.{field}"), message);
        }
    };
    match wanted.protocol.as_str() {
        "tcp" => {
            needless("command", !wanted.command.is_empty());
            Some(Check::Tcp { port: port(problems, path, wanted)? })
        }
        "http" => {
            needless("command", !wanted.command.is_empty());
            let http_path = http_path(problems, path, wanted);
            Some(Check::Http { port: port(problems, path, wanted)?, path: http_path? })
        }
        "exec" if of_container => {
            needless("port", wanted.port.is_some());
            needless("path", wanted.path.is_some());
            let command = &wanted.command;
            let words: usize = command.iter().map(String::len).sum();
            if command.first().is_none_or(String::is_empty) || words > rules::MAX_EXEC_BYTES {
                problems.add(format!("{path}.command"), "must name a command");
                return None;
            }
            if command.iter().any(|word| word.contains('\0')) {
                problems.add(format!("{path}.command"), "must not contain NUL");
                return None;
            }
            Some(Check::Exec { command: command.clone() })
        }
        other => {
            let known = if of_container {
                "tcp, http or exec"
            } else {
                "tcp or http (exec is for a container's own readiness_probe)"
            };
            let message = format!("{} is not {known}", rules::shown(other));
            problems.add(format!("{path}.protocol"), message);
            None
        }
    }
}

fn port(problems: &mut Problems, path: &str, wanted: &rest::ProbeSpec) -> Option<u16> {
    let Some(port) = wanted.port else {
        problems.add(format!("{path}.port"), "is missing");
        return None;
    };
    number(problems, &format!("{path}.port"), port)
}

fn http_path(problems: &mut Problems, path: &str, wanted: &rest::ProbeSpec) -> Option<String> {
    let text = wanted.path.as_deref().unwrap_or_default();
    let is_sound = text.starts_with('/')
        && text.len() <= MAX_PATH_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_sound {
        let message = format!(
            "must begin with '/' and have at most {MAX_PATH_BYTES} printable characters; what is no ASCII is written as %XX"
        );
        problems.add(format!("{path}.path"), message);
    }
    is_sound.then(|| text.to_owned())
}
