//! The disk's own speed: what a durable write costs here, so that figures of two machines can be compared.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::statistics::{Summary, micros};

/// How many writes are timed.
const WRITES: usize = 100;
/// Bytes of each: a page, as a small database commit.
const WRITE_BYTES: usize = 4096;

/// Times write and fdatasync of a file in the directory.
pub(crate) fn fdatasync(directory: &Path) -> anyhow::Result<Summary> {
    let context = || format!("cannot time the disk of {}", directory.display());
    let mut file = tempfile::tempfile_in(directory).with_context(context)?;
    let page = [0xa5; WRITE_BYTES];
    let mut samples = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begun = Instant::now();
        file.write_all(&page).and_then(|()| file.sync_data()).with_context(context)?;
        samples.push(micros(begun.elapsed()));
    }
    Summary::of(&samples).with_context(context)
}
