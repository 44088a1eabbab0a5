//! Where something may be mounted in a container, and how.

use super::{Refused, absolute_path, refuse, shown};
use crate::units::Bytes;

/// What distinguishes the two kinds of mounts. SOURCE: sandboxd-o, section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPathRule {
    /// May be /tmp or below.
    Tmpfs,
    /// Must not be /tmp or below: /tmp is part of the disk.
    Volume,
}

/// Trees that a mount would hide or that make the isolation: nothing of the user's goes over or into them.
const PROTECTED: [&str; 4] = ["/proc", "/sys", "/dev", "/.atoll"];
/// Directories whose loss leaves no working container: not to be covered whole (below them is fine).
const NOT_WHOLE: [&str; 9] =
    ["/bin", "/sbin", "/lib", "/lib64", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/etc"];

/// An absolute, clean path that a mount may stand at.
///
/// # Errors
/// [`Refused`].
pub fn mount_path(text: &str, rule: MountPathRule) -> Result<String, Refused> {
    let path = absolute_path(text)?;
    if path == "/" {
        return refuse("must not be '/': that is the container's root");
    }
    let clean = path.split('/').skip(1).all(|part| !part.is_empty() && part != ".");
    if !clean {
        return refuse(format!(
            "{} is not clean: no '//', no '/./', no '/' at the end",
            shown(text)
        ));
    }
    let within = |tree: &str| {
        path == tree || path.strip_prefix(tree).is_some_and(|rest| rest.starts_with('/'))
    };
    if let Some(tree) = PROTECTED.into_iter().find(|tree| within(tree)) {
        // SOURCE: POSIX shared memory lives in /dev/shm, whose size has its own field.
        return refuse(format!(
            "{} lies in {tree}, which is part of the isolation (for /dev/shm use spec.shm_size)",
            shown(text)
        ));
    }
    if NOT_WHOLE.contains(&path.as_str()) {
        return refuse(format!(
            "{} would hide the image's own files; use a directory below it",
            shown(text)
        ));
    }
    if rule == MountPathRule::Volume && within("/tmp") {
        return refuse(format!(
            "{} lies in /tmp, which is the container's own; use another path, or tmpfs",
            shown(text)
        ));
    }
    Ok(path)
}

/// What the options of a tmpfs say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// Its size; `None`: the default.
    pub size: Option<Bytes>,
    /// Mode of its root; 0o1777 by default.
    pub mode: u32,
    /// No writing.
    pub read_only: bool,
    /// No executing; executing is the default. SOURCE: sandboxd-o.
    pub no_exec: bool,
}

/// Reads `rw,noexec,mode=1777,size=64m`. `suid` and `dev` are refused: these mounts never have either.
///
/// # Errors
/// [`Refused`].
pub fn tmpfs_options(text: &str) -> Result<TmpfsOptions, Refused> {
    let mut options = TmpfsOptions { size: None, mode: 0o1777, read_only: false, no_exec: false };
    if text.len() > 1024 {
        return refuse("is longer than 1024 bytes");
    }
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "ro" => options.read_only = true,
            "rw" => options.read_only = false,
            "exec" => options.no_exec = false,
            "noexec" => options.no_exec = true,
            "nosuid" | "nodev" => {}
            "suid" | "dev" => {
                return refuse(format!(
                    "{word:?} is not allowed: tmpfs mounts are always nosuid and nodev"
                ));
            }
            _ => match word.split_once(['=', ':']) {
                Some(("mode", value)) => options.mode = mode(value)?,
                Some(("size", value)) => options.size = Some(size(value)?),
                _ => {
                    return refuse(format!(
                        "{} is no option; known: ro rw exec noexec nosuid nodev mode=OCTAL size=N[k|m|g]",
                        shown(word)
                    ));
                }
            },
        }
    }
    Ok(options)
}

fn mode(value: &str) -> Result<u32, Refused> {
    match u32::from_str_radix(value, 8) {
        Ok(mode) if mode <= 0o1777 && value.len() <= 5 && !value.starts_with('+') => Ok(mode),
        _ => refuse(format!(
            "mode {} is not octal up to 1777 (setuid and setgid are not allowed)",
            shown(value)
        )),
    }
}

/// An integer with `b`, `k`, `m`, `g`, `t`, or these with `b` or `i`: powers of 1024 all. SOURCE: sandboxd-o; tmpfs(5).
fn size(value: &str) -> Result<Bytes, Refused> {
    let wrong = || Refused(format!("size {} is no size; write for example size=64m", shown(value)));
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (digits, suffix) = value.split_at(end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => refuse("size must be more than 0"),
        Some(bytes) if bytes <= super::MAX_BYTES.0 => Ok(Bytes(bytes)),
        _ => refuse(format!("size {} is too large", shown(value))),
    }
}
