//! Building a layer's tree from its archive. Runs in the confined helper.
//!
//! Owns what of an entry is kept, and how OCI whiteouts become overlayfs's. It must never resolve a path but through [`Tree`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::decompress::{Meter, decoder};
use super::stream::{Archive, Entry, Kind};
use super::tree::{Place, Tree, io_error, is_whiteout, join};
use super::{Limits, UnpackError, Unpacked, damaged, printable};

/// Largest owner or group id: a sandbox has 65,536 ids.
const MAX_ID: u64 = 65_535;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Other names of aufs, which mean nothing in an image.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// How many bytes or entries go by between two looks at the free space.
const BYTES_BETWEEN_CHECKS: u64 = 16 << 20;
const ENTRIES_BETWEEN_CHECKS: u64 = 1024;

/// How a layer is unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerOptions {
    pub(crate) limits: Limits,
    /// No layer lies below: whiteouts mean nothing.
    pub(crate) lowest: bool,
    /// No digest tells whether the archive was cut: its end mark must.
    pub(crate) require_end_mark: bool,
}

/// Unpacks the archive that `input` holds, compressed or not, into the directory `root`.
pub(crate) fn extract_archive(
    input: impl Read,
    root: OwnedFd,
    options: LayerOptions,
) -> Result<Unpacked, UnpackError> {
    let meter = Meter::new(options.limits.max_bytes);
    let plain = decoder(input).map_err(|error| damaged(&format!("it cannot be read: {error}")))?;
    let archive = Archive::new(meter.watch(plain), options.limits, options.require_end_mark);
    let mut extractor = Extractor {
        tree: Tree::new(root),
        options,
        unpacked: Unpacked::default(),
        unchecked_bytes: 0,
        directory_times: HashMap::new(),
        buffer: RefCell::new(vec![0; 128 * 1024]),
    };
    match extractor.run(archive) {
        Err(_) if meter.exceeded() => {
            Err(UnpackError::TooLarge { what: "bytes".to_owned(), limit: options.limits.max_bytes })
        }
        Err(error) => Err(error),
        Ok(()) => {
            let mut unpacked = extractor.unpacked;
            unpacked.diff_id = Some(meter.digest());
            unpacked.archive_bytes = meter.read_bytes();
            unpacked.opaque = extractor.tree.opaque.into_iter().collect();
            unpacked.implicit = extractor.tree.implicit.into_iter().collect();
            Ok(unpacked)
        }
    }
}

struct Extractor {
    tree: Tree,
    options: LayerOptions,
    unpacked: Unpacked,
    unchecked_bytes: u64,
    directory_times: HashMap<Vec<u8>, Timespec>,
    buffer: RefCell<Vec<u8>>,
}

impl Extractor {
    fn run<R: Read>(&mut self, mut archive: Archive<R>) -> Result<(), UnpackError> {
        self.check_free_space()?;
        while let Some(entry) = archive.next_entry()? {
            self.unpacked.entries += 1;
            if self.unpacked.entries.is_multiple_of(ENTRIES_BETWEEN_CHECKS) {
                self.check_free_space()?;
            }
            self.place(&mut archive, &entry)?;
            let made = self.unpacked.entries + self.tree.implicit.len() as u64;
            if made > self.options.limits.max_entries {
                return Err(UnpackError::TooLarge {
                    what: "entries".to_owned(),
                    limit: self.options.limits.max_entries,
                });
            }
        }
        self.set_directory_times();
        Ok(())
    }

    fn place<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let place = Place::of(&entry.path)?;
        let path = join(&place.components);
        let owner = owner(entry)?;
        let Some((parents, name)) = place.split() else {
            return self.place_root(entry, owner);
        };
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.place_whiteout(entry, parents, name);
        }
        if entry.kind == Kind::Device {
            self.unpacked.skipped_devices += 1;
            return Ok(());
        }
        let parent = self.tree.directory(parents)?;
        match entry.kind {
            Kind::Directory => self.place_directory(&parent, name, &path, entry, owner),
            Kind::File => {
                self.tree.clear(&parent, name, &path)?;
                self.place_file(archive, &parent, name, entry, owner)
            }
            Kind::HardLink => self.place_hard_link(&parent, name, &path, entry),
            Kind::Symlink | Kind::Fifo => {
                self.tree.clear(&parent, name, &path)?;
                place_special(&parent, name, entry, owner)
            }
            Kind::Device => Ok(()),
        }
    }

    fn place_root(&mut self, entry: &Entry, owner: (Uid, Gid)) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(refused(entry, "the root is no directory"));
        }
        let root = super::tree::open_directory(self.tree.root(), b".", OFlags::RDONLY)
            .map_err(|error| io_error("open", b".", error))?;
        self.describe(&root, entry, owner)?;
        self.unpacked.root_described = true;
        self.directory_times.insert(b".".to_vec(), modified(entry));
        Ok(())
    }

    fn place_directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        owner: (Uid, Gid),
    ) -> Result<(), UnpackError> {
        let make = || fs::mkdirat(parent, name, Mode::from_raw_mode(0o700));
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| io_error("look at", path, error))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    if self.tree.clear(parent, name, path)? {
                        self.tree.mark_opaque(path.to_vec())?;
                    }
                    make().map_err(|error| io_error("make the directory", path, error))?;
                }
            }
            Err(error) => return Err(io_error("make the directory", path, error)),
        }
        self.tree.implicit.remove(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat(parent, name, flags, Mode::empty())
            .map_err(|error| io_error("open the directory", path, error))?;
        self.tree.remember(path)?;
        self.directory_times.insert(path.to_vec(), modified(entry));
        self.describe(&directory, entry, owner)
    }

    fn place_file<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        owner: (Uid, Gid),
    ) -> Result<(), UnpackError> {
        let left = self.options.limits.max_bytes.saturating_sub(self.unpacked.content_bytes);
        if entry.size > left {
            return Err(UnpackError::TooLarge {
                what: "bytes".to_owned(),
                limit: self.options.limits.max_bytes,
            });
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| io_error("make the file", &entry.path, error))?;
        let file = File::from(file);
        self.write_content(archive, &file, entry)?;
        self.unpacked.content_bytes += entry.size;
        self.describe(&file, entry, owner)?;
        let times = Timestamps { last_access: modified(entry), last_modification: modified(entry) };
        fs::futimens(&file, &times).map_err(|error| io_error("set the time of", &entry.path, error))
    }

    fn write_content<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        file: &File,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let whole = [(0, entry.size)];
        let segments = entry.segments.as_deref().unwrap_or(&whole);
        for (offset, length) in segments {
            let mut position = *offset;
            let end = offset + length;
            while position < end {
                let mut buffer = self.buffer.borrow_mut();
                let room = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
                let count = archive.read_data(&mut buffer[..room])?;
                if count == 0 {
                    return Err(damaged("a file's data ends early"));
                }
                file.write_all_at(&buffer[..count], position)
                    .map_err(|error| io_error("write", &entry.path, error))?;
                drop(buffer);
                position += count as u64;
                self.unchecked_bytes += count as u64;
                if self.unchecked_bytes >= BYTES_BETWEEN_CHECKS {
                    self.check_free_space()?;
                }
            }
        }
        if entry.segments.is_some() {
            file.set_len(entry.size).map_err(|error| io_error("extend", &entry.path, error))?;
        }
        Ok(())
    }

    fn place_hard_link(
        &mut self,
        parent: &Rc<OwnedFd>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let target = Place::of(&entry.link)
            .map_err(|_| refused(entry, "a hard link whose target has '..' or is too long"))?;
        let Some((target_parents, target_name)) = target.split() else {
            return Err(refused(entry, "a hard link to the root"));
        };
        let directory =
            super::tree::open_directory(self.tree.root(), &join(target_parents), OFlags::PATH)
                .map_err(|_| refused(entry, "a hard link to a file that this archive has not"))?;
        let stat = match fs::statat(&directory, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !is_whiteout(&stat) => stat,
            _ => return Err(refused(entry, "a hard link to a file that this archive has not")),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(entry, "a hard link to a directory"));
        }
        if let Ok(existing) = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (existing.st_dev, existing.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.tree.clear(parent, name, path)?;
        // The target may have been below what was just removed. A symlink is linked itself, never followed.
        fs::linkat(&directory, target_name, &**parent, name, AtFlags::empty())
            .map_err(|error| io_error("make the hard link", &entry.path, error))
    }

    fn place_whiteout(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), UnpackError> {
        if self.options.lowest {
            return Ok(());
        }
        if name == OPAQUE_MARK {
            self.tree.directory(parents)?;
            self.tree.mark_opaque(join(parents))?;
            return Ok(());
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(entry, "a whiteout that hides no name"));
        }
        let mut components = parents.to_vec();
        components.push(hidden);
        let path = join(&components);
        let parent = self.tree.directory(parents)?;
        match fs::statat(&*parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // What this layer has itself stays: a whiteout is about the layers below.
            Ok(stat) => {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.tree.mark_opaque(path)?;
                }
                Ok(())
            }
            Err(Errno::NOENT) => {
                fs::mknodat(&*parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|error| io_error("make the whiteout", &path, error))
            }
            Err(error) => Err(io_error("look at", &path, error)),
        }
    }

    /// Owner first: changing it clears setuid bits and file capabilities.
    fn describe(
        &mut self,
        object: impl std::os::fd::AsFd,
        entry: &Entry,
        (uid, gid): (Uid, Gid),
    ) -> Result<(), UnpackError> {
        fs::fchown(&object, Some(uid), Some(gid))
            .map_err(|error| io_error("set the owner of", &entry.path, error))?;
        fs::fchmod(&object, Mode::from_raw_mode(entry.mode))
            .map_err(|error| io_error("set the mode of", &entry.path, error))?;
        for (name, value) in &entry.xattrs {
            if !is_kept(name, value) {
                self.unpacked.skipped_xattrs += 1;
                continue;
            }
            match fs::fsetxattr(&object, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(
                    Errno::OPNOTSUPP | Errno::PERM | Errno::TOOBIG | Errno::RANGE | Errno::INVAL,
                ) => {
                    self.unpacked.skipped_xattrs += 1;
                }
                Err(error) => return Err(io_error("set an attribute of", &entry.path, error)),
            }
        }
        Ok(())
    }

    /// Children changed the times of their directories; what is not there any more has none.
    fn set_directory_times(&self) {
        for (path, time) in &self.directory_times {
            if let Ok(directory) =
                super::tree::open_directory(self.tree.root(), path, OFlags::RDONLY)
            {
                let times = Timestamps { last_access: *time, last_modification: *time };
                let _ = fs::futimens(&directory, &times);
            }
        }
    }

    fn check_free_space(&mut self) -> Result<(), UnpackError> {
        self.unchecked_bytes = 0;
        let stat = fs::fstatvfs(self.tree.root())
            .map_err(|error| io_error("ask for the free space of", b".", error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < self.options.limits.min_free_bytes {
            return Err(UnpackError::DiskFull {
                detail: format!(
                    "{free} bytes are free and {} must stay so",
                    self.options.limits.min_free_bytes
                ),
            });
        }
        Ok(())
    }
}

fn place_special(
    parent: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    owner: (Uid, Gid),
) -> Result<(), UnpackError> {
    if entry.kind == Kind::Symlink {
        if entry.link.is_empty() {
            return Err(refused(entry, "a symbolic link to nothing"));
        }
        fs::symlinkat(entry.link.as_slice(), parent, name)
            .map_err(|error| io_error("make the link", &entry.path, error))?;
    } else {
        fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(|error| io_error("make the fifo", &entry.path, error))?;
    }
    fs::chownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| io_error("set the owner of", &entry.path, error))?;
    if entry.kind == Kind::Fifo {
        fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|error| io_error("set the mode of", &entry.path, error))?;
    }
    let times = Timestamps { last_access: modified(entry), last_modification: modified(entry) };
    fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| io_error("set the time of", &entry.path, error))
}

/// Extended attributes that a layer may bring. `trusted.overlay.*` and `user.overlay.*` steer overlayfs (redirects!), ACLs and
/// labels name ids and policies of another machine. File capabilities only in the form whose root is the reader's own namespace.
fn is_kept(name: &[u8], value: &[u8]) -> bool {
    if name == b"security.capability" {
        // SOURCE: include/uapi/linux/capability.h: VFS_CAP_REVISION_2 is 0x02000000 in the first (little-endian) word, 20 bytes.
        return value.len() == 20 && value[3] == 2;
    }
    name.starts_with(b"user.")
        && !name.starts_with(b"user.overlay.")
        && name.len() <= 255
        && !name.contains(&0)
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), UnpackError> {
    let id = |id: u64, what: &str| match u32::try_from(id) {
        Ok(small) if id <= MAX_ID => Ok(small),
        _ => Err(refused(entry, &format!("its {what} is {id}, and ids end at {MAX_ID}"))),
    };
    Ok((Uid::from_raw(id(entry.uid, "owner")?), Gid::from_raw(id(entry.gid, "group")?)))
}

fn modified(entry: &Entry) -> Timespec {
    // ext4 and xfs hold times up to the year 2446; the kernel clamps.
    Timespec { tv_sec: entry.mtime_seconds, tv_nsec: i64::from(entry.mtime_nanos) }
}

fn refused(entry: &Entry, reason: &str) -> UnpackError {
    UnpackError::Refused { path: printable(&entry.path), reason: reason.to_owned() }
}
