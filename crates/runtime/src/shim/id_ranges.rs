//! Which host ids are whose: 65,536 for each sandbox with a user namespace, never the same for two at a time.
//!
//! Owns the choice. What is durable is `launch.json` in each sandbox's directory: at start the ranges in use are read from there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ids of one sandbox.
const IDS: u32 = atoll_sys::id_map::IDS_PER_SANDBOX;
/// The first id for sandboxes. SOURCE: systemd's table of ids (UIDS-GIDS): 0x70000000 to 0x7FFDFFFF is used by nobody; below it lie the
/// ranges of /etc/subuid, of other container managers and of systemd-nspawn, above it ids that are negative to old programs.
const FIRST: u32 = 0x7000_0000;
/// The end of that range: 4,094 sandboxes.
const END: u32 = 0x7FFE_0000;

/// The ranges of one instance.
#[derive(Debug)]
pub(super) struct IdRanges {
    excluded: Vec<Range<u32>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// First id of a range to the uid that has it.
    used: BTreeMap<u32, String>,
    next: u32,
}

impl IdRanges {
    /// All ranges but those that /etc/subuid and /etc/subgid give to users of this host. `seed` spreads instances of one host.
    pub(super) fn new(subordinate_ids: &str, seed: u32) -> Self {
        let ranges = (END - FIRST) / IDS;
        let state = State { used: BTreeMap::new(), next: FIRST + (seed % ranges) * IDS };
        Self { excluded: parse_subordinate_ids(subordinate_ids), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range for this sandbox: the one unused for longest. `None`: all are in use.
    pub(super) fn take(&self, uid: &str) -> Option<u32> {
        let mut state = self.state();
        for _ in 0..(END - FIRST) / IDS {
            let first = state.next;
            state.next = if first + IDS >= END { FIRST } else { first + IDS };
            if !state.used.contains_key(&first) && !self.is_excluded(first) {
                state.used.insert(first, uid.to_owned());
                return Some(first);
            }
        }
        None
    }

    /// A sandbox from before has this range.
    pub(super) fn restore(&self, uid: &str, first: u32) {
        self.state().used.insert(first, uid.to_owned());
    }

    /// The sandbox is gone with all its files and processes.
    pub(super) fn release(&self, uid: &str) {
        self.state().used.retain(|_, owner| owner != uid);
    }

    fn is_excluded(&self, first: u32) -> bool {
        self.excluded.iter().any(|range| first < range.end && range.start < first + IDS)
    }
}

/// SOURCE: subuid(5): `name:first:count`.
fn parse_subordinate_ids(text: &str) -> Vec<Range<u32>> {
    let parse = |line: &str| {
        let mut fields = line.split(':').skip(1);
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        Some(first..first.saturating_add(count))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_come_back() {
        let text = format!("somebody:{}:70000\nbroken\n", FIRST + 10 * IDS);
        let ranges = IdRanges::new(&text, u32::MAX);
        ranges.restore("old", FIRST + 3 * IDS);
        let mut taken = BTreeMap::new();
        while let Some(first) = ranges.take(&format!("{}", taken.len())) {
            assert!((FIRST..END).contains(&first) && (first - FIRST).is_multiple_of(IDS));
            assert!(taken.insert(first, ()).is_none(), "{first} was given twice");
        }
        // One is the old sandbox's, two belong to somebody else.
        assert_eq!(taken.len(), 4094 - 3);
        ranges.release("old");
        assert_eq!(ranges.take("new"), Some(FIRST + 3 * IDS));
        assert_eq!(ranges.take("another"), None);
    }
}
