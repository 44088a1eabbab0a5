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
mod sbxctl;
mod terminal;

use std::process::ExitCode;

use atoll_keeper::PROGRAM_ARGUMENT;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use crate::args::{CommandLine, UNPACK_ARGUMENT};
use crate::output::OutputClosed;

/// Exit code of a failure.
const FAILURE: u8 = 1;
/// What a shell shows for a process that SIGPIPE ended: whoever read our output has gone.
const OUTPUT_CLOSED: u8 = 128 + 13;

/// Reads the command line; ends the process where it makes no sense.
fn command_line() -> CommandLine {
    let matches = CommandLine::command().get_matches();
    let source = |argument| matches.value_source(argument);
    // What is written counts more than what is in the environment, also where the two are different ways to say which atoll is meant.
    let elsewhere = source("data_dir") == Some(ValueSource::CommandLine)
        && source("server") == Some(ValueSource::EnvVariable);
    match CommandLine::from_arg_matches(&matches) {
        Ok(mut command_line) => {
            if elsewhere {
                command_line.connection.server = None;
            }
            command_line
        }
        Err(error) => error.format(&mut CommandLine::command()).exit(),
    }
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == UNPACK_ARGUMENT) {
        // The helper reads its own argument, and must stay without threads.
        return atoll_image::unpack_helper_main();
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == PROGRAM_ARGUMENT) {
        // So must the keeper, until it has taken over what it was started with.
        return atoll_keeper::program_main();
    }
    let outcome =
        if sbxctl::is_meant() { sbxctl::execute() } else { commands::execute(command_line()) };
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
