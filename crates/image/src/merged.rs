//! Reading files of an image across its unpacked layers, as overlayfs would show them, without mounting anything.
//!
//! Honours whiteouts and opaque directories, and follows symlinks only within the layers: every step opens one name with
//! O_NOFOLLOW. It must never open anything but directories and regular files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Most symlinks in one lookup. SOURCE: MAXSYMLINKS of linux/namei.h.
const MAX_SYMLINKS: usize = 40;
/// Most names looked at in one lookup, those of symlinks included.
const MAX_STEPS: usize = 4096;

/// One directory of the merged tree: the layers' directories of that name, topmost first.
type Level = Rc<Vec<OwnedFd>>;

/// A stack of layers.
pub(crate) struct Merged {
    root: Level,
}

enum Found {
    Nothing,
    Directory(Level),
    Symlink(Vec<u8>),
    /// Something else, by its own name in this directory.
    Other {
        layer: usize,
        stat: Stat,
    },
}

impl Merged {
    /// Opens the layers, topmost first.
    pub(crate) fn open(layers: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: Result<Vec<_>, Errno> =
            layers.iter().map(|layer| fs::open(layer, flags, Mode::empty())).collect();
        Ok(Self { root: Rc::new(root?) })
    }

    /// The topmost layer's attributes of a directory; `None` when the path leads to no directory.
    pub(crate) fn directory_stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        let Some((level, last)) = self.walk(path)? else { return Ok(None) };
        if last.is_some() {
            return Ok(None);
        }
        Ok(Some(fs::fstat(&level[0])?))
    }

    /// The content of a regular file; `None` when the path leads to none. A file of more than `limit` bytes is an error.
    pub(crate) fn read_file(&self, path: &[u8], limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((level, Some((name, layer)))) = self.walk(path)? else { return Ok(None) };
        // O_NONBLOCK: never waits, should the file have become a fifo.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&level[layer], name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has more than {limit} bytes"),
            ));
        }
        Ok(Some(content))
    }

    /// Where a path leads: a directory (`None` beside it), or a regular file by its name and layer in that directory.
    #[expect(clippy::type_complexity, reason = "used twice, right here")]
    fn walk(&self, path: &[u8]) -> io::Result<Option<(Level, Option<(Vec<u8>, usize)>)>> {
        let mut stack = vec![Rc::clone(&self.root)];
        let mut pending: Vec<Vec<u8>> = names(path);
        let mut symlinks = 0;
        let mut steps = 0;
        while let Some(name) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Ok(None);
            }
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let Some(current) = stack.last() else { return Ok(None) };
            match find(current, &name)? {
                Found::Nothing => return Ok(None),
                Found::Directory(level) => stack.push(level),
                Found::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    pending.extend(names(&target));
                }
                Found::Other { layer, stat } => {
                    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                    if !regular || !pending.is_empty() {
                        return Ok(None);
                    }
                    return Ok(Some((Rc::clone(current), Some((name, layer)))));
                }
            }
        }
        Ok(stack.pop().filter(|level| !level.is_empty()).map(|level| (level, None)))
    }
}

/// Names of a path, last first.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .rev()
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

fn find(level: &Level, name: &[u8]) -> io::Result<Found> {
    let mut directories = Vec::new();
    for (layer, directory) in level.iter().enumerate() {
        let stat = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(Errno::NAMETOOLONG | Errno::INVAL) => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = fs::openat(directory, name, flags, Mode::empty())?;
                let opaque = is_opaque(&opened);
                directories.push(opened);
                if opaque {
                    break;
                }
            }
            // A whiteout or a file: hides what is below, and is hidden by directories above.
            _ if !directories.is_empty() => break,
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Found::Nothing),
            FileType::Symlink => {
                let target = fs::readlinkat(directory, name, Vec::new())?;
                return Ok(Found::Symlink(target.into_bytes()));
            }
            _ => return Ok(Found::Other { layer, stat }),
        }
    }
    if directories.is_empty() {
        Ok(Found::Nothing)
    } else {
        Ok(Found::Directory(Rc::new(directories)))
    }
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0_u8; 2];
    matches!(fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value), Ok(1))
        && value[0] == b'y'
}
