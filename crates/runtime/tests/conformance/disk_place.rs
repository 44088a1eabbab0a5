//! A file system of its own for each case about disks: made in a file, mounted where nobody else sees it, and gone however the case ends.
//!
//! The case runs in a copy of this program in a mount namespace of its own: what is mounted there ends with its last process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use atoll_runtime::RuntimeClass;
use atoll_runtime::disk::DiskChoice;
use atoll_sys::loop_device::{LoopOptions, attach};
use atoll_wire::shim::DiskBackend;

use crate::bench::{self, Bench};
use crate::watchdog::Watchdog;

/// Tells the copy of this program where to make the file system.
const INSIDE: &str = "ATOLL_DISK_PLACE";
/// Sparse: what a case writes is less.
const SIZE: &str = "640M";

/// What a case is run on.
pub(crate) struct Place {
    pub(crate) backend: DiskBackend,
    /// Where the file system is mounted.
    pub(crate) mount: PathBuf,
}

impl Place {
    /// What a program says when its disk is full.
    pub(crate) fn full(&self) -> &'static str {
        match (self.backend, self.file_system()) {
            (DiskBackend::Btrfs, _) => "quota exceeded",
            (DiskBackend::ProjectQuota, "ext4") => "quota exceeded",
            _ => "No space left",
        }
    }

    pub(crate) fn file_system(&self) -> &'static str {
        match self.mount.file_name().and_then(|name| name.to_str()) {
            Some("ext4") => "ext4",
            Some("xfs") => "xfs",
            _ => "btrfs",
        }
    }
}

/// Runs a case in a copy of this program, or, in that copy, itself. `test` is its whole path.
pub(crate) fn run(
    test: &str,
    class: &str,
    place: &str,
    case: impl AsyncFnOnce(&mut Bench, &Place),
) {
    let case_name = test.rsplit("::").next().unwrap();
    let name = format!("conformance/{class}/disks/{place}/{case_name}");
    if let Some(directory) = std::env::var_os(INSIDE) {
        let class = RuntimeClass::from_name(class).unwrap();
        return run_inside(Path::new(&directory), &name, class, place, case);
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {name}: needs root");
        return;
    }
    let directory = tempfile::Builder::new().prefix("atoll-disks-").tempdir().unwrap();
    // Without the crate's name, as the test runner knows it.
    let filter = test.split_once("::").unwrap().1;
    // Later than that of the copy, which knows more.
    let _watchdog = Watchdog::of(&name, directory.path(), bench::HANGS_AFTER * 5 / 4);
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", filter, "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        println!("{line}");
    }
    let why = said.find("panicked").map_or("", |at| &said[at..]);
    assert!(output.status.success(), "{name}: {}\n{why}\n{errors}", output.status);
    assert!(said.contains(&name), "{name} did not run:\n{said}");
}

fn run_inside(
    directory: &Path,
    name: &str,
    class: RuntimeClass,
    place: &str,
    case: impl AsyncFnOnce(&mut Bench, &Place),
) {
    let (file_system, backend) = match place {
        "image_on_btrfs" => ("btrfs", DiskBackend::Image),
        "btrfs" => ("btrfs", DiskBackend::Btrfs),
        "ext4_projects" => ("ext4", DiskBackend::ProjectQuota),
        "xfs_projects" => ("xfs", DiskBackend::ProjectQuota),
        other => panic!("no place is called {other}"),
    };
    let place = Place { backend, mount: directory.join(file_system) };
    if crate::disks::churn(class, &place) {
        return;
    }
    if let Err(why) = mount(directory, &place.mount, file_system) {
        println!("SKIPPED: {name}: {why}");
        return;
    }
    let choice = DiskChoice::Only(backend);
    println!("{name}");
    bench::run_in(&place.mount, choice, class, name, async |bench: &mut Bench| {
        case(bench, &place).await;
        crate::disks::settle(bench, &place).await;
    });
    crate::disks::assert_nothing_left(&place);
}

/// Makes and mounts a file system; the error says what this machine lacks.
fn mount(directory: &Path, mount: &Path, file_system: &str) -> Result<(), String> {
    let image = directory.join("file-system");
    let image = image.to_str().unwrap();
    std::fs::create_dir(mount).unwrap();
    run_tool("truncate", &["-s", SIZE, image])?;
    let (make, options): (&[&str], &str) = match file_system {
        "ext4" => (&["-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "prjquota"),
        "xfs" => (&["-q"], "pquota"),
        // It cleans up behind subvolumes once in that many seconds.
        _ => (&["-q"], "commit=1"),
    };
    run_tool(&format!("mkfs.{file_system}"), &[make, &[image]].concat())?;
    // Not `-o loop`, which caches the file's pages besides, charged to the sandboxes that write: no host's disk does that.
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let device = attach(&file, Path::new(image), LoopOptions { direct_io: true });
    let device = device.map_err(|error| error.to_string())?;
    let node = device.path().to_str().unwrap();
    run_tool("mount", &["-t", file_system, "-o", options, node, mount.to_str().unwrap()])?;
    if file_system == "btrfs" {
        run_tool("btrfs", &["quota", "enable", mount.to_str().unwrap()])?;
    }
    Ok(())
}

/// Runs a program of the host; gives what it prints.
pub(crate) fn run_tool(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}
