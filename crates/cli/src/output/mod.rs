//! What people and programs read: standard output and error, tables, colours, times. The only place that writes to either.

mod progress;
mod style;
mod table;
mod time;

use std::io::{IsTerminal, Write};

use serde::Serialize;

pub(crate) use progress::{Spinner, TransferProgress};
pub(crate) use style::{Colour, Styles};
pub(crate) use table::{Cell, Table};
pub(crate) use time::{age_since, human_bytes, human_micros};

/// Standard output was closed by who read it: the end, without a word.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct OutputClosed;

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {source}")]
pub(crate) struct OutputFailed {
    source: std::io::Error,
}

/// Writes text to standard output, at once.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output, at once.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(output_error)
}

/// The error for a failed write to standard output.
pub(crate) fn output_error(source: std::io::Error) -> anyhow::Error {
    if source.kind() == std::io::ErrorKind::BrokenPipe {
        OutputClosed.into()
    } else {
        OutputFailed { source }.into()
    }
}

/// Writes a line for people to standard error; nobody hears it when that is closed.
pub(crate) fn note(text: &str) {
    tell("", text);
}

/// The mark is ours and may have a colour; the text may hold what a server, an image or a sandbox said.
fn tell(mark: &str, text: &str) {
    let lines: Vec<String> = text.split('\n').map(table::printable).collect();
    let _ = writeln!(std::io::stderr().lock(), "{mark}{}", lines.join("\n"));
}

/// Writes JSON for programs, indented.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Writes one line of JSON.
pub(crate) fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    print(&text)
}

/// Writes a YAML document.
pub(crate) fn print_yaml(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_yaml_ng::to_string(value)?)
}

/// Whether a person looks at standard output.
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether a person looks at standard error.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes an error and its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    tell(&format!("{} ", Styles::stderr().paint(Colour::Bad, "error:")), &text);
}

/// Writes a warning to standard error.
pub(crate) fn warn(text: &str) {
    tell(&format!("{} ", Styles::stderr().paint(Colour::Busy, "warning:")), text);
}
