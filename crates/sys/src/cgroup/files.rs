//! Reading and writing single control files. Knows no controller; adds the path to every error.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use super::CgroupError;

/// Control files are short; memory.stat, the longest one read, stays below 8 KiB.
const CONTROL_FILE_MAX_BYTES: u64 = 64 * 1024;

/// The text of a control file.
pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(CONTROL_FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(|source| CgroupError::io("read", path, source))?;
    Ok(text)
}

/// Writes a value in one write, as control files want it.
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::io("write", path, source))
}

/// Like [`write`], but a file that this kernel does not have is no error.
pub(super) fn write_where_present(path: &Path, value: &str) -> Result<(), CgroupError> {
    match write(path, value) {
        Err(CgroupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// A file that holds one number (`max` counts as the largest).
pub(super) fn read_number(path: &Path) -> Result<u64, CgroupError> {
    let text = read(path)?;
    let text = text.trim();
    if text == "max" {
        return Ok(u64::MAX);
    }
    text.parse()
        .map_err(|_not_a_number| CgroupError::Unexpected { path: path.into(), wanted: "number" })
}

/// [`read_number`], or `None` where this kernel has no such file.
pub(super) fn read_number_where_present(path: &Path) -> Result<Option<u64>, CgroupError> {
    match read_number(path) {
        Err(CgroupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The number after `key` in a file of `key value` lines.
pub(super) fn find_number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

/// [`find_number`] in a file; an absent key is an error that names it.
pub(super) fn read_keyed(path: &Path, key: &'static str) -> Result<u64, CgroupError> {
    find_number(&read(path)?, key)
        .ok_or_else(|| CgroupError::Unexpected { path: path.into(), wanted: key })
}

/// Makes a directory that may exist already; says whether it was made.
pub(super) fn make_dir(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(CgroupError::io("make", path, source)),
    }
}

/// The names of the groups directly below `path`, sorted; a group that is gone has none.
pub(super) fn child_groups(path: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(CgroupError::io("list", path, source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| CgroupError::io("list", path, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
