//! One file for each command. A command returns its exit code, or an error that says what to do next.

mod attach;
mod bounded_log;
mod completion;
mod copy;
mod create;
mod delete;
mod describe;
mod detached;
mod doctor;
mod down;
mod events;
mod exec;
mod get;
mod image;
mod login;
mod logs;
mod node;
mod run;
mod up;
mod version;
mod wait;

use crate::args::{Command, CommandLine, ConnectionArgs};
use crate::client::Client;
use crate::instance::Instance;

/// A command's exit code, or why it failed.
type Outcome = anyhow::Result<u8>;

/// All is well.
const SUCCESS: u8 = 0;
/// It is not.
const FAILURE: u8 = 1;

/// Executes a command line.
pub(crate) fn execute(command_line: CommandLine) -> Outcome {
    let connection = command_line.connection;
    match command_line.command {
        Command::Up(args) => up::up(&args, &connection),
        Command::Down(args) => block_on(down::down(args, &connection)),
        Command::Run(args) => block_on(run::run(args, &connection)),
        Command::Exec(args) => block_on(exec::exec(args, &connection)),
        Command::Attach(args) => block_on(attach::attach(args, &connection)),
        Command::Cp(args) => block_on(copy::copy(args, &connection)),
        Command::Logs(args) => block_on(logs::logs(args, &connection)),
        Command::Create(args) => block_on(create::create(args, &connection)),
        Command::Get(args) => block_on(get::get(args, &connection)),
        Command::Describe(args) => block_on(describe::describe(args, &connection)),
        Command::Wait(args) => block_on(wait::wait(args, &connection)),
        Command::Delete(args) => block_on(delete::delete(args, &connection)),
        Command::Events(args) => block_on(events::events(args, &connection)),
        Command::Image(command) => block_on(image::image(command, &connection)),
        Command::Login(args) => block_on(login::login(args, &connection)),
        Command::Logout(args) => block_on(login::logout(args, &connection)),
        Command::Doctor(args) => block_on(doctor::doctor(args, &connection)),
        Command::Version(args) => block_on(version::version(args, &connection)),
        Command::Completion(args) => completion::completion(&args),
        Command::Bench(suite) => block_on(async {
            crate::bench::bench(suite, &connection).await?;
            Ok(SUCCESS)
        }),
    }
}

/// One thread is enough for a client, and starts fastest.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    // A read of standard input may still be blocked: do not wait for it.
    runtime.shutdown_background();
    outcome
}

/// A client of the atoll that the command line means.
fn connect(connection: &ConnectionArgs) -> anyhow::Result<Client> {
    Ok(Client::new(Instance::find(connection)?)?)
}

/// An exit code of a process inside as this process's own.
fn exit_code(code: i32) -> u8 {
    // The kernel keeps the low eight bits too; a failure must not become a success.
    match u8::try_from(code & 0xff) {
        Ok(0) if code != 0 => u8::MAX,
        Ok(code) => code,
        Err(_) => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_becomes_a_success() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(137), 137);
        assert_eq!(exit_code(256), 255);
        assert_eq!(exit_code(-1), 255);
    }
}
