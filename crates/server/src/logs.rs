//! Reading a container's log while it is written and rotated, and learning of changes from the kernel.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
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

async fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path).await {
        Ok(file) => {
            let inode = file.metadata().await?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
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
            | inotify::WatchFlags::MOVED_TO;
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

    #[tokio::test]
    async fn a_log_that_is_not_there_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = LogReader::new(directory.path().join("none.log"));
        assert_eq!(reader.read_lines().await.unwrap(), b"");
    }
}
