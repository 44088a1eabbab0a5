//! Who has which named volume: decides which sandbox may begin, and which volume may go.
//!
//! A volume is bound by its uid, so that one of the same name made later is another. Pure: the caller keeps the truth on disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ObjectName, SandboxUid};

/// A volume that may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    uid: String,
    users: BTreeMap<SandboxUid, String>,
}

/// All volumes that may be had, by name.
#[derive(Debug, Clone, Default)]
pub struct VolumeBook {
    volumes: BTreeMap<ObjectName, Entry>,
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
        let new = Entry { uid, users: BTreeMap::new() };
        self.volumes.entry(name).or_insert(new);
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
        if let Some(missing) = wanted.iter().copied().find(|name| !self.volumes.contains_key(name))
        {
            self.release(sandbox);
            return Err(missing);
        }
        let mut uids = BTreeMap::new();
        for name in wanted {
            if let Some(entry) = self.volumes.get_mut(*name) {
                entry.users.insert(sandbox, sandbox_name.to_owned());
                uids.insert((*name).clone(), entry.uid.clone());
            }
        }
        Ok(uids)
    }

    /// A sandbox that began under an earlier server has those that are there, whatever became of the others.
    pub fn rebind(
        &mut self,
        sandbox: SandboxUid,
        sandbox_name: &str,
        wanted: &BTreeSet<&ObjectName>,
    ) {
        for name in wanted {
            if let Some(entry) = self.volumes.get_mut(*name) {
                entry.users.insert(sandbox, sandbox_name.to_owned());
            }
        }
    }

    /// Nothing of a sandbox runs any more.
    pub fn release(&mut self, sandbox: SandboxUid) {
        for entry in self.volumes.values_mut() {
            entry.users.remove(&sandbox);
        }
    }

    /// Names of the sandboxes that have a volume, in order.
    #[must_use]
    pub fn users(&self, name: &ObjectName) -> Vec<String> {
        let mut names: Vec<String> =
            self.volumes.get(name).map_or_else(Vec::new, |it| it.users.values().cloned().collect());
        names.sort_unstable();
        names
    }

    /// Takes a volume out of the book, so that nobody is given it any more. None of that name is fine.
    ///
    /// # Errors
    /// [`InUse`].
    pub fn withdraw(&mut self, name: &ObjectName) -> Result<(), InUse> {
        let by = self.users(name);
        if by.is_empty() {
            self.volumes.remove(name);
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
        assert_eq!(book.withdraw(&a), Ok(()), "who waits for another has none yet");
        book.offer(a.clone(), "2".into());
        book.offer(b.clone(), "3".into());
        let bound = book.bind(one, "one", &both).unwrap();
        assert_eq!(bound, BTreeMap::from([(a.clone(), "2".into()), (b.clone(), "3".into())]));
        let two = SandboxUid::from_random(2);
        book.bind(two, "another", &BTreeSet::from([&a])).unwrap();
        let in_use = InUse { by: vec!["another".into(), "one".into()] };
        assert_eq!(book.withdraw(&a), Err(in_use));
        book.release(one);
        book.release(two);
        assert_eq!(book.withdraw(&a), Ok(()));
        assert_eq!(book.bind(one, "one", &both), Err(&a), "who is gone is not given");
    }

    #[test]
    fn what_ran_before_keeps_what_is_there() {
        let (a, b) = (name("a"), name("b"));
        let mut book = VolumeBook::default();
        book.offer(a.clone(), "1".into());
        let one = SandboxUid::from_random(1);
        book.rebind(one, "one", &BTreeSet::from([&a, &b]));
        assert_eq!((book.users(&a), book.users(&b)), (vec!["one".to_owned()], vec![]));
        book.offer(a.clone(), "other".into());
        assert_eq!(book.users(&a).len(), 1, "an offer again forgets nobody");
    }
}
