//! What a guest says about itself on its standard error: for the reason of its end.
//!
//! Owns the last few KiB of it, and believes none of it: whoever has taken the guest over writes here too.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// So much of the end is kept: a panic with its place, and what led to it.
const KEPT_BYTES: usize = 4096;
/// Most characters that are shown of it.
const SHOWN_CHARS: usize = 1024;

/// The reading end, and what came last.
#[derive(Debug)]
pub(super) struct Diagnostics {
    source: OwnedFd,
    last: Vec<u8>,
}

impl Diagnostics {
    /// Of a descriptor that does not block.
    pub(super) fn new(source: OwnedFd) -> Self {
        Self { source, last: Vec::new() }
    }

    pub(super) fn source(&self) -> &OwnedFd {
        &self.source
    }

    /// Reads once. `false`: there is nothing more for now.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> bool {
        match rustix::io::read(&self.source, &mut *scratch) {
            Ok(0) => false,
            Ok(count) => {
                self.last.extend_from_slice(&scratch[..count]);
                let surplus = self.last.len().saturating_sub(KEPT_BYTES);
                self.last.drain(..surplus);
                true
            }
            Err(Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The end of it as one line that may stand on a terminal.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.last);
        let words: Vec<&str> = text
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|it| !it.is_empty())
            .collect();
        let line = words.join(" ");
        let surplus = line.chars().count().saturating_sub(SHOWN_CHARS);
        line.chars().skip(surplus).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_of_what_was_said_is_kept_and_is_one_harmless_line() {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut theirs = std::fs::File::from(theirs);
        let mut said = Diagnostics::new(ours);
        let mut scratch = [0; 512];
        for number in 0..1000 {
            writeln!(theirs, "line {number} \u{1b}[31m\t{}", "x".repeat(40)).unwrap();
            while said.read(&mut scratch) {}
        }
        theirs.write_all(b"\xff\xfe\x07the end\n").unwrap();
        while said.read(&mut scratch) {}
        assert_eq!(said.last.len(), KEPT_BYTES);
        let text = said.text();
        assert_eq!(text.chars().count(), SHOWN_CHARS);
        assert!(text.ends_with("\u{fffd}\u{fffd} the end"), "{text}");
        assert!(!text.chars().any(char::is_control));
    }
}
