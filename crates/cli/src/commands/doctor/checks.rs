//! The questions. What the classes need is asked by the classes' own code; the rest is asked here.

use std::path::{Path, PathBuf};

use anyhow::Context;
use atoll_model::causes::with_causes;
use atoll_runtime::container_host::{self, HostFinding};
use atoll_runtime::disk::{self, ChosenDisks, DiskChoice, FullDisk};
use atoll_runtime::{RuntimeClass, gvisor_host};
use atoll_wire::shim::DiskBackend;

use super::{Check, Verdict};
use crate::commands::node;
use crate::output::human_bytes;

/// Free space below which images of ordinary size do not fit. Guess.
const LOW_SPACE_BYTES: u64 = 2 << 30;

/// Asks everything. Takes some tens of milliseconds, more when runsc is tried for the first time.
pub(super) fn all(data_dir: &Path) -> Vec<Check> {
    let mut checks = vec![processors_and_memory()];
    // What is tried is tried where the state will lie, in a directory that is gone afterwards.
    match tempfile::tempdir_in(nearest_existing(data_dir)) {
        Ok(probe) => {
            checks.extend(container(probe.path()));
            checks.extend(disk_backends(&disk::try_all(probe.path())));
            checks.push(gvisor(probe.path()));
        }
        Err(error) => checks.push(Check::bad(
            "data directory",
            Verdict::Missing,
            format!("{} cannot be written to: {error}", nearest_existing(data_dir).display()),
            "atoll cannot keep its state there",
            "Run as root, or choose another --data-dir.",
        )),
    }
    checks.push(egress());
    checks.push(unpack_helper());
    checks.push(space(data_dir));
    checks
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn processors_and_memory() -> Check {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0);
    Check::good("processors, memory", format!("{processors}, {}", human_bytes(memory_kib * 1024)))
}

/// What class `container` needs, and class `gvisor` most of it.
fn container(probe: &Path) -> Vec<Check> {
    let checks = container_host::report(probe, DiskChoice::Auto).checks;
    checks
        .into_iter()
        .map(|check| match check.finding {
            HostFinding::Works(found) => Check::good(check.name, found),
            HostFinding::Weaker(text) => Check::bad(
                check.name,
                Verdict::Limited,
                "not there",
                "class container isolates less",
                text,
            ),
            HostFinding::Missing(text) => Check::bad(
                check.name,
                Verdict::Missing,
                "not there",
                "class container cannot be had",
                text,
            ),
        })
        .collect()
}

/// What `atoll up --disk-backend` can be here. Nothing to say where none works: the check of what `auto` takes says it.
fn disk_backends<W>(tried: &[(DiskBackend, Result<ChosenDisks, W>)]) -> Option<Check> {
    let works = tried.iter().filter_map(|(backend, tried)| {
        let name = backend.name();
        Some(match tried.as_ref().ok()?.full {
            FullDisk::NoSpace => name.to_owned(),
            FullDisk::QuotaExceeded => format!("{name} (a full disk gives EDQUOT, not ENOSPC)"),
        })
    });
    let works = works.collect::<Vec<_>>().join(", ");
    let not = tried.iter().filter(|(_, tried)| tried.is_err()).map(|(backend, _)| backend.name());
    let not = not.collect::<Vec<_>>().join(", ");
    let found = match (works.is_empty(), not.is_empty()) {
        (true, _) => return None,
        (_, true) => works,
        (_, false) => format!("{works}; not: {not}"),
    };
    Some(Check::good("disk backends", found))
}

fn gvisor(probe: &Path) -> Check {
    match gvisor_host::detect(probe) {
        Ok(host) => Check::good("gVisor", format!("{}: {}", host.runsc.display(), host.detail())),
        Err(error) => Check::bad(
            "gVisor",
            Verdict::Limited,
            "not there",
            "class gvisor cannot be had",
            error.to_string(),
        ),
    }
}

fn egress() -> Check {
    match container_host::egress() {
        Ok(closed) if closed.is_empty() => Check::good("egress", "nftables"),
        Ok(closed) => Check::bad(
            "egress",
            Verdict::Limited,
            format!("the chain {} of another tool refuses to forward", closed.join(", ")),
            "sandboxes may reach no world, and no visitor them",
            "let the interfaces at-* pass there, in and out: what may, atoll decides".to_owned(),
        ),
        Err(why) => {
            Check::bad("egress", Verdict::Limited, "not there", "sandboxes have loopback only", why)
        }
    }
}

/// Asks it to try what it must not be able to do, rather than the kernel what it knows.
fn unpack_helper() -> Check {
    let name = "unpacking of images";
    match node::unpack_helper().check() {
        Ok(()) => Check::good(name, "in a helper that can touch nothing but its own directory"),
        Err(error) => Check::bad(
            name,
            Verdict::Missing,
            with_causes(&error),
            "images cannot be unpacked safely, and are not",
            "Run as root on Linux 5.13 or newer with Landlock (`lsm=landlock,…` on the kernel's command line).",
        ),
    }
}

/// The classes that isolate and can be had here, the weakest first.
pub(super) fn classes(data_dir: &Path) -> anyhow::Result<Vec<&'static str>> {
    let directory = nearest_existing(data_dir);
    let probe = tempfile::tempdir_in(&directory)
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    let container = container_host::report(probe.path(), DiskChoice::Auto).container().is_ok();
    let gvisor = gvisor_host::detect(probe.path()).is_ok();
    let found = [(RuntimeClass::Container, container), (RuntimeClass::Gvisor, gvisor)];
    Ok(found.into_iter().filter(|(_, there)| *there).map(|(class, _)| class.name()).collect())
}

/// The directory itself, or the nearest one above it that exists.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

fn space(data_dir: &Path) -> Check {
    let directory = nearest_existing(data_dir);
    let Ok(stat) = rustix::fs::statvfs(&directory) else {
        return Check::bad(
            "space",
            Verdict::Limited,
            format!("{} cannot be looked at", directory.display()),
            "it is not known whether images fit",
            "Choose another --data-dir.",
        );
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} free for {}", human_bytes(free), data_dir.display());
    if free >= LOW_SPACE_BYTES {
        return Check::good("space", found);
    }
    Check::bad(
        "space",
        Verdict::Limited,
        found,
        "larger images do not fit",
        "Free some space, or choose another --data-dir.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_that_work_are_told_apart_from_those_that_do_not() {
        let works =
            |backend, full| (backend, Ok(ChosenDisks { backend, full, detail: String::new() }));
        let mut tried = vec![
            works(DiskBackend::Image, FullDisk::NoSpace),
            works(DiskBackend::Btrfs, FullDisk::QuotaExceeded),
            (DiskBackend::ProjectQuota, Err("no quotas")),
        ];
        let told = disk_backends(&tried).unwrap().found;
        assert_eq!(told, "image, btrfs (a full disk gives EDQUOT, not ENOSPC); not: project-quota");
        tried.truncate(1);
        assert_eq!(disk_backends(&tried).unwrap().found, "image");
        assert!(disk_backends(&tried[1..]).is_none());
    }

    #[test]
    fn a_directory_to_be_is_measured_where_it_will_lie() {
        assert_eq!(nearest_existing(Path::new("/proc/not/there")), Path::new("/proc"));
    }
}
