//! Finding and making directories below the root being filled. Symlinks of the archive are followed as the image itself would
//! follow them: an absolute one begins at the root, `..` ends there.
//!
//! INVARIANT: every lookup is `openat2` with RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS and RESOLVE_NO_XDEV from the root's descriptor.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::{UnpackError, printable};

/// Deepest nesting (guess: real images have about 30 levels).
const MAX_DEPTH: usize = 512;
/// Longest name. SOURCE: NAME_MAX of linux/limits.h.
const MAX_NAME_BYTES: usize = 255;
/// Most bytes of directories' paths that are remembered until the end: they bound the memory of the helper and of who reads its answer.
/// Guess: the largest public images have 40,000 directories with paths of 100 bytes, an eighth of it.
const MAX_REMEMBERED_BYTES: usize = 32 << 20;

/// An entry's place: names below the root, none for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) components: Vec<&'a [u8]>,
}

impl<'a> Place<'a> {
    /// Splits a path of an archive. `..` is refused; leading slashes and `.` mean nothing.
    pub(super) fn of(path: &'a [u8]) -> Result<Self, UnpackError> {
        let refused = |reason: String| UnpackError::Refused { path: printable(path), reason };
        let mut components = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(refused("'..' in a path".to_owned())),
                _ if name.len() > MAX_NAME_BYTES => {
                    return Err(refused(format!("a name of more than {MAX_NAME_BYTES} bytes")));
                }
                _ => components.push(name),
            }
            if components.len() > MAX_DEPTH {
                return Err(refused(format!("more than {MAX_DEPTH} directories deep")));
            }
        }
        Ok(Self { components })
    }

    /// Parent names and own name; `None` for the root.
    pub(super) fn split(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        let (name, parents) = self.components.split_last()?;
        Some((parents, name))
    }
}

/// Names joined by slashes; `.` for the root.
pub(super) fn join(components: &[&[u8]]) -> Vec<u8> {
    if components.is_empty() { b".".to_vec() } else { components.join(&b'/') }
}

/// Opens a directory below `root`, with symlinks resolved inside it.
pub(super) fn open_directory(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    fs::openat2(
        root,
        path,
        flags | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Whether this is an overlayfs whiteout: a character device 0:0.
pub(super) fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The tree being filled.
pub(super) struct Tree {
    root: OwnedFd,
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    remembered_bytes: usize,
    /// Directories that no entry has described so far.
    pub(super) implicit: BTreeSet<Vec<u8>>,
    /// Directories that hide what is below them.
    pub(super) opaque: BTreeSet<Vec<u8>>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            last_parent: None,
            remembered_bytes: 0,
            implicit: BTreeSet::new(),
            opaque: BTreeSet::new(),
        }
    }

    /// Counts a path that is kept until the end; an error when there are too many.
    pub(super) fn remember(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.remembered_bytes += path.len();
        if self.remembered_bytes > MAX_REMEMBERED_BYTES {
            return Err(UnpackError::TooLarge {
                what: "bytes in paths of directories".to_owned(),
                limit: MAX_REMEMBERED_BYTES as u64,
            });
        }
        Ok(())
    }

    /// A directory hides what is below it.
    pub(super) fn mark_opaque(&mut self, path: Vec<u8>) -> Result<(), UnpackError> {
        self.remember(&path)?;
        self.opaque.insert(path);
        Ok(())
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory that these names lead to; made where missing.
    pub(super) fn directory(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let path = join(components);
        if let Some((last, directory)) = &self.last_parent
            && *last == path
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match open_directory(self.root(), &path, OFlags::PATH) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(components)?,
            Err(error) => return Err(io_error("open the directory", &path, error)),
        };
        let directory = Rc::new(directory);
        self.last_parent = Some((path, Rc::clone(&directory)));
        Ok(directory)
    }

    fn make_directories(&mut self, components: &[&[u8]]) -> Result<OwnedFd, UnpackError> {
        let mut current = open_directory(self.root(), b".", OFlags::PATH)
            .map_err(|error| io_error("open the directory", b".", error))?;
        for depth in 1..=components.len() {
            let path = join(&components[..depth]);
            current = match open_directory(self.root(), &path, OFlags::PATH) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    self.make_implicit(&current, components[depth - 1], &path)?;
                    open_directory(self.root(), &path, OFlags::PATH)
                        .map_err(|error| io_error("open the directory", &path, error))?
                }
                Err(error) => return Err(io_error("open the directory", &path, error)),
            };
        }
        Ok(current)
    }

    fn make_implicit(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        match fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| io_error("look at", path, error))?;
                if !is_whiteout(&stat) {
                    return Err(UnpackError::Refused {
                        path: printable(path),
                        reason: "it has entries below it but is no directory".to_owned(),
                    });
                }
                fs::unlinkat(parent, name, AtFlags::empty())
                    .and_then(|()| fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)))
                    .map_err(|error| io_error("replace", path, error))?;
                self.mark_opaque(path.to_vec())?;
            }
            Err(error) => return Err(io_error("make the directory", path, error)),
        }
        let root = (Some(Uid::ROOT), Some(Gid::ROOT));
        fs::chownat(parent, name, root.0, root.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| io_error("set the owner of", path, error))?;
        self.remember(path)?;
        self.implicit.insert(path.to_vec());
        Ok(())
    }

    /// Removes what has this name, whatever it is; says whether that was a whiteout.
    pub(super) fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<bool, UnpackError> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(io_error("look at", path, error)),
        };
        self.last_parent = None;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                remove_tree(parent, name, 0).map_err(|error| io_error("remove", path, error))?;
                let mut below = path.to_vec();
                below.push(b'/');
                self.implicit.retain(|known| known != path && !known.starts_with(&below));
                self.opaque.retain(|known| known != path && !known.starts_with(&below));
            }
            _ => fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(|error| io_error("remove", path, error))?,
        }
        Ok(is_whiteout(&stat))
    }
}

/// Removes a directory and all below it, without following anything.
fn remove_tree(parent: &OwnedFd, name: &[u8], depth: usize) -> Result<(), Errno> {
    // Paths lead through symlinks, so that a tree can become deeper than one path.
    if depth > 4 * MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::openat(parent, name, flags, Mode::empty())?;
    let mut reader = fs::Dir::read_from(&directory)?;
    let mut names = Vec::new();
    while let Some(entry) = reader.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    drop(reader);
    for (name, kind) in names {
        let is_directory = match kind {
            FileType::Unknown => {
                let stat = fs::statat(&directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        if is_directory {
            remove_tree(&directory, &name, depth + 1)?;
        } else {
            fs::unlinkat(&directory, name.as_slice(), AtFlags::empty())?;
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Names what the kernel refused; a full disk by its own variant.
pub(super) fn io_error(
    operation: &str,
    path: &[u8],
    error: impl Into<std::io::Error>,
) -> UnpackError {
    let error = error.into();
    let full = [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|full| error.raw_os_error() == Some(full.raw_os_error()));
    if full {
        return UnpackError::DiskFull {
            detail: format!("cannot {operation} \"{}\": {error}", printable(path)),
        };
    }
    UnpackError::Io {
        operation: operation.to_owned(),
        path: printable(path),
        detail: error.to_string(),
    }
}
