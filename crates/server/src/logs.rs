//! Reading a container's log while it is written and rotated, and learning of changes from the kernel.
//!
//! Never follows a link out of a sandbox's directory, and reads regular files alone: whoever could put something else in a log's place
//! would read the host's files with it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, inotify};
use rustix::io::Errno;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;
/// A safety net: the file system may not tell (an exhausted watch limit).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A place in a log: the rotated part first, then the current one, then whatever comes.
pub(crate) struct LogReader {
    path: PathBuf,
    file: Option<(File, u64)>,
    begun: bool,
    partial: Vec<u8>,
}

impl LogReader {
    /// From the first byte that is kept.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, begun: false, partial: Vec::new() }
    }

    /// Whether what is there is a log that may be read.
    ///
    /// # Errors
    /// `InvalidData` when a link or something other than a regular file stands in a log's place; what opening it answers.
    pub(crate) async fn check(&self) -> io::Result<()> {
        open(&self.rotated()).await?;
        open(&self.path).await?;
        Ok(())
    }

    /// The next whole lines; empty: there are none at the moment.
    pub(crate) async fn read_lines(&mut self) -> io::Result<Vec<u8>> {
        if !self.begun {
            self.begun = true;
            self.file = open(&self.rotated()).await?;
        }
        loop {
            if let Some((file, _)) = &mut self.file {
                let mut chunk = vec![0; CHUNK_BYTES];
                let count = file.read(&mut chunk).await?;
                if count > 0 {
                    if let Some(lines) = self.whole_lines(&chunk[..count]) {
                        return Ok(lines);
                    }
                    continue;
                }
            }
            // At the end of this file: is there a newer one?
            let newer = match (open(&self.path).await?, &self.file) {
                (None, _) => None,
                (Some((_, inode)), Some((_, current))) if inode == *current => None,
                (Some(newer), _) => Some(newer),
            };
            match newer {
                Some(newer) => self.file = Some(newer),
                None => return Ok(Vec::new()),
            }
        }
    }

    fn rotated(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }

    fn whole_lines(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            // No record is that long: it is none, and not to be kept.
            if self.partial.len() + chunk.len() <= 4 * CHUNK_BYTES {
                self.partial.extend_from_slice(chunk);
            }
            return None;
        };
        let mut lines = std::mem::take(&mut self.partial);
        lines.extend_from_slice(&chunk[..=end]);
        self.partial = chunk[end + 1..].to_vec();
        Some(lines)
    }
}

/// `None`: there is none.
async fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    let wanted = path.to_owned();
    match tokio::task::spawn_blocking(move || open_beneath(&wanted)).await? {
        Ok(found) => {
            let inode = found.metadata()?.ino();
            Ok(Some((File::from_std(found), inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens `<directory>/logs/<name>`: from the sandbox's directory on there is no link, and what is found is a regular file.
fn open_beneath(path: &Path) -> io::Result<std::fs::File> {
    let refused = |what: &str| {
        let text = format!("{} {what}: it is not read", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let linked = |errno| match errno {
        Errno::LOOP => refused("leads through a symbolic link"),
        errno => io::Error::from(errno),
    };
    let logs = path.parent().ok_or_else(|| refused("lies in no directory"))?;
    let sandbox = logs.parent().ok_or_else(|| refused("lies in no sandbox's directory"))?;
    let below = path.strip_prefix(sandbox).map_err(|_| refused("lies in no directory"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let sandbox = rustix::fs::openat(CWD, sandbox, flags, Mode::empty()).map_err(linked)?;
    // A FIFO without a writer must not hold anybody up before it is refused.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(sandbox, below, flags, Mode::empty(), resolve);
    let file = std::fs::File::from(file.map_err(linked)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(refused("is no regular file")),
    }
}

/// Tells when files of a log change. An inotify descriptor, which is read like a pipe.
pub(crate) struct Changes(pipe::Receiver);

impl Changes {
    /// Watches the directory of a log.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let kinds = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::ONLYDIR
            | inotify::WatchFlags::DONT_FOLLOW;
        inotify::add_watch(&watch, directory, kinds)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(watch)?))
    }

    /// Waits for a change; without a watch, for a while.
    pub(crate) async fn next(changes: &mut Option<Self>) {
        let changed = async {
            let Some(Self(watch)) = changes else { return std::future::pending().await };
            // What changed does not matter, only that something did.
            let _count = watch.read(&mut [0; 4096]).await.unwrap_or_default();
        };
        // Elapsed or told: both mean to look.
        tokio::time::timeout(LOOK_AGAIN, changed).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_follows_a_log_over_its_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.log");
        std::fs::write(directory.path().join("main.log.1"), "a\nb\n").unwrap();
        std::fs::write(&path, "c\nd").unwrap();
        let mut reader = LogReader::new(path.clone());
        let mut changes = Some(Changes::of(&path).unwrap());
        assert_eq!(reader.read_lines().await.unwrap(), b"a\nb\n");
        assert_eq!(reader.read_lines().await.unwrap(), b"c\n");
        assert_eq!(reader.read_lines().await.unwrap(), b"", "half a line waits");
        std::fs::write(&path, "c\nd\n").unwrap();
        Changes::next(&mut changes).await;
        assert_eq!(reader.read_lines().await.unwrap(), b"d\n");
        std::fs::rename(&path, directory.path().join("main.log.1")).unwrap();
        std::fs::write(&path, "e\n").unwrap();
        Changes::next(&mut changes).await;
        assert_eq!(reader.read_lines().await.unwrap(), b"e\n");
    }

    /// What GO-2026-5622 was: a log that had become a link was read with the rights of the daemon.
    #[tokio::test]
    async fn nothing_but_a_log_is_read_in_a_logs_place() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "secret\n").unwrap();
        let sandbox = directory.path().join("sandbox");
        let path = sandbox.join("logs/main.log");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let refused = async |why: &str| {
            let mut reader = LogReader::new(path.clone());
            let error = reader.check().await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(reader.read_lines().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        };
        for place in ["logs/main.log", "logs/main.log.1"] {
            let place = sandbox.join(place);
            for target in [secret.as_path(), Path::new("../../secret"), Path::new("none")] {
                std::os::unix::fs::symlink(target, &place).unwrap();
                refused("symbolic link").await;
                std::fs::remove_file(&place).unwrap();
            }
            rustix::fs::mkfifoat(CWD, &place, Mode::RUSR).unwrap();
            refused("no regular file").await;
            std::fs::remove_file(&place).unwrap();
        }
        // In the middle of being followed.
        std::fs::write(&path, "own\n").unwrap();
        let mut reader = LogReader::new(path.clone());
        assert_eq!(reader.read_lines().await.unwrap(), b"own\n");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        reader.read_lines().await.unwrap_err();
        // A directory above it.
        std::fs::remove_dir_all(sandbox.join("logs")).unwrap();
        std::fs::rename(&secret, directory.path().join("main.log")).unwrap();
        std::os::unix::fs::symlink(directory.path(), sandbox.join("logs")).unwrap();
        refused("symbolic link").await;
        assert!(Changes::of(&path).is_err(), "nor is it watched");
        std::fs::remove_file(sandbox.join("logs")).unwrap();
        std::fs::remove_dir(&sandbox).unwrap();
        std::fs::create_dir_all(directory.path().join("other/logs")).unwrap();
        std::fs::write(directory.path().join("other/logs/main.log"), "other's\n").unwrap();
        std::os::unix::fs::symlink(directory.path().join("other"), &sandbox).unwrap();
        // The kernel's word for it, where a directory is asked for.
        assert!(LogReader::new(path.clone()).check().await.is_err());
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = LogReader::new(directory.path().join("none.log"));
        assert_eq!(reader.read_lines().await.unwrap(), b"");
    }
}
