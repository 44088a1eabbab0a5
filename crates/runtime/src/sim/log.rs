//! Logs of simulated containers, in the format of real ones, where a test asked for them. Not rotated.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use atoll_wire::log::{LogRecord, LogStream};

use crate::ProcessOutput;

/// The log of a container.
pub(super) struct LogFile {
    file: Mutex<File>,
}

/// Where a container's log lies below the directory of logs.
pub(super) fn path(directory: &Path, uid: &str, container: &str) -> PathBuf {
    directory.join(uid).join("logs").join(format!("{container}.log"))
}

impl LogFile {
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Mutex::new(file) })
    }

    pub(super) fn append(&self, told: &ProcessOutput) {
        let (stream, bytes) = match told {
            ProcessOutput::Stdout(bytes) => (LogStream::Stdout, bytes),
            ProcessOutput::Stderr(bytes) => (LogStream::Stderr, bytes),
            _ => return,
        };
        let time = jiff::Timestamp::now().to_string();
        let mut records = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let full = line.ends_with(b"\n");
            let text = line.strip_suffix(b"\n").unwrap_or(line).to_vec();
            LogRecord { time: time.clone(), stream, full, text }.encode(&mut records);
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(&records) {
            tracing::warn!(%error, "a simulated container's log could not be written");
        }
    }
}
