//! The frame that both channels carry: 20 bytes of header, a payload, a checksum.
//!
//! The channel to a guest is a pair of FIFOs that outlive their users: a shim that dies in the middle of a frame leaves a part of
//! it behind. So every frame can be found again in a stream of rubbish: a header carries its own checksum, the payload another,
//! and [`Decoder`] skips what is neither. Who opens a channel anew writes [`resync_padding`] first, which completes any
//! frame that was cut off, and with it makes that frame's checksum fail.
//!
//! A frame whose header is whole and whose payload is not is skipped as a whole: what stood in it may have been chosen by whoever
//! typed it, and must not be searched for frames. Who begins to read in the middle of a stream (only a host that takes over a guest)
//! has no such protection, and believes nothing but output until it has seen its own epoch in a `HelloAck`.
//!
//! ```text
//! 0      4        5     6       8        12        16          20        20+length
//! | aTl1 | kind   | 0   | 0 0   | stream | length  | crc32 of  | payload | crc32 of |
//! |      | u8     |     |       | u32 le | u32 le  | bytes 0-15|         | payload  |
//! ```

/// Begins every frame.
pub const MAGIC: [u8; 4] = *b"aTl1";
/// Bytes of a header.
pub const HEADER_BYTES: usize = 20;
/// Largest payload. Keeps what an untrusted peer can make the other side buffer small, and has room for the arguments and environment of
/// a process (systems allow 128 KiB for one of them).
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;
/// Largest frame as it stands in the stream.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES + 4;
/// Most bytes of program output or input in one data frame: a frame then fits into an empty FIFO.
pub const MAX_DATA_BYTES: usize = 32 * 1024;

/// A buffer larger than this is given back when it is empty: most of the time frames are small and readers are many.
const RESTING_BYTES: usize = 8 * 1024;

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is: a number of [`crate::guest`] or [`crate::shim`].
    pub kind: u8,
    /// Which conversation it belongs to; 0 is the main process.
    pub stream: u32,
    /// At most [`MAX_PAYLOAD_BYTES`].
    pub payload: Vec<u8>,
}

/// A payload that is too large for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {bytes} bytes does not fit into a frame ({MAX_PAYLOAD_BYTES} at most)")]
pub struct PayloadTooLarge {
    /// Its size.
    pub bytes: usize,
}

/// Begins a frame in `out` whose payload the caller appends next; [`finish_frame`] with the returned position completes it. Saves the
/// copy that [`Frame::encode`] makes.
#[must_use]
pub fn begin_frame(out: &mut Vec<u8>, kind: u8, stream: u32) -> usize {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    start
}

/// Completes the frame that [`begin_frame`] began at `start`: everything appended since is its payload.
///
/// # Errors
/// [`PayloadTooLarge`]; the begun frame was taken out of `out` again.
pub fn finish_frame(out: &mut Vec<u8>, start: usize) -> Result<(), PayloadTooLarge> {
    let bytes = out.len().saturating_sub(start + HEADER_BYTES);
    let Some(length) = u32::try_from(bytes).ok().filter(|_| bytes <= MAX_PAYLOAD_BYTES) else {
        out.truncate(start);
        return Err(PayloadTooLarge { bytes });
    };
    let payload_sum = crc32fast::hash(&out[start + HEADER_BYTES..]);
    out[start + 12..start + 16].copy_from_slice(&length.to_le_bytes());
    let header_sum = crc32fast::hash(&out[start..start + 16]);
    out[start + 16..start + 20].copy_from_slice(&header_sum.to_le_bytes());
    out.extend_from_slice(&payload_sum.to_le_bytes());
    Ok(())
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    /// [`PayloadTooLarge`]; nothing was appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), PayloadTooLarge> {
        let start = begin_frame(out, self.kind, self.stream);
        out.extend_from_slice(&self.payload);
        finish_frame(out, start)
    }
}

/// What to write before the first frame on a channel that somebody else may have left in the middle of a frame.
#[must_use]
pub fn resync_padding() -> Vec<u8> {
    vec![0; MAX_FRAME_BYTES]
}

/// Finds frames in a stream of bytes. Buffers one frame at most.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were consumed already.
    consumed: usize,
    skipped_bytes: u64,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes that were read. Call [`next_frame`](Self::next_frame) until it says `None` before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > RESTING_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let rest = &self.buffer[self.consumed..];
            let start = find_magic(rest);
            self.skip(start);
            let rest = &self.buffer[self.consumed..];
            if rest.len() < HEADER_BYTES {
                return None;
            }
            let Some((kind, stream, length)) = parse_header(rest) else {
                self.skip(1);
                continue;
            };
            let end = HEADER_BYTES + length;
            if rest.len() < end + 4 {
                return None;
            }
            let payload = &rest[HEADER_BYTES..end];
            if crc32fast::hash(payload).to_le_bytes() != rest[end..end + 4] {
                self.skip(end + 4);
                continue;
            }
            let frame = Frame { kind, stream, payload: payload.to_vec() };
            self.consumed += end + 4;
            return Some(frame);
        }
    }

    /// Bytes that were no part of a frame, in all: padding, and what a cut or a lie left.
    #[must_use]
    pub const fn skipped_bytes(&self) -> u64 {
        self.skipped_bytes
    }

    fn skip(&mut self, bytes: usize) {
        self.consumed += bytes;
        self.skipped_bytes += bytes as u64;
    }
}

/// Where the magic, or a beginning of it at the very end, stands; else the length.
fn find_magic(bytes: &[u8]) -> usize {
    (0..bytes.len())
        .find(|&at| {
            let seen = &bytes[at..bytes.len().min(at + MAGIC.len())];
            MAGIC.starts_with(seen)
        })
        .unwrap_or(bytes.len())
}

fn parse_header(bytes: &[u8]) -> Option<(u8, u32, usize)> {
    let word = |at: usize| -> Option<u32> {
        bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
    };
    if crc32fast::hash(bytes.get(..16)?) != word(16)? {
        return None;
    }
    let length = usize::try_from(word(12)?).ok().filter(|length| *length <= MAX_PAYLOAD_BYTES)?;
    Some((bytes[4], word(8)?, length))
}

/// Fuzz body: any bytes, cut anywhere, decode without a panic, and a frame after resynchronisation is always found.
///
/// # Panics
/// When the frame after the padding is not found: a bug that the fuzzer is to find.
pub fn fuzz_frame(data: &[u8]) {
    let mut decoder = Decoder::new();
    let cut = data.first().map_or(0, |byte| usize::from(*byte).min(data.len()));
    for part in [&data[..cut], &data[cut..]] {
        decoder.push(part);
        while decoder.next_frame().is_some() {}
    }
    let mut after = resync_padding();
    let frame = Frame { kind: 1, stream: 7, payload: b"{}".to_vec() };
    if frame.encode(&mut after).is_ok() {
        decoder.push(&after);
        let mut last = None;
        while let Some(found) = decoder.next_frame() {
            last = Some(found);
        }
        assert_eq!(last, Some(frame), "the frame after the padding is found");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_payload_over_the_bound_is_refused() {
        let frame = Frame { kind: 1, stream: 0, payload: vec![0; MAX_PAYLOAD_BYTES + 1] };
        let mut out = b"before".to_vec();
        assert_eq!(frame.encode(&mut out), Err(PayloadTooLarge { bytes: MAX_PAYLOAD_BYTES + 1 }));
        assert_eq!(out, b"before");
    }

    #[test]
    fn a_frame_that_was_cut_does_not_swallow_the_one_after_the_padding() {
        let cut = encoded(&Frame { kind: 9, stream: 3, payload: vec![7; MAX_PAYLOAD_BYTES] });
        let next = Frame { kind: 1, stream: 0, payload: b"hello".to_vec() };
        for length in [1, 19, 20, 21, 5000, cut.len() - 1] {
            let mut decoder = Decoder::new();
            decoder.push(&cut[..length]);
            assert_eq!(decoder.next_frame(), None);
            decoder.push(&resync_padding());
            while decoder.next_frame().is_some() {}
            decoder.push(&encoded(&next));
            assert_eq!(decoder.next_frame(), Some(next.clone()), "cut at {length}");
        }
    }

    #[test]
    fn a_frame_inside_a_payload_that_was_cut_is_not_found() {
        let forged = Frame { kind: 4, stream: 9, payload: b"run me as root".to_vec() };
        let mut payload = encoded(&forged);
        payload.resize(1000, b'x');
        let outer = encoded(&Frame { kind: 5, stream: 3, payload });
        let mut decoder = Decoder::new();
        decoder.push(&outer[..outer.len() - 100]);
        decoder.push(&resync_padding());
        let next = Frame { kind: 1, stream: 0, payload: b"hello".to_vec() };
        decoder.push(&encoded(&next));
        assert_eq!(decoder.next_frame(), Some(next));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            step in 1_usize..64,
        ) {
            let frames: Vec<Frame> = payloads
                .into_iter()
                .enumerate()
                .map(|(at, payload)| Frame { kind: at as u8, stream: at as u32, payload })
                .collect();
            let bytes: Vec<u8> = frames.iter().flat_map(encoded).collect();
            let mut decoder = Decoder::new();
            let mut found = Vec::new();
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert_eq!(decoder.skipped_bytes(), 0);
        }

        #[test]
        fn rubbish_never_panics_and_never_hides_the_next_frame(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            fuzz_frame(&data);
        }
    }
}
