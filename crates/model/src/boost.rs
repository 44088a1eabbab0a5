//! The node-wide cap on start-up boosts: how many sandboxes may have their CPU quota lifted at the same time. Who comes beyond it starts
//! within its quota from the beginning, and is not boosted later: a start is boosted once or not at all.

use std::collections::BTreeMap;

use crate::ids::SandboxUid;

/// Boosts for each core. Guess: two starts on a core hide each other's waits; more only share it, which weights do as well.
const BOOSTS_PER_CORE: usize = 2;

/// How much longer than its time a boost may be in force, in microseconds: timers are late on a busy machine, and a quota that the kernel
/// refuses is tried again. Guess.
const LATENESS_MICROS: u64 = 500_000;

/// Who is boosted on this node. Times are of one monotonic clock, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boosts {
    most: usize,
    /// Until when; `None`: granted, and its sandbox has not begun yet.
    until: BTreeMap<SandboxUid, Option<u64>>,
}

impl Boosts {
    /// Nobody is boosted yet.
    #[must_use]
    pub const fn for_cores(cores: usize) -> Self {
        Self { most: cores.saturating_mul(BOOSTS_PER_CORE), until: BTreeMap::new() }
    }

    /// For how long, in milliseconds, a sandbox that is about to be launched is boosted: as long as it wants, or not at all (0).
    #[must_use]
    pub fn grant(&mut self, uid: SandboxUid, wanted_millis: u64, now: u64) -> u64 {
        self.until.retain(|_, until| until.is_none_or(|until| until > now));
        if wanted_millis == 0 || (self.until.len() >= self.most && !self.until.contains_key(&uid)) {
            return 0;
        }
        self.until.insert(uid, None);
        wanted_millis
    }

    /// Its sandbox has begun: the boost that it was granted ends so many milliseconds after that. Its place is free a moment later, when the
    /// quota is in force again for certain.
    pub fn begun(&mut self, uid: SandboxUid, boost_millis: u64, at: u64) {
        if let Some(until) = self.until.get_mut(&uid) {
            let boost_micros = boost_millis.saturating_mul(1000);
            *until = Some(at.saturating_add(boost_micros).saturating_add(LATENESS_MICROS));
        }
    }

    /// Its boost, if it had one, is over: it runs no longer, or never will.
    pub fn end(&mut self, uid: SandboxUid) {
        self.until.remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u64) -> SandboxUid {
        SandboxUid::from_random(number)
    }

    #[test]
    fn beyond_the_cap_nobody_is_boosted_until_one_ends() {
        let mut boosts = Boosts::for_cores(1);
        assert_eq!(boosts.grant(uid(1), 2000, 0), 2000);
        assert_eq!(boosts.grant(uid(2), 500, 0), 500);
        assert_eq!(boosts.grant(uid(3), 2000, 0), 0);
        boosts.end(uid(3));
        assert_eq!(boosts.grant(uid(4), 2000, 0), 0, "the end of one without a boost frees none");
        boosts.end(uid(1));
        assert_eq!(boosts.grant(uid(4), 2000, 0), 2000);
    }

    #[test]
    fn a_boost_counts_from_the_beginning_of_its_sandbox_and_ends_by_itself() {
        let mut boosts = Boosts::for_cores(1);
        assert_eq!(boosts.grant(uid(1), 2, 0), 2);
        assert_eq!(boosts.grant(uid(2), 2, 0), 2);
        assert_eq!(boosts.grant(uid(3), 2, 1_000_000), 0, "a launch that takes long holds its own");
        boosts.begun(uid(1), 2, 1_000_000);
        assert_eq!(boosts.grant(uid(3), 2, 1_501_999), 0, "it may end late");
        assert_eq!(boosts.grant(uid(3), 2, 1_502_000), 2);
    }

    #[test]
    fn a_sandbox_that_wants_none_takes_none_and_one_that_is_launched_again_keeps_its_own() {
        let mut boosts = Boosts::for_cores(1);
        assert_eq!(boosts.grant(uid(1), 0, 0), 0);
        assert_eq!(boosts.grant(uid(2), 9, 0), 9);
        assert_eq!(boosts.grant(uid(2), 9, 0), 9);
        assert_eq!(boosts.grant(uid(3), 9, 0), 9);
        boosts.begun(uid(9), 9, 0);
        assert_eq!(boosts.grant(uid(4), 9, 0), 0);
    }
}
