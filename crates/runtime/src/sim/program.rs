//! The commands that a simulated process understands, and how they run.
//!
//! Owns a tiny model of a shell: enough to give exit codes, output, input and signals. Never starts anything on the host.

use std::future::Future;
use std::time::Duration;

use atoll_wire::guest::{Exited, ProcessSpec, StartFailure, StartFailureKind};
use atoll_wire::record::ExitReason;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ProcessOutput;

use super::output::Output;

/// One action of a simulated process.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Ends the program.
    Exit(i32),
    /// Sets the status of the last command.
    Status(i32),
    Sleep(Option<Duration>),
    Print {
        to_stderr: bool,
        text: String,
    },
    /// Standard input to standard output.
    CopyInput,
    Ignore(i32),
    Raise(i32),
    /// Allocates more than the container may have.
    ExhaustMemory,
}

/// A parsed command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    steps: Vec<Step>,
}

/// What is told to a running program.
#[derive(Debug)]
pub(super) enum Control {
    Input(Bytes),
    InputEnd,
    Signal(i32),
    /// Ends at once for a reason that comes from outside the program.
    Fault(ExitReason),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProgramEnd {
    pub(super) exited: Exited,
    /// When something else than the program itself was the cause.
    pub(super) cause: Option<ExitReason>,
}

impl ProgramEnd {
    const fn code(code: i32) -> Self {
        Self { exited: Exited { code: Some(code), signal: None, pids_limit: false }, cause: None }
    }

    const fn signal(signal: i32, cause: Option<ExitReason>) -> Self {
        Self { exited: Exited { code: None, signal: Some(signal), pids_limit: false }, cause }
    }
}

const SIGKILL: i32 = 9;
/// Signals that end nothing by default. SOURCE: signal(7): SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
const HARMLESS_SIGNALS: [i32; 4] = [17, 18, 23, 28];

impl Program {
    /// Understands a process's command, or says why it cannot be started.
    pub(super) fn parse(process: &ProcessSpec) -> Result<Self, StartFailure> {
        let Some(name) = process.args.first() else {
            return Err(failure(StartFailureKind::BadRequest, "no command"));
        };
        let words: Vec<String> = process.args.clone();
        if matches!(base_name(name), "sh" | "bash") {
            return match (words.get(1).map(String::as_str), words.get(2)) {
                (Some("-c"), Some(script)) => Ok(parse_script(script, &process.env)),
                (None, _) => Ok(Self { steps: vec![Step::CopyInput] }),
                _ => Err(failure(StartFailureKind::BadRequest, "only `sh -c SCRIPT` is simulated")),
            };
        }
        parse_command(&words, &process.env)
            .map(|steps| Self { steps })
            .ok_or_else(|| failure(StartFailureKind::NotFound, &format!("{name}: not found")))
    }

    /// Runs to the end. Signals and faults cut any step short, a write to a reader who does not read as well.
    pub(super) async fn run(
        self,
        control: mpsc::UnboundedReceiver<Control>,
        output: &Output,
    ) -> ProgramEnd {
        let mut running =
            Running { control, input: Vec::new(), input_ended: false, ignored: Vec::new() };
        let mut status = 0;
        for step in self.steps {
            let ended = running.step(step, &mut status, output).await;
            if let Err(end) = ended {
                return end;
            }
        }
        ProgramEnd::code(status)
    }
}

struct Running {
    control: mpsc::UnboundedReceiver<Control>,
    input: Vec<Bytes>,
    input_ended: bool,
    ignored: Vec<i32>,
}

impl Running {
    async fn step(
        &mut self,
        step: Step,
        status: &mut i32,
        output: &Output,
    ) -> Result<(), ProgramEnd> {
        match step {
            Step::Exit(code) => return Err(ProgramEnd::code(code & 0xff)),
            Step::Status(code) => {
                *status = code;
                return Ok(());
            }
            Step::Sleep(Some(duration)) => self.during(tokio::time::sleep(duration)).await?,
            Step::Sleep(None) => self.during(std::future::pending::<()>()).await?,
            Step::Print { to_stderr, text } => {
                let bytes = Bytes::from(text);
                let told = match to_stderr {
                    true => ProcessOutput::Stderr(bytes),
                    false => ProcessOutput::Stdout(bytes),
                };
                self.during(output.tell(told)).await?;
            }
            Step::CopyInput => self.copy_input(output).await?,
            Step::Ignore(signal) => self.ignored.push(signal),
            Step::Raise(signal) => self.signalled(signal)?,
            Step::ExhaustMemory => {
                return Err(ProgramEnd::signal(SIGKILL, Some(ExitReason::OutOfMemory)));
            }
        }
        *status = 0;
        Ok(())
    }

    async fn copy_input(&mut self, output: &Output) -> Result<(), ProgramEnd> {
        loop {
            for bytes in std::mem::take(&mut self.input) {
                self.during(output.tell(ProcessOutput::Stdout(bytes))).await?;
            }
            if !self.input.is_empty() {
                continue;
            }
            if self.input_ended {
                return Ok(());
            }
            match self.control.recv().await {
                Some(control) => self.take(control)?,
                None => self.input_ended = true,
            }
        }
    }

    /// Waits for something, unless the program is ended meanwhile.
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> Result<T, ProgramEnd> {
        tokio::pin!(future);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                told = self.control.recv(), if open => match told {
                    Some(control) => self.take(control)?,
                    None => open = false,
                },
                done = &mut future => return Ok(done),
            }
        }
    }

    fn take(&mut self, control: Control) -> Result<(), ProgramEnd> {
        match control {
            Control::Input(bytes) if !self.input_ended => self.input.push(bytes),
            Control::Input(_) => {}
            Control::InputEnd => self.input_ended = true,
            Control::Signal(signal) => return self.signalled(signal),
            Control::Fault(cause) => return Err(ProgramEnd::signal(SIGKILL, Some(cause))),
        }
        Ok(())
    }

    fn signalled(&self, signal: i32) -> Result<(), ProgramEnd> {
        let harmless = HARMLESS_SIGNALS.contains(&signal) || self.ignored.contains(&signal);
        match harmless && signal != SIGKILL {
            true => Ok(()),
            false => Err(ProgramEnd::signal(signal, None)),
        }
    }
}

fn failure(kind: StartFailureKind, message: &str) -> StartFailure {
    StartFailure { kind, message: message.to_owned() }
}

fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// `None`: no such program.
fn parse_command(words: &[String], environment: &[String]) -> Option<Vec<Step>> {
    let (name, arguments) = words.split_first()?;
    let first = arguments.first().map(String::as_str);
    let number = |otherwise: i32| first.map_or(Some(otherwise), |text| text.parse().ok());
    let print = |text: String| Step::Print { to_stderr: false, text };
    Some(match base_name(name) {
        "true" | ":" => vec![Step::Status(0)],
        "false" => vec![Step::Status(1)],
        "exit" => vec![Step::Exit(number(0)?)],
        "sleep" => vec![Step::Sleep(parse_seconds(first?)?)],
        "echo" => {
            let (to_stderr, arguments) = match arguments.split_last() {
                Some((last, before)) if last == ">&2" => (true, before),
                _ => (false, arguments),
            };
            vec![Step::Print { to_stderr, text: arguments.join(" ") + "\n" }]
        }
        "cat" if arguments.is_empty() => vec![Step::CopyInput],
        "env" | "printenv" => environment.iter().map(|entry| print(format!("{entry}\n"))).collect(),
        // Whatever process is named: there is but this one.
        "kill" => vec![Step::Raise(signal_number(first?.strip_prefix('-')?)?)],
        "trap" => vec![Step::Ignore(signal_number(arguments.get(1)?)?)],
        "exhaust-memory" => vec![Step::ExhaustMemory],
        _ => return None,
    })
}

/// `Some(None)`: for ever.
fn parse_seconds(text: &str) -> Option<Option<Duration>> {
    if text == "infinity" {
        return Some(None);
    }
    text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(Some)
}

fn signal_number(text: &str) -> Option<i32> {
    match text {
        "HUP" => Some(1),
        "INT" => Some(2),
        "KILL" => Some(9),
        "TERM" => Some(15),
        other => other.parse().ok(),
    }
}

/// Commands between `;`, `&&` and line ends, one after the other; unknown ones complain as a shell does.
fn parse_script(script: &str, environment: &[String]) -> Program {
    let mut steps = Vec::new();
    for command in script.replace("&&", ";").split([';', '\n']) {
        let mut words = split_words(command, environment);
        if words.first().is_some_and(|word| word == "exec") {
            words.remove(0);
        }
        let Some(name) = words.first() else { continue };
        match parse_command(&words, environment) {
            Some(parsed) => steps.extend(parsed),
            None => {
                let text = format!("sh: {name}: not found\n");
                steps.extend([Step::Print { to_stderr: true, text }, Step::Status(127)]);
            }
        }
    }
    Program { steps }
}

/// Words with quotes removed and `$NAME` replaced outside single quotes.
fn split_words(command: &str, environment: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = command.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None | Some('"'), '$') => {
                let mut name = String::new();
                while let Some(next) =
                    letters.next_if(|next| next.is_ascii_alphanumeric() || *next == '_')
                {
                    name.push(next);
                }
                word.get_or_insert_default().push_str(value_of(&name, environment));
            }
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

fn value_of<'a>(name: &str, environment: &'a [String]) -> &'a str {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_understood_as_far_as_tests_need_them() {
        let environment = ["NAME=a b".to_owned()];
        let program = parse_script("echo \"$NAME\" '$NAME' >&2; exit 3", &environment);
        let text = "a b $NAME\n".to_owned();
        assert_eq!(program.steps, [Step::Print { to_stderr: true, text }, Step::Exit(3)]);
        let program = parse_script("exec nothing && true", &[]);
        assert_eq!(program.steps.len(), 3);
        assert_eq!(program.steps[1], Step::Status(127));
        assert_eq!(parse_seconds("-1"), None);
        assert_eq!(parse_seconds("infinity"), Some(None));
    }
}
