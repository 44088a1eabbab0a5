//! The cap on start-up boosts, as control groups show it: never more quotas lifted at once than the node allows, and none for long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_sys::cgroup::{CgroupLayout, CgroupRoot};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::{IMAGE, Instance, import, skipped, wait_until};

/// Boosts at once on a node of one CPU.
const CAP: usize = 2;
/// How long a boost lasts without a probe.
const BOOST: Duration = Duration::from_secs(2);
const SANDBOXES: usize = 12;
/// 50 thousandths of a CPU: of a period of 100 ms.
const QUOTA_MICROS: &str = "5000";

/// Starts an instance on one CPU only, whatever the machine has.
fn on_one_cpu(instance: &Instance) {
    let all = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).unwrap();
    instance.up();
    sched_setaffinity(None, &all).unwrap();
}

/// The CPU quota of each sandbox in which something runs; `None`: it is lifted.
fn quotas(groups: &CgroupRoot) -> BTreeMap<String, Option<String>> {
    let quota = |uid: &String| {
        let group = groups.find(uid, Some("c0")).ok()?;
        let (_, _, directory) =
            group.controllers().into_iter().find(|(name, ..)| *name == "cpu")?;
        // Limits are set before there are processes: who has processes has the limits that it shall have.
        let runs = !fs::read_to_string(directory.join("cgroup.procs")).ok()?.is_empty();
        let text = quota_of(directory)?;
        runs.then(|| (uid.clone(), (text != "-1" && text != "max").then_some(text)))
    };
    groups.list().unwrap().iter().filter_map(quota).collect()
}

fn quota_of(directory: &Path) -> Option<String> {
    let read = |file: &str| fs::read_to_string(PathBuf::from(directory).join(file)).ok();
    let text = read("cpu.cfs_quota_us").or_else(|| read("cpu.max"))?;
    text.split_whitespace().next().map(str::to_owned)
}

/// What was seen while sandboxes started.
#[derive(Debug, Default)]
struct Seen {
    boosted: BTreeSet<String>,
    limited: BTreeSet<String>,
    /// Most boosts at one moment.
    most: usize,
    /// Sandboxes whose quota was lifted after it had been in force.
    boosted_late: BTreeSet<String>,
}

impl Seen {
    /// Looks once. Files are read one after the other: only who is boosted in the first reading and in the second was so at the moment
    /// between the two, together with the others.
    fn look(&mut self, groups: &CgroupRoot) {
        let lifted = |quotas: BTreeMap<String, Option<String>>| {
            let (limited, boosted): (Vec<_>, Vec<_>) =
                quotas.into_iter().partition(|(_, quota)| quota.is_some());
            let names = |list: Vec<(String, _)>| list.into_iter().map(|(uid, _)| uid).collect();
            (names(boosted), names(limited))
        };
        let (before, limited): (BTreeSet<String>, BTreeSet<String>) = lifted(quotas(groups));
        let (after, _): (BTreeSet<String>, BTreeSet<String>) = lifted(quotas(groups));
        self.most = self.most.max(before.intersection(&after).count());
        self.boosted_late.extend(before.intersection(&self.limited).cloned());
        self.boosted.extend(before);
        self.limited.extend(limited);
    }

    /// Looks all the time while something is done.
    fn look_while<T: Send>(&mut self, groups: &CgroupRoot, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                self.look(groups);
                std::thread::sleep(Duration::from_millis(2));
            }
            working.join().unwrap()
        })
    }
}

fn create(instance: &Instance, name: &str) -> String {
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: container\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n      resource: {{cpu: 50m, memory: 32Mi}}\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    instance.sandbox(name).expect("it is there")["uid"].as_str().unwrap().to_owned()
}

#[test]
fn no_more_sandboxes_are_boosted_at_once_than_the_node_allows_and_every_boost_ends() {
    let test = "container/boosts";
    let (true, Some(archive)) = (rustix::process::geteuid().is_root(), crate::support::archive())
    else {
        return skipped(test, "needs root and busybox-static");
    };
    let instance = Instance::not_started();
    on_one_cpu(&instance);
    if !instance.available_classes().iter().any(|class| class == "container") {
        return skipped(test, "the class is not available here");
    }
    import(&instance, archive);
    let name = atoll_runtime::shim::instance_name(&instance.data_dir());
    let groups = CgroupRoot::open(&CgroupLayout::detect().unwrap(), &name).unwrap();

    let begun = Instant::now();
    let mut seen = Seen::default();
    seen.look_while(&groups, || {
        std::thread::scope(|scope| {
            for number in 0..SANDBOXES {
                let instance = &instance;
                scope.spawn(move || create(instance, &format!("boost-{number}")));
            }
        });
    });
    let took = begun.elapsed();
    assert!((1..=CAP).contains(&seen.most), "at once, of {CAP} that are allowed: {seen:?}");
    let turns = usize::try_from(took.as_millis() / BOOST.as_millis()).unwrap() + 1;
    assert!(seen.boosted.len() <= CAP * turns, "in {took:?}: {seen:?}");

    wait_until("every boost has ended", || {
        seen.look(&groups);
        quotas(&groups).values().all(Option::is_some)
    });
    let at_last = quotas(&groups);
    assert_eq!(at_last.len(), SANDBOXES);
    assert!(at_last.values().flatten().all(|quota| quota == QUOTA_MICROS), "{at_last:?}");
    assert!(seen.most <= CAP && seen.boosted_late.is_empty(), "once, at the start: {seen:?}");

    // One that is gone leaves its place to the next.
    let gone = instance
        .sandboxes()
        .into_iter()
        .find(|sandbox| sandbox["uid"].as_str().is_some_and(|uid| seen.boosted.contains(uid)))
        .expect("somebody was boosted");
    let gone = format!("sandbox/{}", gone["id"].as_str().unwrap());
    instance.atoll(["delete", &gone]).succeeded();
    let next = seen.look_while(&groups, || create(&instance, "next"));
    assert!(seen.boosted.contains(&next) && seen.most <= CAP, "{next} is boosted: {seen:?}");
    wait_until("its boost ends too", || quotas(&groups)[&next].as_deref() == Some(QUOTA_MICROS));
    for sandbox in instance.sandboxes() {
        let sandbox = format!("sandbox/{}", sandbox["id"].as_str().unwrap());
        instance.atoll(["delete", &sandbox]).succeeded();
    }
    instance.end();
}
