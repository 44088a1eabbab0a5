//! Linux capabilities: names, numbers, masks, and which of them a container starts with.
//!
//! Pure data and parsing; applying a set to a process is the caller's business (`rustix::thread::set_capabilities`,
//! `capbset_drop`). Never grants: a name that is not known is an error, never ignored.

use std::fmt;

/// Every capability by its number. SOURCE: include/uapi/linux/capability.h, unchanged since CAP_CHECKPOINT_RESTORE (5.9).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What root inside a class `container` sandbox starts with, each with the reason it is needed. Absent on purpose: NET_RAW
/// (forged packets on the sandbox's own link), MKNOD (devices), AUDIT_WRITE (the host's audit log), SETFCAP (no_new_privs takes
/// all effect from file capabilities), and everything that reaches beyond the sandbox.
pub const CONTAINER_DEFAULT: [(&str, &str); 10] = [
    ("CHOWN", "package managers and servers hand files to their own users"),
    ("DAC_OVERRIDE", "root is expected to read and write every file of its own image"),
    ("FOWNER", "chmod and utimes on files of other users of the image"),
    ("FSETID", "keeps setgid bits of directories when files in them are changed"),
    ("KILL", "root stops processes of other users of the same sandbox"),
    ("SETGID", "servers drop from root to their own group"),
    ("SETUID", "servers drop from root to their own user"),
    ("SETPCAP", "lets a process give up capabilities from its bounding set; it can add none"),
    ("NET_BIND_SERVICE", "ports below 1024 of the sandbox's own network namespace"),
    (
        "SYS_CHROOT",
        "sshd, postfix and package tools confine themselves; the mount namespace bounds it",
    ),
];

/// A set of capabilities, as the kernel's 64-bit mask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CapabilitySet(u64);

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a capability: use a name of capabilities(7), with or without CAP_, or ALL"
)]
pub struct UnknownCapability {
    /// The name as given, shortened.
    pub name: String,
}

impl CapabilitySet {
    /// Nothing.
    pub const EMPTY: Self = Self(0);
    /// Every capability known here. A newer kernel may have more.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The default set of class `container`; see [`CONTAINER_DEFAULT`].
    #[must_use]
    pub fn container_default() -> Self {
        CONTAINER_DEFAULT
            .iter()
            .filter_map(|(name, _)| number(name))
            .fold(Self::EMPTY, |set, number| set.with(number))
    }

    /// Reads names in any case, with or without `CAP_`; `ALL` stands for all.
    pub fn parse<S: AsRef<str>>(
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, UnknownCapability> {
        let mut set = Self::EMPTY;
        for name in names {
            let name = name.as_ref();
            set = if strip_prefix(name).eq_ignore_ascii_case("ALL") {
                Self::ALL
            } else {
                let number = number(name)
                    .ok_or_else(|| UnknownCapability { name: name.chars().take(64).collect() })?;
                set.with(number)
            };
        }
        Ok(set)
    }

    /// The kernel's mask: bit n is capability n.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.0
    }

    /// The set of a kernel mask; bits unknown here are kept.
    #[must_use]
    pub const fn from_mask(mask: u64) -> Self {
        Self(mask)
    }

    /// This set and one more.
    #[must_use]
    pub const fn with(self, number: u32) -> Self {
        Self(self.0 | (1 << (number & 63)))
    }

    /// This set and those of `added`.
    #[must_use]
    pub const fn with_all_of(self, added: Self) -> Self {
        Self(self.0 | added.0)
    }

    /// This set without those of `dropped`.
    #[must_use]
    pub const fn without(self, dropped: Self) -> Self {
        Self(self.0 & !dropped.0)
    }

    /// Whether the set has a capability number.
    #[must_use]
    pub const fn contains(self, number: u32) -> bool {
        number < 64 && self.0 & (1 << number) != 0
    }

    /// The numbers in the set, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |number| self.contains(*number))
    }

    /// The names with `CAP_`, as OCI configurations and runsc want them; unknown bits have none and are left out.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        self.numbers().filter_map(name).map(|name| format!("CAP_{name}")).collect()
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CapabilitySet({:#x}: {})", self.0, self.names().join(" "))
    }
}

/// The number of a capability, by its name in any case, with or without `CAP_`.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let name = strip_prefix(name);
    let index = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
    u32::try_from(index).ok()
}

/// The name of a capability number, without `CAP_`.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?).copied()
}

fn strip_prefix(name: &str) -> &str {
    match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name[4..],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_with_and_without_prefix() {
        assert_eq!(number("CAP_NET_RAW"), Some(13));
        assert_eq!(number("net_raw"), Some(13));
        assert_eq!(number("Cap_Checkpoint_Restore"), Some(40));
        assert_eq!(name(21), Some("SYS_ADMIN"));
        assert_eq!((number("CAP_"), number("é"), number(""), name(41)), (None, None, None, None));
    }

    #[test]
    fn the_default_set_is_what_its_list_says_and_holds_nothing_dangerous() {
        let set = CapabilitySet::container_default();
        assert_eq!(set.numbers().count(), CONTAINER_DEFAULT.len(), "a name is misspelt");
        for absent in
            ["NET_RAW", "MKNOD", "SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"]
        {
            assert!(!set.contains(number(absent).unwrap()), "{absent}");
        }
        assert!(CONTAINER_DEFAULT.iter().all(|(_, reason)| !reason.is_empty()));
    }

    #[test]
    fn dropping_all_leaves_nothing_and_an_unknown_name_is_an_error() {
        let default = CapabilitySet::container_default();
        let all = CapabilitySet::parse(["all"]).unwrap();
        assert_eq!(default.without(all), CapabilitySet::EMPTY);
        assert_eq!(CapabilitySet::parse(["CAP_ALL"]).unwrap(), CapabilitySet::ALL);
        let some = CapabilitySet::parse(["CHOWN", "cap_kill"]).unwrap();
        assert_eq!(some.names(), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(some.mask(), 0b10_0001);
        assert_eq!(some.without(default), CapabilitySet::EMPTY, "both are of the default set");
        assert_eq!(CapabilitySet::parse(["NET_RAWR"]).unwrap_err().name, "NET_RAWR");
    }
}
