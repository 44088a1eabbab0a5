//! `atoll logs`: what a container has written, and what it writes.

use std::io::Write;

use atoll_wire::log::{LogRecord, LogStream};
use reqwest::Method;

use super::{Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, LogsArgs};
use crate::client::{sandbox_path, with_query};
use crate::output;

/// Prints a log. Standard output and standard error of the container go to ours; a gap is told on standard error.
pub(super) async fn logs(args: LogsArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let tail = args.tail.map(|lines| lines.to_string());
    let path = with_query(
        &format!("{}/logs", sandbox_path(&args.name)),
        &[
            ("container", args.container.as_deref()),
            ("follow", args.follow.then_some("true")),
            ("tail", tail.as_deref()),
            ("format", Some("records")),
        ],
    );
    let mut lines = client.lines(client.request(Method::GET, &path)).await?;
    let mut text = LogText::new(args.timestamps);
    while let Some(line) = lines.next_line().await? {
        let Some(record) = LogRecord::parse(&line) else { continue };
        if record.stream == LogStream::Gap {
            output::warn(&format!(
                "output is missing here: {}",
                String::from_utf8_lossy(&record.text)
            ));
            continue;
        }
        let bytes = text.of(&record);
        if record.stream == LogStream::Stderr {
            let mut stderr = std::io::stderr().lock();
            stderr.write_all(&bytes).map_err(output::output_error)?;
        } else {
            output::print_bytes(&bytes)?;
        }
    }
    Ok(SUCCESS)
}

/// Joins the records of a line.
struct LogText {
    timestamps: bool,
    within_line: [bool; 2],
}

impl LogText {
    fn new(timestamps: bool) -> Self {
        Self { timestamps, within_line: [false; 2] }
    }

    /// The text of a record, with its time where a line begins and a line end where one ends.
    fn of(&mut self, record: &LogRecord) -> Vec<u8> {
        let within = &mut self.within_line[usize::from(record.stream == LogStream::Stderr)];
        let mut bytes = Vec::with_capacity(record.text.len() + record.time.len() + 2);
        if self.timestamps && !*within {
            bytes.extend_from_slice(record.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(&record.text);
        if record.full {
            bytes.push(b'\n');
        }
        *within = !record.full;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_joined_and_has_one_time() {
        let record = |full, text: &str| LogRecord {
            time: "T".into(),
            stream: LogStream::Stdout,
            full,
            text: text.into(),
        };
        let mut text = LogText::new(true);
        let mut out = Vec::new();
        for record in [record(false, "ab"), record(true, "c"), record(true, "d")] {
            out.extend(text.of(&record));
        }
        assert_eq!(out, b"T abc\nT d\n");
    }
}
