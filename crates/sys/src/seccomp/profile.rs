//! The profile's format and its checks. Knows names and numbers of system calls; knows nothing of BPF.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;

use super::SeccompError;

/// The architectures a filter can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, without its x32 and i386 interfaces.
    X86_64,
    /// 64-bit ARM, without its 32-bit interface.
    Aarch64,
}

impl Arch {
    /// The architecture of this build.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The architecture of this build.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// What the kernel shows the filter. SOURCE: AUDIT_ARCH_* in include/uapi/linux/audit.h.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
        }
    }

    /// The number of a system call, `None` where this architecture does not have it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }
}

/// A whole profile, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// The newest system call that was looked at: all above answer ENOSYS, undecided ones up to it EPERM.
    pub(super) reviewed_through: String,
    allowed: Vec<Family>,
    conditional: Vec<Conditional>,
    denied: Vec<DeniedFamily>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    family: String,
    reason: String,
    syscalls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeniedFamily {
    family: String,
    reason: String,
    errno: Refusal,
    syscalls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Conditional {
    syscall: String,
    reason: String,
    /// Allowed when all conditions of any one alternative hold.
    allow_when: Vec<Vec<Condition>>,
    otherwise: Refusal,
}

/// A condition on 32 bits of one argument: the low ones, because numbers and flags are 32 bits wide in the kernel, which ignores the
/// upper half, and a filter that compared it could be passed by setting it. Pointers alone need a second condition on the upper half.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub(super) arg: u8,
    /// Looks at the upper 32 bits instead: for pointers.
    #[serde(default)]
    pub(super) upper: bool,
    /// Bits to look at; all when absent.
    #[serde(default)]
    pub(super) mask: Option<Hex>,
    /// Holds when the argument is one of these.
    #[serde(default)]
    pub(super) one_of: Vec<Hex>,
    /// Holds when the argument is none of these. Exactly one of both lists is given.
    #[serde(default)]
    pub(super) none_of: Vec<Hex>,
}

/// A 32-bit number, written `"0x..."`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Hex(pub(super) u32);

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.strip_prefix("0x")
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or("not a 32-bit number of the form \"0x...\"")
    }
}

/// The error number a refused call sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Refusal {
    /// Not permitted.
    #[serde(rename = "EPERM")]
    NotPermitted,
    /// This kernel does not have it.
    #[serde(rename = "ENOSYS")]
    NotImplemented,
    /// No such address family.
    #[serde(rename = "EAFNOSUPPORT")]
    NoSuchFamily,
    /// No memory of that kind.
    #[serde(rename = "ENOMEM")]
    NoMemory,
    /// No error: nothing is done, and the caller is told that it was. For settings that programs make and whose failure ends them.
    #[serde(rename = "ignored")]
    Ignored,
}

impl Refusal {
    /// The kernel's number.
    pub(super) const fn errno(self) -> u32 {
        match self {
            Self::NotPermitted => libc::EPERM.cast_unsigned(),
            Self::NotImplemented => libc::ENOSYS.cast_unsigned(),
            Self::NoSuchFamily => libc::EAFNOSUPPORT.cast_unsigned(),
            Self::NoMemory => libc::ENOMEM.cast_unsigned(),
            Self::Ignored => 0,
        }
    }
}

/// What a filter does about one system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Let it through.
    Allow,
    /// Refuse it.
    Refuse(Refusal),
    /// Look at its arguments.
    When {
        /// Allowed when all conditions of any one alternative hold.
        alternatives: Vec<Vec<Condition>>,
        /// Else refused with this.
        otherwise: Refusal,
    },
}

impl Profile {
    /// The profile of class `container`, part of this build.
    pub fn container_default() -> Result<Self, SeccompError> {
        Self::parse(include_str!("../../seccomp/container.json"))
    }

    /// Reads and checks a profile: known names, each decided once, a reason for each family, sound conditions.
    pub fn parse(text: &str) -> Result<Self, SeccompError> {
        let profile: Self =
            serde_json::from_str(text).map_err(|source| SeccompError::Malformed { source })?;
        if profile.version != 1 {
            return Err(SeccompError::Version { version: profile.version });
        }
        check_known(&profile.reviewed_through)?;
        profile.check_reasons()?;
        profile.by_name()?;
        for rule in &profile.conditional {
            rule.check()?;
        }
        Ok(profile)
    }

    fn check_reasons(&self) -> Result<(), SeccompError> {
        let allowed = self.allowed.iter().map(|family| (&family.family, &family.reason));
        let denied = self.denied.iter().map(|family| (&family.family, &family.reason));
        let conditional = self.conditional.iter().map(|rule| (&rule.syscall, &rule.reason));
        for (family, reason) in allowed.chain(denied).chain(conditional) {
            if reason.trim().is_empty() {
                return Err(SeccompError::NoReason { family: family.clone() });
            }
        }
        Ok(())
    }

    /// Every decided system call by its name.
    pub(super) fn by_name(&self) -> Result<BTreeMap<&str, Decision>, SeccompError> {
        let mut decisions = BTreeMap::new();
        let mut decide = |name, decision| {
            check_known(name)?;
            match decisions.insert(name, decision) {
                None => Ok(()),
                Some(_) => Err(SeccompError::Twice { syscall: name.to_owned() }),
            }
        };
        for family in &self.allowed {
            for name in &family.syscalls {
                decide(name.as_str(), Decision::Allow)?;
            }
        }
        for family in &self.denied {
            for name in &family.syscalls {
                decide(name.as_str(), Decision::Refuse(family.errno))?;
            }
        }
        for rule in &self.conditional {
            let alternatives = rule.allow_when.clone();
            decide(&rule.syscall, Decision::When { alternatives, otherwise: rule.otherwise })?;
        }
        Ok(decisions)
    }
}

impl Conditional {
    fn check(&self) -> Result<(), SeccompError> {
        let problem = |problem| SeccompError::Condition { syscall: self.syscall.clone(), problem };
        if self.allow_when.is_empty() || self.allow_when.iter().any(Vec::is_empty) {
            return Err(problem("is empty, which would allow always or never"));
        }
        for condition in self.allow_when.iter().flatten() {
            if condition.arg > 5 {
                return Err(problem("names an argument above 5"));
            }
            if condition.one_of.is_empty() == condition.none_of.is_empty() {
                return Err(problem("needs exactly one of one_of and none_of"));
            }
            if condition.one_of.len() + condition.none_of.len() > 64 {
                return Err(problem("compares with more than 64 values"));
            }
        }
        Ok(())
    }
}

fn check_known(name: &str) -> Result<(), SeccompError> {
    if Arch::X86_64.number(name).or_else(|| Arch::Aarch64.number(name)).is_some() {
        return Ok(());
    }
    Err(SeccompError::UnknownSyscall { syscall: name.chars().take(64).collect() })
}
