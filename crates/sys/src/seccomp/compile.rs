//! From a checked profile to classic BPF. A pure function; knows the instruction format and nothing of profiles' texts.
//!
//! Shape: check the architecture, refuse x32, then a binary search over ranges of system call numbers with the same decision
//! (about 8 comparisons), then the decision, argument checks included.

use super::SeccompError;
use super::profile::{Arch, Condition, Decision, Profile, Refusal};

/// The size of `struct sock_filter`. SOURCE: include/uapi/linux/filter.h.
pub(super) const INSTRUCTION_BYTES: usize = 8;
/// BPF_MAXINSNS. SOURCE: include/uapi/linux/bpf_common.h.
pub(super) const MOST_INSTRUCTIONS: usize = 4096;
/// Bit 30 marks calls of the x32 interface. SOURCE: __X32_SYSCALL_BIT in arch/x86/include/uapi/asm/unistd.h.
const X32_BIT: u32 = 0x4000_0000;

// Offsets in struct seccomp_data. SOURCE: include/uapi/linux/seccomp.h.
pub(super) const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
pub(super) const OFFSET_ARGS: u32 = 16;

// Return values. SOURCE: include/uapi/linux/seccomp.h.
pub(super) const RETURN_ALLOW: u32 = 0x7FFF_0000;
pub(super) const RETURN_ERRNO: u32 = 0x0005_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

// Codes. SOURCE: include/uapi/linux/bpf_common.h (class | size or operation | mode or source).
pub(super) const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

const fn branch(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

const fn refuse(refusal: Refusal) -> Instruction {
    plain(RETURN, RETURN_ERRNO | refusal.errno())
}

/// Compiles a profile for an architecture: an array of `struct sock_filter`, little-endian as both architectures are.
///
/// # Errors
/// [`SeccompError::TooLong`] when the profile does not fit into a filter.
pub fn compile(profile: &Profile, arch: Arch) -> Result<Vec<u8>, SeccompError> {
    let ranges = ranges(profile, arch)?;
    let mut program = vec![
        plain(LOAD_WORD, OFFSET_ARCH),
        branch(JUMP_EQUAL, arch.audit(), 1, 0),
        // Numbers of another ABI mean other calls: there is nothing to answer them with.
        plain(RETURN, RETURN_KILL_PROCESS),
        plain(LOAD_WORD, OFFSET_NUMBER),
        branch(JUMP_GREATER_OR_EQUAL, X32_BIT, 0, 1),
        refuse(Refusal::NotImplemented),
    ];
    program.extend(search(&ranges));
    if program.len() > MOST_INSTRUCTIONS {
        return Err(SeccompError::TooLong { instructions: program.len() });
    }
    Ok(program.iter().flat_map(|one| one.bytes()).collect())
}

impl Instruction {
    fn bytes(self) -> [u8; INSTRUCTION_BYTES] {
        let [code_low, code_high] = self.code.to_le_bytes();
        let [a, b, c, d] = self.value.to_le_bytes();
        [code_low, code_high, self.jump_true, self.jump_false, a, b, c, d]
    }
}

/// Numbers from `first` up to the next range's first share a decision.
struct Range {
    first: u32,
    decision: Decision,
}

fn ranges(profile: &Profile, arch: Arch) -> Result<Vec<Range>, SeccompError> {
    let mut decided: Vec<(u32, Decision)> = profile
        .by_name()?
        .into_iter()
        .filter_map(|(name, decision)| Some((arch.number(name)?, decision)))
        .collect();
    decided.sort_unstable_by_key(|(number, _)| *number);
    let undecided = Decision::Refuse(Refusal::NotPermitted);
    let unknown = Decision::Refuse(Refusal::NotImplemented);
    // Absent on this architecture: nothing counts as reviewed beyond what is decided.
    let reviewed = arch.number(&profile.reviewed_through).unwrap_or(0);
    let mut ranges: Vec<Range> = Vec::new();
    let mut next = 0;
    for (number, decision) in decided {
        if number > next {
            let end = number.min(reviewed.saturating_add(1));
            if end > next {
                push(&mut ranges, next, undecided.clone());
            }
            if number > end {
                push(&mut ranges, end.max(next), unknown.clone());
            }
        }
        push(&mut ranges, number, decision);
        next = number.saturating_add(1);
    }
    if next <= reviewed {
        push(&mut ranges, next, undecided);
        next = reviewed.saturating_add(1);
    }
    push(&mut ranges, next, unknown);
    Ok(ranges)
}

fn push(ranges: &mut Vec<Range>, first: u32, decision: Decision) {
    if ranges.last().is_none_or(|last| last.decision != decision) {
        ranges.push(Range { first, decision });
    }
}

/// A binary search; the number is in the accumulator. Distances beyond 255 go through unconditional jumps, whose reach is 32 bits.
fn search(ranges: &[Range]) -> Vec<Instruction> {
    match ranges {
        [] => vec![refuse(Refusal::NotImplemented)],
        [one] => decide(&one.decision),
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            let below = search(below);
            let mut program = vec![
                branch(JUMP_GREATER_OR_EQUAL, above[0].first, 0, 1),
                plain(JUMP, distance(&below)),
            ];
            program.extend(below);
            program.extend(search(above));
            program
        }
    }
}

/// How far a jump over these instructions goes. A program that long is refused by the caller before the kernel sees it.
fn distance(over: &[Instruction]) -> u32 {
    u32::try_from(over.len()).unwrap_or(u32::MAX)
}

fn decide(decision: &Decision) -> Vec<Instruction> {
    match decision {
        Decision::Allow => vec![plain(RETURN, RETURN_ALLOW)],
        Decision::Refuse(refusal) => vec![refuse(*refusal)],
        Decision::When { alternatives, otherwise } => {
            let mut program: Vec<Instruction> =
                alternatives.iter().flat_map(|conditions| all_of(conditions)).collect();
            program.push(refuse(*otherwise));
            program
        }
    }
}

/// Returns "allow" when all hold, else goes on behind its own end.
fn all_of(conditions: &[Condition]) -> Vec<Instruction> {
    let mut program = vec![plain(RETURN, RETURN_ALLOW)];
    for condition in conditions.iter().rev() {
        let mut with = test(condition, distance(&program));
        with.extend(program);
        program = with;
    }
    program
}

/// Goes on behind its own end when the condition holds, else jumps `failure` instructions further.
fn test(condition: &Condition, failure: u32) -> Vec<Instruction> {
    // The low half of a 64-bit argument comes first: both architectures are little-endian.
    let half = if condition.upper { 4 } else { 0 };
    let mut program = vec![plain(LOAD_WORD, OFFSET_ARGS + 8 * u32::from(condition.arg) + half)];
    if let Some(mask) = condition.mask {
        program.push(plain(AND, mask.0));
    }
    let wanted = !condition.one_of.is_empty();
    let values = if wanted { &condition.one_of } else { &condition.none_of };
    // A match jumps over the comparisons left and one jump: with one_of that one leads to failure, with none_of the one
    // behind it does. The profile's check bounds the values to 64, so the distance fits.
    let mut skip = u8::try_from(values.len()).unwrap_or(u8::MAX);
    for value in values {
        program.push(branch(JUMP_EQUAL, value.0, skip, 0));
        skip = skip.saturating_sub(1);
    }
    if !wanted {
        program.push(plain(JUMP, 1));
    }
    program.push(plain(JUMP, failure));
    program
}
