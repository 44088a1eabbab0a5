//! `atoll completion`: scripts for shells.

use clap::CommandFactory;

use super::{Outcome, SUCCESS};
use crate::args::{CommandLine, CompletionArgs};
use crate::output;

/// Prints a completion script.
pub(super) fn completion(args: &CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut CommandLine::command(), "atoll", &mut script);
    output::print_bytes(&script)?;
    Ok(SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
