//! A sandbox's directory: records written whole, FIFOs, the lock that keeps a second shim away, stream numbers.
//!
//! What is read here may be half-written, damaged or made by somebody else: it is bounded and an error, never a panic.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_sys::clock;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file that is read: a launch with its environments.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
/// Kept on disk from the start, so that the end can be written to a disk that has become full.
const RESERVE_BYTES: u64 = 64 * 1024;
/// How long a lock that somebody else has is waited for: a server that looks whether a shim lives takes it for microseconds, and must not
/// keep a shim from beginning by that. Whoever really holds it does so for as long as its sandbox lives.
const HELD_FOR_A_LOOK: Duration = Duration::from_millis(300);
/// Between tries to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(1);
/// Stream numbers that are taken from the disk at a time.
const STREAM_BLOCK: u32 = 1 << 16;

const LOCK: &str = "shim.lock";
const RESERVE: &str = "reserve";

/// Something with a file did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// The kernel refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{} is damaged: {message}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Another shim holds the sandbox.
    #[error("another shim holds {}", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
    },
}

impl DirectoryError {
    fn io(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { operation, path: path.into(), source }
    }
}

/// Whether a record must survive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives the death of processes: what it tells of is gone with the machine anyway.
    Process,
    /// Survives the machine.
    Disk,
}

/// The directory, held by this shim alone until the process ends.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
    next_stream: u32,
    streams_end: u32,
}

impl Directory {
    /// Takes the directory.
    pub(crate) fn hold(path: &Path) -> Result<Self, DirectoryError> {
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&lock_path)
            .map_err(DirectoryError::io("open", &lock_path))?;
        let give_up_at = clock::monotonic() + HELD_FOR_A_LOOK;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::AGAIN) if clock::monotonic() < give_up_at => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(DirectoryError::Held { path: path.into() });
                }
                Err(errno) => return Err(DirectoryError::io("lock", &lock_path)(errno.into())),
            }
        }
        // Who removes a sandbox holds the lock until its directory is gone.
        let same = |there: &fs::Metadata, ours: &fs::Metadata| {
            (there.dev(), there.ino()) == (ours.dev(), ours.ino())
        };
        match (fs::symlink_metadata(&lock_path), lock.metadata()) {
            (Ok(there), Ok(ours)) if same(&there, &ours) => {}
            (Err(error), _) | (_, Err(error)) => {
                return Err(DirectoryError::io("find", &lock_path)(error));
            }
            _ => return Err(DirectoryError::Held { path: path.into() }),
        }
        Ok(Self { path: path.into(), lock, next_stream: 0, streams_end: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A stream number that no shim of this sandbox has used. The lock file holds where the next block of them begins; 0 is the main process's.
    pub(crate) fn next_stream(&mut self) -> Result<u32, DirectoryError> {
        if self.next_stream >= self.streams_end {
            let path = self.path.join(LOCK);
            let mut bytes = [0; 4];
            let begin = match self.lock.read_exact_at(&mut bytes, 0) {
                Ok(()) => u32::from_le_bytes(bytes),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => 1,
                Err(error) => return Err(DirectoryError::io("read", &path)(error)),
            };
            let end = begin.checked_add(STREAM_BLOCK).ok_or_else(|| DirectoryError::Damaged {
                path: path.clone(),
                message: "all stream numbers are used".into(),
            })?;
            self.lock
                .write_all_at(&end.to_le_bytes(), 0)
                .map_err(DirectoryError::io("write", &path))?;
            (self.next_stream, self.streams_end) = (begin.max(1), end);
        }
        let stream = self.next_stream;
        self.next_stream += 1;
        Ok(stream)
    }

    /// Keeps room for the last record. Best effort: not every file system can.
    pub(crate) fn reserve(&self) {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(RESERVE));
        if let Ok(file) = file {
            let _ =
                rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES);
        }
    }

    /// Reads a record; `None` when there is none.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, DirectoryError> {
        read_json(&self.path.join(name))
    }

    /// Writes a record whole. On a full disk the reserve is given up for it.
    pub(crate) fn write<T: Serialize>(
        &self,
        name: &str,
        record: &T,
        durability: Durability,
    ) -> Result<(), DirectoryError> {
        let first = self.try_write(name, record, durability);
        match &first {
            Err(DirectoryError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
                    && fs::remove_file(self.path.join(RESERVE)).is_ok() =>
            {
                self.try_write(name, record, durability)
            }
            _ => first,
        }
    }

    fn try_write<T: Serialize>(
        &self,
        name: &str,
        record: &T,
        durability: Durability,
    ) -> Result<(), DirectoryError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let bytes = serde_json::to_vec(record).map_err(|error| DirectoryError::Damaged {
            path: path.clone(),
            message: error.to_string(),
        })?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&temporary)
            .map_err(DirectoryError::io("open", &temporary))?;
        file.write_all(&bytes).map_err(DirectoryError::io("write", &temporary))?;
        if durability == Durability::Disk {
            file.sync_all().map_err(DirectoryError::io("sync", &temporary))?;
        }
        fs::rename(&temporary, &path).map_err(DirectoryError::io("rename", &temporary))?;
        if durability == Durability::Disk {
            let directory =
                File::open(&self.path).map_err(DirectoryError::io("open", &self.path))?;
            directory.sync_all().map_err(DirectoryError::io("sync", &self.path))?;
        }
        Ok(())
    }

    /// Makes a directory of the sandbox's; it may exist.
    pub(crate) fn make_directory(&self, name: &str) -> Result<PathBuf, DirectoryError> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(CWD, &path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(path),
            Err(errno) => Err(DirectoryError::io("make", &path)(errno.into())),
        }
    }
}

/// Reads a bounded JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DirectoryError> {
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DirectoryError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(DirectoryError::io("read", path))?;
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(DirectoryError::Damaged { path: path.into(), message: "too large".into() });
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| DirectoryError::Damaged { path: path.into(), message: error.to_string() })
}

/// Makes a FIFO where there is none.
pub(crate) fn make_fifo(path: &Path) -> Result<(), DirectoryError> {
    match rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(DirectoryError::io("make", path)(errno.into())),
    }
}

/// How a FIFO is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FifoEnd {
    /// Both directions, so that it never ends; does not block. Every opening has its own flags: the other side blocks or not by itself.
    Ours,
    /// Both directions; blocks.
    Theirs,
    /// Reading only; blocks. This side must be open already.
    TheirsToRead,
}

/// Opens a FIFO, and nothing but a FIFO.
pub(crate) fn open_fifo(path: &Path, end: FifoEnd) -> Result<OwnedFd, DirectoryError> {
    let flags = OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | match end {
            FifoEnd::Ours => OFlags::RDWR | OFlags::NONBLOCK,
            FifoEnd::Theirs => OFlags::RDWR,
            FifoEnd::TheirsToRead => OFlags::RDONLY,
        };
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| DirectoryError::io("open", path)(errno.into()))?;
    let stat = rustix::fs::fstat(&fd)
        .map_err(|errno| DirectoryError::io("examine", path)(errno.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Fifo {
        return Err(DirectoryError::Damaged { path: path.into(), message: "not a FIFO".into() });
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_no_stream_number_twice() {
        let temporary = tempfile::tempdir().unwrap();
        let mut first = Directory::hold(temporary.path()).unwrap();
        assert!(matches!(Directory::hold(temporary.path()), Err(DirectoryError::Held { .. })));
        assert_eq!((first.next_stream().unwrap(), first.next_stream().unwrap()), (1, 2));
        first.next_stream = first.streams_end;
        assert_eq!(first.next_stream().unwrap(), 1 + STREAM_BLOCK);
        drop(first);
        let mut second = Directory::hold(temporary.path()).unwrap();
        assert_eq!(second.next_stream().unwrap(), 1 + 2 * STREAM_BLOCK);
    }

    #[test]
    fn who_only_looks_keeps_no_shim_from_beginning() {
        let temporary = tempfile::tempdir().unwrap();
        let looking = Directory::hold(temporary.path()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let place = temporary.path().to_owned();
        let shim = std::thread::spawn(move || {
            sender.send(()).unwrap();
            Directory::hold(&place).map(drop).map_err(|error| error.to_string())
        });
        receiver.recv().unwrap();
        std::thread::sleep(LOCK_PAUSE * 5);
        drop(looking);
        shim.join().unwrap().unwrap();
    }

    #[test]
    fn a_directory_that_was_removed_meanwhile_is_not_held() {
        let temporary = tempfile::tempdir().unwrap();
        let place = temporary.path().join("sandbox");
        fs::create_dir(&place).unwrap();
        let removing = Directory::hold(&place).unwrap();
        let late = std::thread::spawn({
            let place = place.clone();
            move || Directory::hold(&place).map(drop).map_err(|error| error.to_string())
        });
        std::thread::sleep(LOCK_PAUSE * 5);
        fs::rename(&place, temporary.path().join("trash")).unwrap();
        drop(removing);
        assert!(late.join().unwrap().is_err());
    }

    #[test]
    fn records_are_whole_and_damage_is_told() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::hold(temporary.path()).unwrap();
        assert_eq!(directory.read::<Vec<u32>>("record.json").unwrap(), None);
        directory.write("record.json", &[1, 2], Durability::Disk).unwrap();
        assert_eq!(directory.read::<Vec<u32>>("record.json").unwrap(), Some(vec![1, 2]));
        fs::write(temporary.path().join("record.json"), "[1,").unwrap();
        let error = directory.read::<Vec<u32>>("record.json").unwrap_err().to_string();
        assert!(error.contains("record.json is damaged"), "{error}");
        std::os::unix::fs::symlink("/etc/passwd", temporary.path().join("link")).unwrap();
        assert!(directory.read::<Vec<u32>>("link").is_err());
    }

    #[test]
    fn only_a_fifo_is_opened_as_one() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("fifo");
        make_fifo(&path).unwrap();
        make_fifo(&path).unwrap();
        open_fifo(&path, FifoEnd::Ours).unwrap();
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(open_fifo(&file, FifoEnd::Ours).is_err());
    }
}
