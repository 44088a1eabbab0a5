//! The terminal of who uses the command line: raw mode that is always undone, its size, a password without echo.

mod session;

use std::io::{BufRead, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use atoll_wire::rest::Size;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

pub(crate) use session::{Session, SessionEnd, SignalPath};

/// The terminal as it was before raw mode, while raw mode lasts.
static BEFORE_RAW: Mutex<Option<Termios>> = Mutex::new(None);

/// Why the terminal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// `-t` without one.
    #[error("-t needs a terminal, but standard input is none: leave -t out")]
    NotATerminal,
    /// The kernel refused.
    #[error("cannot change the terminal's settings: {0}")]
    Settings(#[source] rustix::io::Errno),
    /// Nobody can be asked.
    #[error("cannot ask for {what}: standard input is no terminal (use {instead})")]
    NobodyToAsk {
        /// For what.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// Reading failed.
    #[error("cannot read from the terminal: {0}")]
    Read(#[source] std::io::Error),
}

/// Raw mode, until dropped.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input's terminal into raw mode: each key goes to the sandbox.
    pub(crate) fn enter() -> Result<Self, TerminalError> {
        if !std::io::stdin().is_terminal() {
            return Err(TerminalError::NotATerminal);
        }
        let before = tcgetattr(stdin()).map_err(TerminalError::Settings)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE_RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        tcsetattr(stdin(), OptionalActions::Flush, &raw).map_err(TerminalError::Settings)?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes raw mode if it is on. For ways out on which nothing is dropped.
pub(crate) fn restore() {
    let before = BEFORE_RAW.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // Nothing can be done about a terminal that has gone away.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// The terminal's size, if there is one.
pub(crate) fn size() -> Option<Size> {
    let size = tcgetwinsize(stdin()).or_else(|_| tcgetwinsize(stdout())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Asks for a line.
pub(crate) fn ask(
    prompt: &str,
    what: &'static str,
    instead: &'static str,
) -> Result<String, TerminalError> {
    if !std::io::stdin().is_terminal() {
        return Err(TerminalError::NobodyToAsk { what, instead });
    }
    let _ = write!(std::io::stderr(), "{prompt}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(TerminalError::Read)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a line that is not shown.
pub(crate) fn ask_secret(
    prompt: &str,
    what: &'static str,
    instead: &'static str,
) -> Result<String, TerminalError> {
    if !std::io::stdin().is_terminal() {
        return Err(TerminalError::NobodyToAsk { what, instead });
    }
    let before = tcgetattr(stdin()).map_err(TerminalError::Settings)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    *BEFORE_RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    let guard = RawTerminal(());
    tcsetattr(stdin(), OptionalActions::Flush, &silent).map_err(TerminalError::Settings)?;
    let answer = ask(prompt, what, instead);
    drop(guard);
    let _ = writeln!(std::io::stderr());
    answer
}
