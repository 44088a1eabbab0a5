//! Reading a tar archive as a bounded stream of entries. Owns the format: ustar, GNU long names, old GNU sparse files, pax. It must
//! never touch a file system, and never trust a length: each is bounded before memory is taken for it.
//!
//! SOURCE: tar(5) of libarchive, POSIX pax, the GNU tar manual, "Basic Tar Format".

use std::io::Read;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::{self, Overrides};
use super::{Limits, UnpackError, damaged, printable};

const BLOCK: usize = 512;
/// Longest path or link target. SOURCE: PATH_MAX of linux/limits.h, with its NUL.
pub(super) const MAX_PATH_BYTES: usize = 4095;
/// Largest block of extended attributes: 64 KiB is the kernel's limit of one xattr's value; room for a dozen.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Most extension headers before one entry: each kind once, and some slack.
const MAX_EXTENSIONS: usize = 8;
/// Most data segments of a sparse file (guess: real ones have some hundred).
const MAX_SPARSE_SEGMENTS: usize = 65_536;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// One entry; its data follows in the archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanos: u32,
    /// Size of the file when it is written, holes included.
    pub(super) size: u64,
    /// Offsets and lengths of data; `None`: all of it is data.
    pub(super) segments: Option<Vec<(u64, u64)>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive being read.
pub(super) struct Archive<R> {
    input: R,
    limits: Limits,
    require_end_mark: bool,
    entries: u64,
    data_left: u64,
    padding_left: u64,
    ended: bool,
}

impl<R: Read> Archive<R> {
    /// `require_end_mark`: an archive that just stops at a block's end is damaged (no digest would tell that it was cut).
    pub(super) fn new(input: R, limits: Limits, require_end_mark: bool) -> Self {
        Self {
            input,
            limits,
            require_end_mark,
            entries: 0,
            data_left: 0,
            padding_left: 0,
            ended: false,
        }
    }

    /// The next entry; what was left of the last one's data is skipped. After the last, all that follows the archive is read, so that
    /// a digest of the input is of all of it.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip_data()?;
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(header) = self.next_header()? else {
                if extensions.any {
                    return Err(damaged("an extension header is followed by no entry"));
                }
                self.drain()?;
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > self.limits.max_entries {
                return Err(UnpackError::TooLarge {
                    what: "entries".to_owned(),
                    limit: self.limits.max_entries,
                });
            }
            let size = header.entry_size().map_err(|_| damaged("a size is no number"))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    extensions.path = Some(self.read_name(size)?);
                    extensions.any = true;
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(self.read_name(size)?);
                    extensions.any = true;
                }
                EntryType::XHeader => {
                    let block = self.read_extension(size)?;
                    extensions.pax = pax::parse(&block)?;
                    extensions.any = true;
                }
                // Defaults for all entries: comments and dates in practice, which nothing here needs.
                EntryType::XGlobalHeader => {
                    self.read_extension(size)?;
                }
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
        Err(damaged("too many extension headers before an entry"))
    }

    /// Reads data of the current entry; 0 at its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        if self.data_left == 0 {
            return Ok(0);
        }
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let count = read_some(&mut self.input, &mut buffer[..wanted])?;
        if count == 0 {
            return Err(damaged("it ends within a file's data"));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    fn skip_data(&mut self) -> Result<(), UnpackError> {
        let mut buffer = [0; 8 * BLOCK];
        while self.read_data(&mut buffer)? > 0 {}
        let padding = usize::try_from(self.padding_left).unwrap_or(0);
        self.padding_left = 0;
        if read_full(&mut self.input, &mut buffer[..padding])? < padding {
            return Err(damaged("it ends within a file's padding"));
        }
        Ok(())
    }

    /// The next header block; `None` at the end of the archive.
    fn next_header(&mut self) -> Result<Option<Header>, UnpackError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let count = read_full(&mut self.input, header.as_mut_bytes())?;
        if count == 0 && !self.require_end_mark {
            self.ended = true;
            return Ok(None);
        }
        if count == 0 {
            return Err(damaged("it ends without an end mark: it was cut, or is no tar archive"));
        }
        if count < BLOCK {
            return Err(damaged("it ends within a header"));
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        verify_checksum(&header)?;
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(UnpackError::TooLarge {
                what: "bytes in an extension header".to_owned(),
                limit: MAX_EXTENSION_BYTES,
            });
        }
        self.begin_data(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read_data(&mut bytes[filled..])?;
        }
        self.skip_data()?;
        Ok(bytes)
    }

    fn read_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.read_extension(size)?;
        // GNU tar ends the name with one NUL; what follows it is no name.
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding_left = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &Header,
        header_size: u64,
        extensions: Extensions,
    ) -> Result<Entry, UnpackError> {
        let path =
            extensions.pax.path.or(extensions.path).unwrap_or_else(|| header.path_bytes().into());
        let link = extensions
            .pax
            .link
            .or(extensions.link)
            .or_else(|| header.link_name_bytes().map(Into::into))
            .unwrap_or_default();
        check_path(&path, &path)?;
        check_path(&path, &link)?;
        let kind = kind(header, &path)?;
        let stored =
            if kind == Kind::File { extensions.pax.size.unwrap_or(header_size) } else { 0 };
        if stored > self.limits.max_bytes {
            return Err(self.too_many_bytes());
        }
        self.begin_data(stored);
        let (size, segments) = if header.entry_type() == EntryType::GNUSparse {
            let (size, segments) = self.sparse_map(header, stored)?;
            (size, Some(segments))
        } else {
            (stored, None)
        };
        let number = |value: std::io::Result<u64>, what: &str| {
            value.map_err(|_| {
                damaged(&format!("the {what} of \"{}\" is no number", printable(&path)))
            })
        };
        let (mtime_seconds, mtime_nanos) =
            extensions.pax.mtime.unwrap_or_else(|| (header_mtime(header), 0));
        Ok(Entry {
            kind,
            mode: header.mode().map_err(|_| {
                damaged(&format!("the mode of \"{}\" is no number", printable(&path)))
            })? & 0o7777,
            uid: match extensions.pax.uid {
                Some(uid) => uid,
                None => number(header.uid(), "owner")?,
            },
            gid: match extensions.pax.gid {
                Some(gid) => gid,
                None => number(header.gid(), "group")?,
            },
            mtime_seconds,
            mtime_nanos,
            size,
            segments,
            xattrs: extensions.pax.xattrs,
            path,
            link,
        })
    }

    fn too_many_bytes(&self) -> UnpackError {
        UnpackError::TooLarge { what: "bytes".to_owned(), limit: self.limits.max_bytes }
    }

    /// The whole size and the data segments of an old GNU sparse file, checked to be in order and to add up to `stored`.
    fn sparse_map(
        &mut self,
        header: &Header,
        stored: u64,
    ) -> Result<(u64, Vec<(u64, u64)>), UnpackError> {
        let bad = |_| damaged("a sparse file's map is no number");
        let gnu = header.as_gnu().ok_or_else(|| damaged("a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(bad)?;
        if size > self.limits.max_bytes {
            return Err(self.too_many_bytes());
        }
        let mut segments = Vec::new();
        for part in gnu.sparse.iter().filter(|part| !part.is_empty()) {
            segments.push((part.offset().map_err(bad)?, part.length().map_err(bad)?));
        }
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            if read_full(&mut self.input, block.as_mut_bytes())? < BLOCK {
                return Err(damaged("it ends within a sparse file's map"));
            }
            for part in block.sparse().iter().filter(|part| !part.is_empty()) {
                segments.push((part.offset().map_err(bad)?, part.length().map_err(bad)?));
            }
            if segments.len() > MAX_SPARSE_SEGMENTS {
                return Err(damaged("a sparse file's map is too long"));
            }
            extended = block.is_extended();
        }
        let mut end = 0;
        let mut sum = 0_u64;
        for (offset, length) in &segments {
            let next = offset.checked_add(*length).filter(|next| *next <= size);
            match next {
                Some(next) if *offset >= end => end = next,
                _ => return Err(damaged("a sparse file's map is out of order or beyond its size")),
            }
            sum += length;
        }
        if sum != stored {
            return Err(damaged("a sparse file's map does not add up to its data"));
        }
        Ok((size, segments))
    }

    fn drain(&mut self) -> Result<(), UnpackError> {
        let mut buffer = vec![0; 64 * 1024];
        while read_some(&mut self.input, &mut buffer)? > 0 {}
        Ok(())
    }
}

#[derive(Default)]
struct Extensions {
    any: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Overrides,
}

fn check_path(entry: &[u8], path: &[u8]) -> Result<(), UnpackError> {
    let reason = if path.len() > MAX_PATH_BYTES {
        format!("a path of {} bytes, at most {MAX_PATH_BYTES} are allowed", path.len())
    } else if path.contains(&0) {
        "a path with a NUL byte".to_owned()
    } else {
        return Ok(());
    };
    Err(UnpackError::Refused { path: printable(entry), reason })
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, UnpackError> {
    Ok(match header.entry_type() {
        // Before ustar, a directory was a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        other => {
            return Err(UnpackError::Refused {
                path: printable(path),
                reason: format!("an entry of the unknown type {:#04x}", other.as_byte()),
            });
        }
    })
}

/// A header's time; one that is no number is the epoch: nothing depends on it.
fn header_mtime(header: &Header) -> i64 {
    header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)
}

fn verify_checksum(header: &Header) -> Result<(), UnpackError> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    let stored =
        header.cksum().map_err(|_| damaged("a header without a checksum: no tar archive"))?;
    if stored != sum + 8 * u32::from(b' ') {
        return Err(damaged("a header's checksum is wrong"));
    }
    Ok(())
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, UnpackError> {
    loop {
        match input.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&format!("it cannot be read: {error}"))),
        }
    }
}

fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, UnpackError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read_some(input, &mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
