//! The log of a server in the background: its standard error, in a file that is set aside when it is large. One older part is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Largest part of the log, in bytes. Guess: weeks of a busy server, and quickly looked through.
pub(super) const LIMIT_BYTES: u64 = 8 << 20;

/// A log of bounded size.
pub(super) struct BoundedLog {
    path: PathBuf,
    limit_bytes: u64,
    /// What else must write to the new file from then on.
    on_new_file: fn(&File) -> io::Result<()>,
    part: Mutex<Part>,
}

struct Part {
    file: File,
    written_bytes: u64,
}

impl BoundedLog {
    /// Goes on with the file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(
        path: &Path,
        limit_bytes: u64,
        on_new_file: fn(&File) -> io::Result<()>,
    ) -> io::Result<Self> {
        let file = append(path)?;
        let written_bytes = file.metadata()?.len();
        let part = Mutex::new(Part { file, written_bytes });
        Ok(Self { path: path.to_owned(), limit_bytes, on_new_file, part })
    }

    fn begin_anew(&self, part: &mut Part) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        fs::rename(&self.path, older)?;
        part.file = append(&self.path)?;
        part.written_bytes = 0;
        (self.on_new_file)(&part.file)
    }
}

/// Opens or makes a part of the log, for its owner alone.
///
/// # Errors
/// The kernel's.
pub(super) fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

impl Write for &BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let total = part.written_bytes.saturating_add(bytes.len() as u64);
        if part.written_bytes > 0 && total > self.limit_bytes {
            // In vain: it goes on in the old one, and is tried again with the next record.
            let _ = self.begin_anew(&mut part);
        }
        let count = part.file.write(bytes)?;
        part.written_bytes = part.written_bytes.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BoundedLog {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_last_part_and_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        fs::write(&path, "of an earlier server\n").unwrap();
        let log = BoundedLog::open(&path, 100, |_| Ok(())).unwrap();
        for number in 0..1000 {
            // One write a record.
            (&log).write_all(format!("record {number:04}\n").as_bytes()).unwrap();
        }
        let (last, before) = (
            fs::read_to_string(&path).unwrap(),
            fs::read_to_string(directory.path().join("server.log.1")).unwrap(),
        );
        assert!(last.len() <= 100 && before.len() <= 100, "{} {}", last.len(), before.len());
        let kept: Vec<&str> = before.lines().chain(last.lines()).collect();
        let wanted: Vec<String> =
            (1000 - kept.len()..1000).map(|number| format!("record {number:04}")).collect();
        assert_eq!(kept, wanted, "nothing is missing between the two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
