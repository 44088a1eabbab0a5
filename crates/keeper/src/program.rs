//! The keeper as a program: what a server starts, and what it is told.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use atoll_sys::forking::take_inherited;
use atoll_sys::helper_program::INHERITED_DESCRIPTOR;

use crate::client::StartOptions;
use crate::process::{Options, run};

/// The first argument of the keeper, which servers alone start.
pub const PROGRAM_ARGUMENT: &str = "network-keeper";
const DATA_DIR_ARGUMENT: &str = "--data-dir";

impl StartOptions {
    /// The program `program`, whose `main` calls [`program_main`], for an instance's data directory.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), data_dir: data_dir.into() }
    }

    pub(crate) fn arguments(&self) -> Option<[&str; 3]> {
        Some([PROGRAM_ARGUMENT, DATA_DIR_ARGUMENT, self.data_dir.to_str()?])
    }
}

/// The whole program, where its first argument is [`PROGRAM_ARGUMENT`]. Must be called before there are threads.
#[must_use]
pub fn program_main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let [argument, data_dir] = &arguments[..] else {
        return complain(&"it is started by a server, with --data-dir DIRECTORY");
    };
    if argument != DATA_DIR_ARGUMENT {
        return complain(&"it is started by a server, with --data-dir DIRECTORY");
    }
    let ready = match take_inherited(INHERITED_DESCRIPTOR) {
        Ok(ready) => ready,
        Err(error) => return complain(&format!("nobody waits for it: {error}")),
    };
    // What it holds is reached by every client of this host: its memory is not for a core file.
    if let Err(error) = atoll_sys::process::forbid_core_dumps() {
        return complain(&error);
    }
    match run(Options { data_dir: PathBuf::from(data_dir), ready: Some(ready) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            complain(&format!("{error}{}", cause.map(|it| format!(": {it}")).unwrap_or_default()))
        }
    }
}

fn complain(message: &dyn std::fmt::Display) -> ExitCode {
    // Standard error is the keeper's log; without one nobody reads.
    let _ = writeln!(std::io::stderr(), "network keeper: {message}");
    ExitCode::FAILURE
}
