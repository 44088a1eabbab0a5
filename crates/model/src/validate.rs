//! The rules of a specification, one function each, and the collector that gathers every error with the path of its field.
//!
//! Edges walk what they read and call these; nothing here knows JSON or YAML. A rule never stops at the first error.

use std::collections::BTreeSet;

use crate::spec::EnvEntry;
use crate::units::Bytes;

mod mounts;
mod volume_source;
pub use mounts::{MountPathRule, TmpfsOptions, mount_path, tmpfs_options};
pub use volume_source::{WrittenSource, volume_source};

/// Most containers of one sandbox. They share a network and a life; far more than any pod in use, few enough to start within seconds.
pub const MAX_CONTAINERS: usize = 32;
/// Most volumes of one sandbox, and most mounts of one container.
pub const MAX_MOUNTS: usize = 64;
/// Most named volumes of one sandbox: each costs a descriptor of the one message that begins it.
pub const MAX_NAMED_VOLUMES: usize = 16;
/// Most labels, or words of a command.
pub const MAX_LABELS: usize = 64;
/// Longest label key or value. SOURCE: Kubernetes allows 253 + 1 + 63 for a key and 63 for a value; one bound for both here.
pub const MAX_LABEL_BYTES: usize = 317;
/// Most environment entries of one container.
pub const MAX_ENV_ENTRIES: usize = 4096;
/// Most bytes of a command and its environment: they reach the sandbox in one message of 256 KiB, together with those of the image.
pub const MAX_EXEC_BYTES: usize = 224 << 10;
/// Longest life: ten years. A longer one is a mistake in the unit.
pub const MAX_TTL_SECONDS: i64 = 10 * 366 * 86_400;
/// Longest boost.
pub const MAX_BOOST_SECONDS: u32 = 600;
/// Most CPU of one container: more than any machine has.
pub const MAX_MILLI_CPU: u64 = 4096 * 1000;
/// Least memory of one container: the first process and a small program. Guess: the guest needs 1 MiB, musl programs 1 MiB.
pub const MIN_MEMORY: Bytes = Bytes::from_mib(4);
/// Least disk of one container: an empty ext4 with its journal-less metadata, and its share for logs.
pub const MIN_DISK: Bytes = Bytes::from_mib(4);
/// Most memory or disk of one container: 64 TiB.
pub const MAX_BYTES: Bytes = Bytes(64 << 40);
/// Least and most processes of one container. SOURCE: kernel, PID_MAX_LIMIT is 4194304.
pub const PIDS_RANGE: std::ops::RangeInclusive<i64> = 1..=4_194_304;

/// One offending field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its path: `spec.containers[0].resource.memory`.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
    /// It is understood, but this version would not enforce it.
    pub not_enforced: bool,
}

/// Most problems that are told: a body of a megabyte can hold a hundred thousand.
pub const MAX_PROBLEMS: usize = 100;

/// Gathers problems.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<Problem>,
    untold: usize,
}

impl Problems {
    /// Notes a problem.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.push(Problem { path: path.into(), message: message.into(), not_enforced: false });
    }

    /// Notes something that is understood but would not be enforced.
    pub fn not_enforced(&mut self, path: impl Into<String>, what: &str) {
        let message = format!("{what}: cannot be enforced here and is refused; leave it out");
        self.push(Problem { path: path.into(), message, not_enforced: true });
    }

    fn push(&mut self, problem: Problem) {
        if self.found.len() < MAX_PROBLEMS { self.found.push(problem) } else { self.untold += 1 }
    }

    /// The value, or a note of why there is none.
    pub fn take<T, E: std::fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(path, error.to_string());
                None
            }
        }
    }

    /// Nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All that was noted, in order; the last says how many more there are.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<Problem> {
        if self.untold > 0 {
            let message = format!("and {} more problems", self.untold);
            self.found.push(Problem { path: String::new(), message, not_enforced: false });
        }
        self.found
    }
}

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Refuses with these words.
pub(crate) fn refuse<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(message.into()))
}

/// Shows what was given, shortened.
#[must_use]
pub fn shown(text: &str) -> String {
    const MOST: usize = 64;
    if text.chars().count() <= MOST {
        format!("{text:?}")
    } else {
        format!("{:?}…", text.chars().take(MOST).collect::<String>())
    }
}

/// A quantity of bytes within bounds.
///
/// # Errors
/// [`Refused`].
pub fn bytes_between(text: &str, least: Bytes, most: Bytes) -> Result<Bytes, Refused> {
    let bytes = Bytes::parse(text).map_err(|error| Refused(error.to_string()))?;
    if bytes.0 == 0 {
        return refuse("must be more than 0");
    }
    if bytes < least {
        return refuse(format!(
            "is {bytes}, at least {least} are needed (a plain number is bytes; write for example '64Mi')"
        ));
    }
    if bytes > most {
        return refuse(format!("is {bytes}, at most {most} are allowed"));
    }
    Ok(bytes)
}

/// A CPU quantity.
///
/// # Errors
/// [`Refused`].
pub fn cpu(text: &str) -> Result<crate::units::MilliCpu, Refused> {
    let cpu = crate::units::MilliCpu::parse(text).map_err(|error| Refused(error.to_string()))?;
    match cpu.0 {
        0 => refuse("must be more than 0"),
        millis if millis > MAX_MILLI_CPU => {
            refuse(format!("is {cpu}, at most {} are allowed", MAX_MILLI_CPU / 1000))
        }
        // SOURCE: cgroup v1 cpu.cfs_quota_us and v2 cpu.max refuse quotas below 1 ms per 100 ms.
        millis if millis < 10 => refuse(format!("is {cpu}, at least 10m are needed")),
        _ => Ok(cpu),
    }
}

/// A `KEY=VALUE` entry.
///
/// # Errors
/// [`Refused`].
pub fn env_entry(text: &str) -> Result<EnvEntry, Refused> {
    if text.contains('\0') {
        return refuse("must not contain a NUL character");
    }
    match text.split_once('=') {
        None => refuse("has no '='; write KEY=VALUE"),
        Some(("", _)) => refuse("has no name before '='"),
        Some((key, value)) => Ok(EnvEntry { key: key.to_owned(), value: value.to_owned() }),
    }
}

/// A word of a command.
///
/// # Errors
/// [`Refused`].
pub fn command_word(text: &str) -> Result<String, Refused> {
    if text.contains('\0') {
        refuse("must not contain a NUL character")
    } else {
        Ok(text.to_owned())
    }
}

/// An absolute path without `..`, as a working directory.
///
/// # Errors
/// [`Refused`].
pub fn absolute_path(text: &str) -> Result<String, Refused> {
    // SOURCE: PATH_MAX is 4096 with the terminating NUL.
    if text.len() > 4095 {
        return refuse("is longer than 4095 bytes");
    }
    if !text.starts_with('/') {
        return refuse(format!("{} must be absolute: begin with '/'", shown(text)));
    }
    if text.contains('\0') || text.split('/').any(|part| part == "..") {
        return refuse(format!("{} must not contain '..' or NUL", shown(text)));
    }
    if text.split('/').any(|part| part.len() > 255) {
        return refuse("has a part longer than 255 bytes");
    }
    Ok(text.to_owned())
}

/// `user[:group]`, names or numbers. Whether they exist is the image's to say.
///
/// # Errors
/// [`Refused`].
pub fn user(text: &str) -> Result<String, Refused> {
    let mut parts = text.split(':');
    let (first, second, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if more.is_some() {
        return refuse(format!("{} has more than one ':'; write user or user:group", shown(text)));
    }
    for part in std::iter::once(first).chain(second) {
        let characters =
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte));
        // SOURCE: useradd(8): at most 32 characters; longer ones exist in LDAP set-ups.
        if part.is_empty() || part.len() > 64 || !characters {
            return refuse(format!(
                "{} is no user or group; write user or user:group, names or numbers",
                shown(text)
            ));
        }
        let number = part.bytes().all(|byte| byte.is_ascii_digit());
        if number && !part.parse::<u32>().is_ok_and(|id| id <= 65_535) {
            return refuse(format!("{part} is beyond the 65536 ids of a sandbox"));
        }
    }
    Ok(text.to_owned())
}

/// A hostname of one label or several.
///
/// # Errors
/// [`Refused`].
pub fn hostname(text: &str) -> Result<String, Refused> {
    // SOURCE: HOST_NAME_MAX is 64; RFC 1123 for the characters.
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 63 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        refuse(format!("{} is no hostname: at most 63 letters, digits, '-' and '.'", shown(text)))
    }
}

/// What may be said in `cap_add`: what every sandbox has anyway, and what the node allows. Gives the plain name.
///
/// # Errors
/// [`Refused`].
pub fn added_capability(
    name: &str,
    known: &[&str],
    allowed: impl Fn(&str) -> bool,
) -> Result<String, Refused> {
    let plain = plain_capability(name)?;
    if plain != "ALL" && !known.contains(&plain.as_str()) {
        return refuse(format!("{} is no capability; see capabilities(7)", shown(name)));
    }
    if allowed(&plain) {
        return Ok(plain);
    }
    refuse(format!(
        "{plain} is beyond the default set, and this node does not allow it: its operator can, with 'atoll up --allow-capability {plain}'"
    ))
}

/// What may be said in `cap_drop`: any capability, or `ALL`.
///
/// # Errors
/// [`Refused`].
pub fn dropped_capability(name: &str, known: &[&str]) -> Result<String, Refused> {
    let plain = plain_capability(name)?;
    if plain == "ALL" || known.contains(&plain.as_str()) {
        Ok(plain)
    } else {
        refuse(format!("{} is no capability; see capabilities(7)", shown(name)))
    }
}

fn plain_capability(name: &str) -> Result<String, Refused> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if plain.is_empty() { refuse("must not be empty") } else { Ok(plain.to_owned()) }
}

/// What may be said in `security_opt`: what holds anyway, and `no-new-privileges:false` where the node allows it. Gives what is said of
/// no-new-privileges. SOURCE: sandboxd-o's spellings.
///
/// # Errors
/// [`Refused`].
pub fn security_option(
    text: &str,
    new_privileges: Result<(), &str>,
) -> Result<Option<bool>, Refused> {
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    let on = |value: &str| matches!(value, "" | "1" | "t" | "T" | "true" | "TRUE" | "True");
    let off = |value: &str| matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False");
    let default =
        |value: &str| matches!(value, "" | "default" | "runtime/default" | "runtimedefault");
    match key {
        "no-new-privileges" if on(value) => Ok(Some(true)),
        "no-new-privileges" if off(value) => match new_privileges {
            Ok(()) => Ok(Some(false)),
            Err(why) => refuse(format!("no-new-privileges cannot be off here: {why}")),
        },
        "no-new-privileges" => {
            refuse(format!("no-new-privileges is true or false, not {}", shown(value)))
        }
        "seccomp" if default(value) => Ok(None),
        "seccomp" => refuse(format!(
            "seccomp is always atoll's profile: {} cannot be had, and no node setting allows it yet",
            shown(value)
        )),
        "apparmor" if default(value) => Ok(None),
        "apparmor" => refuse(format!(
            "AppArmor profiles are not for sandboxes to choose: {} cannot be had, and no node setting allows it",
            shown(value)
        )),
        _ => refuse(format!(
            "{} is no option; known: no-new-privileges, seccomp, apparmor",
            shown(text)
        )),
    }
}

/// A label's key or value.
///
/// # Errors
/// [`Refused`].
pub fn label(key: &str, value: &str) -> Result<(), Refused> {
    if key.trim().is_empty() {
        return refuse("a label needs a name");
    }
    if key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
        return refuse(format!("is longer than {MAX_LABEL_BYTES} bytes"));
    }
    if key.chars().chain(value.chars()).any(char::is_control) {
        return refuse("must not contain control characters");
    }
    Ok(())
}

/// The indices of entries whose name was there before.
#[must_use]
pub fn repeated<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    names
        .into_iter()
        .enumerate()
        .filter(|(_, name)| !seen.insert(*name))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests;
