//! Tar streams, unpacked and packed by a helper process that is the user it acts for.
//!
//! Everything happens inside the container and with that user's rights alone: a hostile archive can harm what that user could
//! harm anyway. It stays beneath its directory all the same, so that a copy does not surprise. Devices are never made or read; what
//! changes while it is packed does not break the archive.

use std::fs::{self, File, Metadata};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Archive, Builder, EntryType, Header};

/// Deepest directory that is packed: a cycle of bind mounts ends here.
const MAX_DEPTH: usize = 256;

/// Unpacks beneath a directory that exists. Files get the mode of the archive and the user's own ownership.
///
/// # Errors
/// The first thing that could not be made; what was made before stays.
pub(crate) fn unpack(tar: impl Read, directory: &str) -> std::io::Result<()> {
    let directory = Path::new(directory);
    if !fs::metadata(directory).map_err(|error| about(directory, &error))?.is_dir() {
        return Err(Error::new(
            ErrorKind::NotADirectory,
            format!("{} is no directory", directory.display()),
        ));
    }
    let mut archive = Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    let mut skipped = 0_usize;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let wanted = kind.is_file()
            || kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link()
            || matches!(kind, EntryType::Continuous | EntryType::GNUSparse);
        if kind.is_pax_global_extensions() {
            continue;
        }
        if !wanted || !entry.unpack_in(directory)? {
            skipped += 1;
        }
    }
    if skipped > 0 {
        return Err(Error::other(format!(
            "{skipped} entries were left out: devices, or names with '..'"
        )));
    }
    Ok(())
}

/// Packs a file or directory; the tar's top entry has its base name. A link as the path itself is followed, links below are packed.
///
/// # Errors
/// The first thing that could not be read; all the rest is packed, and the archive is whole.
pub(crate) fn pack(tar: impl Write, path: &str) -> std::io::Result<()> {
    let path = Path::new(path);
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let metadata = fs::metadata(path).map_err(|error| about(path, &error))?;
    let mut packer = Packer { builder: Builder::new(tar), unreadable: None };
    packer.pack(path, &name, &metadata, MAX_DEPTH)?;
    packer.builder.finish()?;
    packer.unreadable.map_or(Ok(()), Err)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// The first file that could not be read.
    unreadable: Option<Error>,
}

impl<W: Write> Packer<W> {
    /// Fails only when the archive itself cannot be written.
    fn pack(
        &mut self,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
        depth: usize,
    ) -> std::io::Result<()> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.append(name, metadata, EntryType::Directory, 0, std::io::empty())?;
            self.pack_entries(path, name, depth)
        } else if kind.is_symlink() {
            match fs::read_link(path) {
                Ok(target) => {
                    let mut header = header(metadata, EntryType::Symlink, 0);
                    self.builder.append_link(&mut header, name, target)
                }
                Err(error) => self.leave_out(path, &error),
            }
        } else if kind.is_file() {
            match open(path) {
                Ok((file, size)) => {
                    self.append(name, metadata, EntryType::Regular, size, exactly(file, size))
                }
                Err(error) => self.leave_out(path, &error),
            }
        } else {
            // Sockets, FIFOs, devices: nothing that a copy could hold.
            Ok(())
        }
    }

    fn pack_entries(&mut self, path: &Path, name: &Path, depth: usize) -> std::io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return self.leave_out(path, &Error::other("nested too deep"));
        };
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.leave_out(path, &error),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.leave_out(path, &error),
            };
            let path = entry.path();
            match fs::symlink_metadata(&path) {
                Ok(metadata) => {
                    self.pack(&path, &name.join(entry.file_name()), &metadata, depth)?
                }
                // Gone since the directory was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.leave_out(&path, &error)?,
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        name: &Path,
        metadata: &Metadata,
        kind: EntryType,
        size: u64,
        data: impl Read,
    ) -> std::io::Result<()> {
        self.builder.append_data(&mut header(metadata, kind, size), name, data)
    }

    fn leave_out(&mut self, path: &Path, error: &Error) -> std::io::Result<()> {
        self.unreadable.get_or_insert_with(|| about(path, error));
        Ok(())
    }
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header
}

/// Opens what is still a regular file, and never waits for one that has become a FIFO.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    // A link as the path itself was followed by the caller's question already; only then it is one here.
    let file = file.or_else(|error| match fs::canonicalize(path) {
        Ok(target) if target != path => {
            fs::OpenOptions::new().read(true).custom_flags(flags).open(target)
        }
        _ => Err(error),
    })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::other("is no regular file any more"));
    }
    Ok((file, metadata.size()))
}

fn about(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads exactly so many bytes, zeros when the file has become shorter.
fn exactly(file: impl Read, bytes: u64) -> impl Read {
    file.take(bytes).chain(std::io::repeat(0)).take(bytes)
}
