//! Who has which named volume: decides which sandbox may begin, and which volume may go.
//!
//! A volume is bound by its uid, so that one of the same name made later is another. Pure: the caller keeps the truth on disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ObjectName, SandboxUid};

/// All volumes that may be had, and who has which, by name.
#[derive(Debug, Clone, Default)]
pub struct VolumeBook {
    /// Uids of those that may be had.
    offered: BTreeMap<ObjectName, String>,
    /// Also of volumes that may not be had at the moment: what runs keeps its own.
    users: BTreeMap<ObjectName, BTreeMap<SandboxUid, String>>,
}

/// Why a volume may not go: these sandboxes have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Their names, in order.
    pub by: Vec<String>,
}

impl VolumeBook {
    /// This volume may be had from now on. One of the name that is known stays.
    pub fn offer(&mut self, name: ObjectName, uid: String) {
        self.offered.entry(name).or_insert(uid);
    }

    /// Gives a sandbox all volumes that it asks for, or none of them.
    ///
    /// # Errors
    /// The first name of which there is no volume.
    pub fn bind<'a>(
        &mut self,
        sandbox: SandboxUid,
        sandbox_name: &str,
        wanted: &BTreeSet<&'a ObjectName>,
    ) -> Result<BTreeMap<ObjectName, String>, &'a ObjectName> {
        if let Some(missing) = wanted.iter().copied().find(|name| !self.offered.contains_key(name))
        {
            self.release(sandbox);
            return Err(missing);
        }
        self.rebind(sandbox, sandbox_name, wanted);
        let uid = |name: &&ObjectName| Some(((*name).clone(), self.offered.get(*name)?.clone()));
        Ok(wanted.iter().filter_map(uid).collect())
    }

    /// A sandbox that began under an earlier server has its volumes, whether they may be had at the moment or not.
    pub fn rebind(
        &mut self,
        sandbox: SandboxUid,
        sandbox_name: &str,
        wanted: &BTreeSet<&ObjectName>,
    ) {
        for name in wanted {
            let users = self.users.entry((*name).clone()).or_default();
            users.insert(sandbox, sandbox_name.to_owned());
        }
    }

    /// Nothing of a sandbox runs any more.
    pub fn release(&mut self, sandbox: SandboxUid) {
        self.users.retain(|_, users| {
            users.remove(&sandbox);
            !users.is_empty()
        });
    }

    /// Names of the sandboxes that have a volume, in order.
    #[must_use]
    pub fn users(&self, name: &ObjectName) -> Vec<String> {
        let mut names: Vec<String> =
            self.users.get(name).map_or_else(Vec::new, |users| users.values().cloned().collect());
        names.sort_unstable();
        names
    }

    /// Takes a volume out of the book, so that nobody is given it any more. None of that name and uid is fine.
    ///
    /// # Errors
    /// [`InUse`].
    pub fn withdraw(&mut self, name: &ObjectName, uid: &str) -> Result<(), InUse> {
        if self.offered.get(name).is_some_and(|offered| offered != uid) {
            // Another of that name, made since.
            return Ok(());
        }
        let by = self.users(name);
        if by.is_empty() {
            self.offered.remove(name);
            return Ok(());
        }
        Err(InUse { by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ObjectName {
        text.parse().unwrap()
    }

    #[test]
    fn a_sandbox_has_all_its_volumes_or_none() {
        let (a, b) = (name("a"), name("b"));
        let mut book = VolumeBook::default();
        book.offer(a.clone(), "1".into());
        let one = SandboxUid::from_random(1);
        let both = BTreeSet::from([&a, &b]);
        assert_eq!(book.bind(one, "one", &both), Err(&b));
        assert_eq!(book.withdraw(&a, "1"), Ok(()), "who waits for another has none yet");
        book.offer(a.clone(), "2".into());
        book.offer(b.clone(), "3".into());
        let bound = book.bind(one, "one", &both).unwrap();
        assert_eq!(bound, BTreeMap::from([(a.clone(), "2".into()), (b.clone(), "3".into())]));
        let two = SandboxUid::from_random(2);
        book.bind(two, "another", &BTreeSet::from([&a])).unwrap();
        let in_use = InUse { by: vec!["another".into(), "one".into()] };
        assert_eq!(book.withdraw(&a, "2"), Err(in_use));
        book.release(one);
        book.release(two);
        assert_eq!(book.withdraw(&a, "1"), Ok(()));
        assert!(book.bind(one, "one", &BTreeSet::from([&a])).is_ok(), "an earlier one went");
        book.release(one);
        assert_eq!(book.withdraw(&a, "2"), Ok(()));
        assert_eq!(book.bind(one, "one", &both), Err(&a), "who is gone is not given");
    }

    #[test]
    fn what_ran_before_keeps_what_it_has() {
        let (a, b) = (name("a"), name("b"));
        let mut book = VolumeBook::default();
        book.offer(a.clone(), "1".into());
        let one = SandboxUid::from_random(1);
        book.rebind(one, "one", &BTreeSet::from([&a, &b]));
        assert_eq!(
            (book.users(&a), book.users(&b)),
            (vec!["one".to_owned()], vec!["one".to_owned()])
        );
        let in_use = InUse { by: vec!["one".into()] };
        assert_eq!(book.withdraw(&b, "2"), Err(in_use), "not even one that may not be had now");
        book.offer(a.clone(), "other".into());
        assert_eq!(book.users(&a).len(), 1, "an offer again forgets nobody");
    }
}
