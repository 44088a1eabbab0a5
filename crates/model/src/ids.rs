//! Names that people choose and ids that atoll chooses. Host objects carry only the latter.

use std::fmt;
use std::str::FromStr;

/// Why a name or id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than allowed.
    #[error("is {actual} characters long, at most {limit} are allowed")]
    TooLong {
        /// Characters found.
        actual: usize,
        /// Characters allowed.
        limit: usize,
    },
    /// A character outside the allowed set.
    #[error(
        "has {character:?} at position {position}; allowed: letters, digits, '_', '.', '-', beginning with a letter or digit"
    )]
    BadCharacter {
        /// The offending character.
        character: char,
        /// Zero-based position, in characters.
        position: usize,
    },
    /// Contains `..`, which some tools read as a parent directory.
    #[error("must not contain '..'")]
    DotDot,
    /// Not a sandbox uid.
    #[error("is not a sandbox uid (16 hexadecimal digits)")]
    BadUid,
}

fn check_name(text: &str, limit: usize) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    let actual = text.chars().count();
    if actual > limit {
        return Err(IdError::TooLong { actual, limit });
    }
    for (position, character) in text.chars().enumerate() {
        let allowed = character.is_ascii_alphanumeric()
            || (position > 0 && matches!(character, '_' | '.' | '-'));
        if !allowed {
            return Err(IdError::BadCharacter { character, position });
        }
    }
    if text.contains("..") {
        return Err(IdError::DotDot);
    }
    Ok(())
}

macro_rules! checked_name {
    ($(#[$meta:meta])* $name:ident, $limit:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name(text, $limit)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A sandbox's name, chosen by its user. SOURCE: sandboxd-o ids,
    /// `^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$` without `..`.
    SandboxName,
    128
);
checked_name!(
    /// A container's name within its sandbox. SOURCE: sandboxd-o,
    /// `^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`.
    ContainerName,
    64
);
checked_name!(
    /// A sandbox-local volume's name. SOURCE: sandboxd-o, as for containers.
    VolumeName,
    64
);

checked_name!(
    /// The name of an object with a life of its own beside sandboxes: of a volume. As of sandboxes.
    ObjectName,
    128
);

/// Longest DNS label. SOURCE: RFC 1035, 2.3.4.
const MAX_LABEL_BYTES: usize = 63;

/// A node's name from its machine's host name, whatever that holds: a DNS label of lower-case letters, digits and `-`; `node` where
/// nothing of it can be used.
#[must_use]
pub fn node_name_of(hostname: &str) -> String {
    let mut name = String::new();
    for character in hostname.chars() {
        if character.is_ascii_alphanumeric() {
            name.push(character.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
        if name.len() == MAX_LABEL_BYTES {
            break;
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

/// What names a sandbox on the host: directory, cgroup, namespace. Random, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxUid(u64);

impl SandboxUid {
    /// A uid from random bits; the caller supplies the randomness.
    #[must_use]
    pub const fn from_random(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits, for storage and for deriving small numbers.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SandboxUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for SandboxUid {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let hex = text.len() == 16
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !hex {
            return Err(IdError::BadUid);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| IdError::BadUid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_dns_label_for_a_name_whatever_its_machine_is_called() {
        for (hostname, name) in [
            ("box-1", "box-1"),
            ("Box_1.Example.COM", "box-1-example-com"),
            ("[1,2", "1-2"),
            ("--a--", "a"),
            ("", "node"),
            ("(none)", "none"),
            ("../..", "node"),
            ("\u{e9}\u{4e16}\u{754c}", "node"),
            ("a\0b\nc", "a-b-c"),
        ] {
            assert_eq!(node_name_of(hostname), name, "{hostname:?}");
        }
        let long = node_name_of(&format!("{}-{}", "x".repeat(62), "y".repeat(300)));
        assert_eq!(long, "x".repeat(62), "no longer than a label, and no dash at its end");
    }

    #[test]
    fn names_follow_the_published_rule() {
        for good in ["a", "team-1", "A.b_c-9", &"x".repeat(128)] {
            assert!(good.parse::<SandboxName>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a..b", "a/b", "a b", "ä", "../x", &"x".repeat(129)] {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uid_survives_its_text_form() {
        let uid = SandboxUid::from_random(0x00ff_1234_5678_9abc);
        assert_eq!(uid.to_string().parse(), Ok(uid));
        assert!("00FF123456789ABC".parse::<SandboxUid>().is_err(), "one spelling only");
        assert!("../../etc/passwd".parse::<SandboxUid>().is_err());
    }
}
