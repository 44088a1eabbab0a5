//! Turning a compressed archive into a bounded, hashed stream of plain bytes. What the compression is follows from the first
//! bytes, never from a name or a media type.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher};

/// Largest zstd window accepted: 2^27 bytes (128 MiB), what `zstd -d` takes without `--long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Wraps `input` in the decoder that its first bytes ask for.
pub(super) fn decoder<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 * 1024, input);
    let start = input.fill_buf()?;
    if start.starts_with(&GZIP_MAGIC) {
        return Ok(Box::new(MultiGzDecoder::new(input)));
    }
    if start.starts_with(&ZSTD_MAGIC) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(input))
}

/// Counts and hashes all that is read, and ends with an error once `limit` bytes are passed. Clones share their state, so that
/// one can hand its reader away and still ask for the digest.
#[derive(Clone)]
pub(super) struct Meter(Rc<RefCell<MeterState>>);

struct MeterState {
    hasher: Hasher,
    read_bytes: u64,
    limit_bytes: u64,
    exceeded: bool,
}

/// A reader whose bytes a [`Meter`] sees.
pub(super) struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl Meter {
    pub(super) fn new(limit_bytes: u64) -> Self {
        let state =
            MeterState { hasher: Hasher::default(), read_bytes: 0, limit_bytes, exceeded: false };
        Self(Rc::new(RefCell::new(state)))
    }

    pub(super) fn watch<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, meter: self.clone() }
    }

    /// Whether reading stopped because of the limit.
    pub(super) fn exceeded(&self) -> bool {
        self.0.borrow().exceeded
    }

    /// How many bytes went by.
    pub(super) fn read_bytes(&self) -> u64 {
        self.0.borrow().read_bytes
    }

    pub(super) fn digest(&self) -> Digest {
        self.0.borrow().hasher.clone().finish()
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let mut state = self.meter.0.borrow_mut();
        state.read_bytes += count as u64;
        if state.read_bytes > state.limit_bytes {
            state.exceeded = true;
            return Err(io::Error::other("more bytes than allowed"));
        }
        state.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
