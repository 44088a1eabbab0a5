//! The `atoll` binary: reads the command line, calls the command, turns its outcome into an exit code.
//!
//! Entry points: [`args`] says what can be written, [`commands`] has one file for each command, [`client`] speaks to the server,
//! [`terminal`] connects a person to a process, [`output`] is the only place that prints.

mod args;
mod bench;
mod client;
mod commands;
mod instance;
mod manifest;
mod output;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Command, CommandLine};
use crate::output::OutputClosed;

/// Exit code of a failure.
const FAILURE: u8 = 1;
/// What a shell shows for a process that SIGPIPE ended: whoever read our output has gone.
const OUTPUT_CLOSED: u8 = 128 + 13;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    if let Command::InternalUnpack(_) = command_line.command {
        // The helper reads its own argument, and must stay without threads.
        return atoll_image::unpack_helper_main();
    }
    let outcome = commands::execute(command_line);
    terminal::restore();
    let code = match outcome {
        Ok(code) => code,
        Err(error) if error.chain().any(|cause| cause.is::<OutputClosed>()) => OUTPUT_CLOSED,
        Err(error) => {
            output::error(&error);
            FAILURE
        }
    };
    // A thread may still wait for input from a terminal: returning from main does not wait for it.
    ExitCode::from(code)
}
