//! Where things lie below the data directory, and reading what shims wrote there.
//!
//! Owns names and bounds. What is read may be half-written, damaged or from another version: it is an error with a reason, never a panic.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use atoll_wire::record::{EndRecord, RECORD_VERSION, ShimRecord};
use atoll_wire::shim::{DiskBackend, Launch, SHIM_PROTOCOL_VERSION, container_directory};
use rustix::fs::{FlockOperation, IFlags, OFlags};
use serde::de::DeserializeOwned;

use crate::{RuntimeError, disk};

/// Largest record that is read: a launch with its environments.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// Digits of a sandbox's uid.
const UID_DIGITS: usize = 16;
/// Directories of the pool: so many that what was lately removed from one of them is little (guess).
const POOL_PARTS: u64 = 16;

pub(super) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl Fn(std::io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::Io { operation, path: path.clone(), source }
}

/// Whether a name can be a sandbox's uid, and so a directory of ours.
pub(super) fn is_uid(name: &str) -> bool {
    name.len() == UID_DIGITS
        && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Tells ext4 that the directories in this one are unrelated, so that it puts each in a block group of its own choice. Without a journal
/// ext4 looks, for each new file, at every inode of the group that was removed within the last minutes: with all sandboxes in one group
/// their creation becomes slower the more of them were removed. SOURCE: chattr(1), attribute T; recently_deleted in the kernel's
/// fs/ext4/ialloc.c. Other file systems refuse, and need no such hint.
fn spread_what_is_made_in(directory: &Path) {
    let hinted = open_plain(directory, OFlags::RDONLY | OFlags::DIRECTORY).and_then(|directory| {
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        Ok(rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)?)
    });
    if let Err(error) = hinted {
        tracing::debug!(path = %directory.display(), %error, "no hint for the file system");
    }
}

/// The directories of an instance.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) data_dir: PathBuf,
}

impl Layout {
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.data_dir.join("sandboxes")
    }

    pub(super) fn sandbox(&self, uid: &str) -> SandboxDirectory {
        SandboxDirectory { path: self.sandboxes().join(uid) }
    }

    /// Named volumes: they outlive sandboxes, servers and crashes.
    pub(super) fn volumes(&self) -> PathBuf {
        self.data_dir.join(disk::VOLUMES)
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.data_dir.join("quarantine")
    }

    /// Prepared disks and what waits to be removed: worth nothing without the server that made it.
    pub(super) fn pool(&self) -> PathBuf {
        self.data_dir.join("run/pool")
    }

    /// Where the pool's disk of this number is made: one of a few directories, which [`Self::prepare`] spreads.
    pub(super) fn pool_part(&self, number: u64) -> PathBuf {
        self.pool().join((number % POOL_PARTS).to_string())
    }

    /// Disk templates by size: kept.
    pub(super) fn templates(&self) -> PathBuf {
        self.data_dir.join("run/templates")
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.data_dir.join("run/trash")
    }

    /// What runsc keeps of running sandboxes, one directory each: must outlive the server.
    pub(super) fn runsc(&self) -> PathBuf {
        self.data_dir.join("runsc")
    }

    pub(super) fn spawner_log(&self) -> PathBuf {
        self.data_dir.join("run/spawner.log")
    }

    /// Makes what is missing and empties what an earlier server left unfinished.
    pub(super) fn prepare(&self) -> Result<(), RuntimeError> {
        let parts = (0..POOL_PARTS).map(|part| self.pool_part(part));
        for part in parts.clone() {
            disk::remove_what_is_left(&part)?;
        }
        for left in [self.pool(), self.trash()] {
            disk::remove_what_is_left(&left)?;
            match fs::remove_dir_all(&left) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("empty", &left)(error));
                }
                _ => {}
            }
        }
        for directory in [
            self.sandboxes(),
            self.volumes(),
            self.quarantine(),
            self.pool(),
            self.templates(),
            self.trash(),
            self.runsc(),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(io_error("create", &directory))?;
        }
        for spread in [self.sandboxes(), self.pool()] {
            spread_what_is_made_in(&spread);
        }
        for part in parts {
            fs::create_dir(&part).map_err(io_error("create", &part))?;
        }
        Ok(())
    }

    /// The uids that have a directory, in order.
    pub(super) fn uids(&self) -> Result<Vec<String>, RuntimeError> {
        let path = self.sandboxes();
        let mut uids = Vec::new();
        for entry in fs::read_dir(&path).map_err(io_error("list", &path))? {
            let name = entry.map_err(io_error("list", &path))?.file_name();
            uids.extend(name.to_str().filter(|name| is_uid(name)).map(str::to_owned));
        }
        uids.sort_unstable();
        Ok(uids)
    }

    /// Sets a directory aside, whole, with a note why.
    pub(super) fn set_aside(&self, uid: &str, reason: &str) -> Result<PathBuf, RuntimeError> {
        let from = self.sandbox(uid).path;
        let to = self.quarantine().join(format!("{uid}-{}", atoll_sys::clock::unix_micros()));
        fs::rename(&from, &to).map_err(io_error("set aside", &from))?;
        let note = to.join("quarantine-reason.txt");
        if let Err(error) = fs::write(&note, format!("{reason}\n")) {
            tracing::warn!(path = %note.display(), %error, "a quarantined directory has no note");
        }
        Ok(to)
    }

    /// Removes a directory so that nobody ever sees half of it.
    pub(super) fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        let from = self.sandbox(uid).path;
        let to = self.trash().join(format!("{uid}-{}", atoll_sys::clock::monotonic_micros()));
        match fs::rename(&from, &to) {
            Ok(()) => {
                disk::remove_all_of(&to)?;
                fs::remove_dir_all(&to).map_err(io_error("remove", &to))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", &from)(error)),
        }
    }
}

/// One sandbox's directory.
#[derive(Debug, Clone)]
pub(super) struct SandboxDirectory {
    pub(super) path: PathBuf,
}

/// A record that was looked for.
#[derive(Debug)]
pub(super) enum Found<T> {
    Absent,
    /// Empty: begun and never finished, by a process or a host that died.
    Unfinished,
    Damaged(String),
    Whole(T),
}

/// Whether a shim lives.
#[derive(Debug)]
pub(super) enum ShimLock {
    /// One does, or starts just now.
    Held,
    /// None does, and none can begin while this is kept.
    Ours(File),
    /// None ever did.
    NeverTaken,
}

impl SandboxDirectory {
    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("shim.sock")
    }

    pub(super) fn disk(&self, container: &str, backend: DiskBackend) -> PathBuf {
        self.path.join(container_directory(container)).join(disk::file_name(backend))
    }

    /// There while the sandbox's published ports are open.
    pub(super) fn published(&self) -> PathBuf {
        self.path.join("published")
    }

    pub(super) fn log(&self, container: &str) -> PathBuf {
        self.path.join("logs").join(format!("{container}.log"))
    }

    /// Makes the directory, those of its containers and of its logs. Fails when it exists.
    pub(super) fn create<'a>(
        &self,
        containers: impl Iterator<Item = &'a str>,
    ) -> Result<(), RuntimeError> {
        let make = |path: &Path, recursive| {
            DirBuilder::new()
                .recursive(recursive)
                .mode(0o700)
                .create(path)
                .map_err(io_error("create", path))
        };
        make(&self.path, false)?;
        for container in containers {
            make(&self.path.join(container_directory(container)), true)?;
        }
        make(&self.path.join("logs"), true)
    }

    /// Writes `launch.json`, whole or not at all, also where a writer that was killed left half of another. Not synced: what it tells of ends
    /// with the host.
    pub(super) fn write_launch(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let path = self.path.join("launch.json");
        let half_written = self.path.join("launch.json.new");
        let bytes = serde_json::to_vec(launch)
            .map_err(|error| io_error("write", &path)(std::io::Error::other(error)))?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&half_written)
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(io_error("write", &half_written))?;
        fs::rename(&half_written, &path).map_err(io_error("write", &path))
    }

    pub(super) fn launch(&self) -> Found<Launch> {
        self.read("launch.json", |launch: &Launch| (launch.version, SHIM_PROTOCOL_VERSION))
    }

    pub(super) fn shim_record(&self) -> Found<ShimRecord> {
        self.read("shim.json", |record: &ShimRecord| (record.version, RECORD_VERSION))
    }

    pub(super) fn end(&self) -> Found<EndRecord> {
        self.read("end.json", |record: &EndRecord| (record.version, RECORD_VERSION))
    }

    fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        versions: impl Fn(&T) -> (u32, u32),
    ) -> Found<T> {
        let path = self.path.join(name);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Found::Absent,
            Err(error) => return Found::Damaged(format!("{name} cannot be read: {error}")),
        };
        if bytes.is_empty() {
            return Found::Unfinished;
        }
        match serde_json::from_slice(&bytes) {
            Ok(record) => match versions(&record) {
                (found, known) if found > known => Found::Damaged(format!(
                    "{name} has version {found}, this atoll knows up to {known}: use the newer atoll that wrote it"
                )),
                _ => Found::Whole(record),
            },
            Err(error) => Found::Damaged(format!("{name} is damaged: {error}")),
        }
    }

    /// Looks whether a shim holds the directory.
    pub(super) fn lock(&self) -> Result<ShimLock, RuntimeError> {
        let path = self.path.join("shim.lock");
        let file = match open_plain(&path, OFlags::RDWR) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ShimLock::NeverTaken),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(ShimLock::Ours(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(ShimLock::Held),
            Err(errno) => Err(io_error("lock", &path)(errno.into())),
        }
    }

    /// Takes the lock even where no shim ever did, so that none that starts late can begin. `None`: one holds it.
    pub(super) fn take_lock(&self) -> Result<Option<File>, RuntimeError> {
        if matches!(self.lock()?, ShimLock::NeverTaken) {
            let path = self.path.join("shim.lock");
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
                .map_err(io_error("create", &path))?;
        }
        match self.lock()? {
            ShimLock::Ours(file) => Ok(Some(file)),
            ShimLock::Held | ShimLock::NeverTaken => Ok(None),
        }
    }
}

fn open_plain(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = open_plain(path, OFlags::RDONLY)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "it is too large"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_uids_are_names_of_ours() {
        assert!(is_uid("0123456789abcdef"));
        for name in [
            "",
            "..",
            "0123456789abcdeF",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789abcd/.",
        ] {
            assert!(!is_uid(name), "{name}");
        }
    }

    /// A launch is written again when its sandbox gives its slot back: a writer that was killed there must not be in the next one's way.
    #[test]
    fn a_launch_is_written_over_what_a_killed_writer_left() {
        use atoll_wire::shim::{Engine, NetworkPlan, Placement, SandboxPlan};
        let data = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory { path: data.path().join("s") };
        directory.create(["main"].into_iter()).unwrap();
        let plan = SandboxPlan {
            uid: "0123456789abcdef".into(),
            hostname: "box".into(),
            containers: Vec::new(),
            volumes: Vec::new(),
            shm_bytes: 0,
            boost_millis: 0,
            network: NetworkPlan::World,
            grants: Vec::new(),
            ports: Vec::new(),
        };
        let placement = Placement {
            engine: Engine::Container,
            directory: directory.path.clone(),
            cgroup_instance: "instance".into(),
            first_host_id: None,
            guest_binary: "/guest".into(),
            gvisor: None,
            disk_backend: DiskBackend::Image,
            network: None,
        };
        let launch = Launch { version: SHIM_PROTOCOL_VERSION, plan, placement };
        fs::write(directory.path.join("launch.json.new"), "x".repeat(100_000)).unwrap();
        directory.write_launch(&launch).unwrap();
        assert!(matches!(directory.launch(), Found::Whole(read) if read == launch));
        directory.write_launch(&launch).unwrap();
    }

    #[test]
    fn damaged_and_newer_records_are_told_apart_from_absent_ones() {
        let data = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory { path: data.path().join("s") };
        directory.create(["main"].into_iter()).unwrap();
        assert!(directory.create(["main"].into_iter()).is_err(), "a uid is used once");
        assert!(matches!(directory.end(), Found::Absent));
        let write = |text: &str| fs::write(directory.path.join("end.json"), text).unwrap();
        write("");
        assert!(matches!(directory.end(), Found::Unfinished));
        write("{");
        assert!(matches!(directory.end(), Found::Damaged(_)));
        let record = r#"{"version":9,"ended_at_unix_micros":0,"containers":[],"launch_failure":null,"log_dropped_bytes":[]}"#;
        write(record);
        assert!(matches!(directory.end(), Found::Damaged(reason) if reason.contains("newer")));
        write(&record.replace('9', "1"));
        assert!(matches!(directory.end(), Found::Whole(_)));
    }

    #[test]
    fn what_an_earlier_server_left_in_the_pool_is_removed_and_the_rest_is_spread() {
        let data = tempfile::tempdir().unwrap();
        let layout = Layout { data_dir: data.path().to_owned() };
        layout.prepare().unwrap();
        let left = layout.pool_part(POOL_PARTS + 1).join("disk-17.ext4");
        fs::write(&left, "left").unwrap();
        assert_eq!(left.parent(), Some(layout.pool_part(1).as_path()));
        layout.prepare().unwrap();
        assert!(!left.exists(), "a prepared disk is worth nothing to the next server");
        let directory = open_plain(&layout.sandboxes(), OFlags::RDONLY).unwrap();
        match rustix::fs::ioctl_getflags(&directory) {
            Ok(flags) if is_ext4(data.path()) => assert!(flags.contains(IFlags::TOPDIR)),
            _ => println!("SKIPPED: spreading of sandboxes: the file system is not ext4"),
        }
    }

    fn is_ext4(path: &Path) -> bool {
        // SOURCE: statfs(2), EXT4_SUPER_MAGIC.
        rustix::fs::statfs(path).is_ok_and(|found| found.f_type == 0xEF53)
    }

    #[test]
    fn the_lock_tells_whether_a_shim_lives() {
        let data = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory { path: data.path().join("s") };
        directory.create(std::iter::empty()).unwrap();
        assert!(matches!(directory.lock().unwrap(), ShimLock::NeverTaken));
        let held = directory.take_lock().unwrap();
        assert!(held.is_some());
        assert!(matches!(directory.lock().unwrap(), ShimLock::Held));
        drop(held);
        assert!(matches!(directory.lock().unwrap(), ShimLock::Ours(_)));
    }
}
