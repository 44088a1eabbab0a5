//! A container's log on disk: one record a line, in the format that Kubernetes tools read.
//!
//! `<RFC 3339 time> <stdout|stderr> <F|P> <text>` where P says that the line goes on in the next record.
//! SOURCE: Kubernetes CRI log format. A record of stream `gap` is atoll's own: output is missing here, and how much.
//!
//! `<directory>/logs/<container>.log` is written to; `<container>.log.1` is the part before it, dropped when a new one begins.

/// A stream of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output (and all of a terminal's).
    Stdout,
    /// Standard error.
    Stderr,
    /// Not output: a mark that some is missing.
    Gap,
}

impl LogStream {
    /// The word in a record.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Gap => "gap",
        }
    }
}

/// Longest text of one record; longer lines are cut into several.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// RFC 3339 with nanoseconds, UTC, as written.
    pub time: String,
    /// Which stream.
    pub stream: LogStream,
    /// The text ends a line.
    pub full: bool,
    /// Without the line's end.
    pub text: Vec<u8>,
}

impl LogRecord {
    /// Appends the record and its line end.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(if self.full { b" F " } else { b" P " });
        out.extend_from_slice(&self.text);
        out.push(b'\n');
    }

    /// Reads one line (without its end); `None` for anything else: a torn line after a crash.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.to_owned();
        let stream = match parts.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            b"gap" => LogStream::Gap,
            _ => return None,
        };
        let full = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, full, text: parts.next()?.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_torn_ones_do_not() {
        let record = LogRecord {
            time: "2026-01-02T03:04:05.000000006Z".into(),
            stream: LogStream::Stderr,
            full: false,
            text: b" spaces  and \xff bytes".to_vec(),
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(LogRecord::parse(bytes.strip_suffix(b"\n").unwrap()), Some(record));
        for torn in [&b""[..], b"2026", b"2026 stdout", b"2026 stdout X t", b"2026 stdin F t"] {
            assert_eq!(LogRecord::parse(torn), None);
        }
    }
}
