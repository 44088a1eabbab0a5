//! What this host's runsc can do: found, dated, and tried for real.
//!
//! Owns the search for the program, one probe (a sandbox that runs a program of a few bytes and exits), and the cached answer. Never
//! installs anything. The answer is kept for as long as program and kernel stay the same: a probe takes a quarter of a second.
//!
//! Blocking, and to be called before there is haste: from `spawn_blocking`, or before the server serves.

mod probe;
mod tiny_program;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use atoll_wire::shim::GvisorPlacement;
use serde::{Deserialize, Serialize};

/// Older releases cannot checkpoint network servers, and lack flags that are used. The same date stands in the script that installs
/// dependencies.
pub const OLDEST_USABLE: u32 = 20_240_101;
/// Where runsc is looked for beside PATH: a service manager may give none of these.
const USUAL_DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];
/// In order of preference. `kvm` is left out: where it works at all depends on more than a probe can tell.
const PLATFORMS: [&str; 2] = ["systrap", "ptrace"];
/// Version of the cached answer: an answer of another version is not believed.
const CACHE_VERSION: u32 = 1;

/// A runsc that works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GvisorHost {
    /// The program.
    pub runsc: PathBuf,
    /// What it calls itself: `release-20240729.0`.
    pub version: String,
    /// The release's date as a number, 20240729; `None` for builds without one.
    pub date: Option<u32>,
    /// The first platform that works.
    pub platform: String,
    /// It takes a visible /proc/sys/net for the host's network namespace.
    pub hide_proc_sys_net: bool,
}

impl GvisorHost {
    /// What an engine is told; `root` is the directory below which runsc keeps its state.
    #[must_use]
    pub fn placement(&self, root: PathBuf) -> GvisorPlacement {
        GvisorPlacement {
            runsc: self.runsc.clone(),
            root,
            platform: self.platform.clone(),
            hide_proc_sys_net: self.hide_proc_sys_net,
        }
    }

    /// For people: `runsc release-20240729.0, platform systrap`.
    #[must_use]
    pub fn detail(&self) -> String {
        format!("runsc {}, platform {}", self.version, self.platform)
    }
}

/// Why class `gvisor` is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GvisorMissing {
    /// No program.
    #[error(
        "runsc was not found in PATH or {}: install gVisor's runsc of {OLDEST_USABLE} or later (Debian 12: package runsc of \
         bookworm-backports; others: gvisor.dev/docs/user_guide/install)",
        USUAL_DIRECTORIES.join(", ")
    )]
    NotFound,
    /// It does not say its version.
    #[error("{} cannot be used: {problem}; install runsc anew", path.display())]
    Broken {
        /// The program.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// Too old.
    #[error(
        "{} is of {date}, too old: install runsc of {OLDEST_USABLE} or later (Debian 12: package runsc of bookworm-backports)",
        path.display()
    )]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its date as a number.
        date: u32,
    },
    /// No platform works.
    #[error("{} starts no sandbox on this host: {}", path.display(), problems.join("; "))]
    NotWorking {
        /// The program.
        path: PathBuf,
        /// What each platform said.
        problems: Vec<String>,
    },
    /// Nothing can be tried.
    #[error("runsc cannot be tried in {}: {problem}", directory.display())]
    NoProbe {
        /// Where the probe was to lie.
        directory: PathBuf,
        /// Why not.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Cached {
    version: u32,
    key: String,
    host: GvisorHost,
}

/// Finds out, or remembers: `directory` is the caller's own, holds the cached answer, and the probe while it runs. Only answers that say
/// "works" are cached.
///
/// # Errors
/// [`GvisorMissing`], with what to install.
pub fn detect(directory: &Path) -> Result<GvisorHost, GvisorMissing> {
    let program = find().ok_or(GvisorMissing::NotFound)?;
    detect_program(&program, directory)
}

fn detect_program(program: &Path, directory: &Path) -> Result<GvisorHost, GvisorMissing> {
    let cache = directory.join("gvisor-host.json");
    let key = key(program);
    if let Some(host) = key.as_deref().and_then(|key| cached(&cache, key)) {
        return Ok(host);
    }
    let host = try_out(program, directory)?;
    if let Some(key) = key {
        let whole = Cached { version: CACHE_VERSION, key, host: host.clone() };
        // An answer that is not kept costs the next start a quarter of a second.
        if let Err(error) = keep(&cache, &whole) {
            tracing::debug!(path = %cache.display(), %error, "the answer about runsc is not kept");
        }
    }
    Ok(host)
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    directories
        .chain(USUAL_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join("runsc"))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Changes when program or kernel change.
fn key(program: &Path) -> Option<String> {
    let found = fs::metadata(program).ok()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(format!(
        "{} {} {}.{} {}",
        program.display(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        kernel.trim()
    ))
}

fn cached(path: &Path, key: &str) -> Option<GvisorHost> {
    let cached: Cached = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (cached.version == CACHE_VERSION && cached.key == key).then_some(cached.host)
}

fn keep(path: &Path, cached: &Cached) -> std::io::Result<()> {
    let half_made = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file =
        File::options().create(true).write(true).truncate(true).mode(0o600).open(&half_made)?;
    file.write_all(&serde_json::to_vec(cached)?)?;
    fs::rename(&half_made, path)
}

fn try_out(program: &Path, directory: &Path) -> Result<GvisorHost, GvisorMissing> {
    let version = version_of(program)?;
    let date = date_in(&version);
    if let Some(date) = date.filter(|date| *date < OLDEST_USABLE) {
        return Err(GvisorMissing::TooOld { path: program.into(), date });
    }
    let probe = probe::Probe::new(program, directory).map_err(|problem| {
        GvisorMissing::NoProbe { directory: directory.into(), problem: problem.to_string() }
    })?;
    let mut problems = Vec::new();
    for platform in PLATFORMS {
        match probe.network_needs_hiding(platform) {
            Ok(hide_proc_sys_net) => {
                return Ok(GvisorHost {
                    runsc: program.into(),
                    version,
                    date,
                    platform: platform.into(),
                    hide_proc_sys_net,
                });
            }
            Err(problem) => problems.push(format!("platform {platform}: {problem}")),
        }
    }
    Err(GvisorMissing::NotWorking { path: program.into(), problems })
}

/// SOURCE: `runsc --version` prints `runsc version <version>` and then the specification's.
fn version_of(program: &Path) -> Result<String, GvisorMissing> {
    let broken = |problem: String| GvisorMissing::Broken { path: program.into(), problem };
    let mut command = Command::new(program);
    command.arg("--version");
    let ended = probe::run_bounded(&mut command).map_err(broken)?;
    let version = ended.text.lines().next().and_then(|line| line.strip_prefix("runsc version "));
    let version = version.filter(|_| ended.success).map(str::trim);
    version
        .map(|version| version.chars().filter(|c| !c.is_control()).take(64).collect())
        .ok_or_else(|| broken("it does not say its version".into()))
}

/// The first run of eight digits that can be a date of this century: `release-20240729.0`, `0.0~20240729.0`.
fn date_in(version: &str) -> Option<u32> {
    let runs = version.split(|c: char| !c.is_ascii_digit());
    runs.filter(|run| run.len() == 8 && run.starts_with("20")).find_map(|run| run.parse().ok())
}

#[cfg(test)]
mod tests;
