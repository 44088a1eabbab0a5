//! One throw-away sandbox after another, each in network and mount namespaces of its own.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atoll_sys::mount::{self, Attributes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::tiny_program;

/// How long one command may take (guess: ten times what it takes on a busy machine).
const WITHIN: Duration = Duration::from_secs(15);
/// Most bytes of output that are looked at.
const TEXT_BYTES: u64 = 8 * 1024;
const PROC_SYS_NET: &str = "/proc/sys/net";
/// What releases that need hiding say. SOURCE: runsc/sandbox/network.go.
const ROOT_NETWORK: &str = "root network namespace";

/// A bundle with a program that exits; removed when dropped.
pub(super) struct Probe {
    runsc: PathBuf,
    directory: PathBuf,
}

impl Probe {
    pub(super) fn new(runsc: &Path, parent: &Path) -> std::io::Result<Self> {
        let program = tiny_program::program().ok_or_else(|| {
            std::io::Error::other("this architecture is none of those that gVisor runs on")
        })?;
        let directory = parent.join(format!("gvisor-probe-{}", std::process::id()));
        // Of an earlier process with this pid that was killed.
        let _ = fs::remove_dir_all(&directory);
        let probe = Self { runsc: runsc.into(), directory };
        fs::create_dir_all(probe.directory.join("rootfs"))?;
        let path = probe.directory.join("rootfs/exit");
        fs::write(&path, program)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/exit"], "env": [], "cwd": "/" },
            "root": { "path": "rootfs", "readonly": true },
            "linux": { "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network", "path": "/proc/self/ns/net" },
            ] },
        });
        fs::write(probe.directory.join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(probe)
    }

    /// Runs a sandbox on that platform and says whether /proc/sys/net had to be hidden for it.
    ///
    /// # Errors
    /// What runsc said.
    pub(super) fn network_needs_hiding(&self, platform: &str) -> Result<bool, String> {
        match self.run(platform, false) {
            Ok(()) => Ok(false),
            Err(problem) if problem.contains(ROOT_NETWORK) => {
                self.run(platform, true).map(|()| true)
            }
            Err(problem) => Err(problem),
        }
    }

    fn run(&self, platform: &str, hide: bool) -> Result<(), String> {
        let id = format!("probe-{platform}-{hide}");
        let mut command = Command::new(&self.runsc);
        command.arg("--root").arg(self.directory.join("root"));
        command.args(["--ignore-cgroups", "--network=sandbox", "--overlay2=none", "--platform"]);
        command.arg(platform).arg("run").arg("--bundle").arg(&self.directory).arg(id);
        let ended = std::thread::scope(|scope| {
            // A thread of its own: it never leaves its namespaces again.
            let inside = scope.spawn(|| {
                enter_namespaces(hide).map_err(|error| error.to_string())?;
                run_bounded(&mut command)
            });
            inside.join().unwrap_or_else(|_| Err("the probe's thread panicked".into()))
        })?;
        if ended.code == Some(i32::from(tiny_program::EXIT_CODE)) {
            return Ok(());
        }
        let said: String =
            ended.text.trim().chars().filter(|c| !c.is_control()).take(300).collect();
        Err(match said.is_empty() {
            true => format!("runsc exited with {:?}", ended.code),
            false => said,
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // What stays is removed by the next probe of a process with this pid.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn enter_namespaces(hide: bool) -> std::io::Result<()> {
    atoll_sys::clone::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS)
        .map_err(std::io::Error::other)?;
    mount::isolate_propagation(true)?;
    if hide {
        let empty = mount::new_file_system("tmpfs", &[], Attributes::MOUNT_ATTR_RDONLY)?;
        mount::attach_at(empty.as_fd(), CWD, PROC_SYS_NET)?;
    }
    Ok(())
}

/// How a command ended.
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) code: Option<i32>,
    /// The beginning of its output, errors included.
    pub(super) text: String,
}

/// Runs a command that says little, to its end or its deadline.
pub(super) fn run_bounded(command: &mut Command) -> Result<Ended, String> {
    let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let errors = writer.try_clone().map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    // The command's copies of the writing end close with this.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = wait_bounded(child)?;
    let mut text = Vec::new();
    // A process that lives on may hold the pipe: what is there is enough.
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    rustix::io::ioctl_fionbio(&reader, true).map_err(|errno| errno.to_string())?;
    let _ = reader.take(TEXT_BYTES).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Ended { success: status.success(), code: status.code(), text })
}

fn wait_bounded(mut child: Child) -> Result<std::process::ExitStatus, String> {
    let deadline = Instant::now() + WITHIN;
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    let pidfd = atoll_sys::process::open_child(pid).map_err(|error| error.to_string())?;
    loop {
        let timeout = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => break,
            Ok(_) => return child.wait().map_err(|error| error.to_string()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
    }
    // It may have ended in this moment.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("it did not end within {} s", WITHIN.as_secs()))
}
