//! The commands. Two steps each: [`arguments`] only parses; then the command
//! resolves what was meant, acts as a client of supervisors and store, and
//! prints. Errors are told once, here.

mod archive;
pub mod arguments;
pub mod attach;
mod clone;
mod doctor;
mod error;
mod exec;
mod housekeeping;
mod machine;
mod ready;
mod sandboxes;
mod template;
pub mod text;

pub use error::CliError;

use crate::config::{Paths, SandboxId};
use crate::host::{explain, sandboxes};
use crate::supervisor::client::Supervisors;
use crate::timeline::now;
use arguments::{Arguments, Command, Output};
use clap::Parser;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the program with these arguments, its own name first.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let begun = now();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to stdout with 0, wrong usage to stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match act(arguments, begun) {
        Ok(code) => code,
        Err(error) => {
            // With nowhere to tell it, the exit code tells it.
            let _ = writeln!(io::stderr(), "error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn act(
    arguments: Arguments,
    begun: u64,
) -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
    if let Command::Supervise(supervise) = arguments.command {
        crate::supervisor::process::supervise(supervise.adopt)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Doctor(asked) = &arguments.command {
        return Ok(doctor::doctor(asked, arguments.output)?);
    }
    let context = Context {
        supervisors: Supervisors::of_this_program(Paths::from_environment()?),
        output: arguments.output,
        begun,
    };
    Ok(match arguments.command {
        Command::Template(command) => template::template(&context, command)?,
        Command::Clone(arguments) => clone::clone(&context, &arguments)?,
        Command::Run(arguments) => clone::run(&context, &arguments)?,
        Command::Exec(arguments) => exec::exec(&context, arguments)?,
        Command::List(arguments) => sandboxes::list(&context, &arguments)?,
        Command::Inspect(argument) => sandboxes::inspect(&context, &argument)?,
        Command::Logs(arguments) => sandboxes::logs(&context, &arguments)?,
        Command::Stop(arguments) => housekeeping::stop(&context, &arguments)?,
        Command::Rm(arguments) => housekeeping::rm(&context, &arguments)?,
        Command::Gc => housekeeping::gc(&context)?,
        Command::Doctor(_) | Command::Supervise(_) => ExitCode::SUCCESS,
    })
}

/// Resolves at the first SIGINT or SIGTERM. From its first poll on they no
/// longer end this process.
async fn interrupted() {
    let interrupt = signal(SignalKind::interrupt());
    let terminate = signal(SignalKind::terminate());
    // Without handlers the signals do what they did before; a sweep ends the VM
    // that is left then.
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// What every command has.
struct Context {
    supervisors: Supervisors,
    output: Output,
    /// When the program began, in nanoseconds of CLOCK_MONOTONIC.
    begun: u64,
}

impl Context {
    fn paths(&self) -> &Paths {
        self.supervisors.paths()
    }

    /// The sandbox with this id, or the only one whose id begins so.
    fn sandbox(&self, text: &str) -> Result<SandboxId, CliError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let known = sandboxes(self.paths())?;
        let mut matching = known
            .into_iter()
            .filter(|id| !text.is_empty() && id.as_str().starts_with(text));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(CliError::Missing {
                what: format!("sandbox {}", text::escape(text)),
                hint: "several begin so, give more of the id",
            }),
            (None, _) => Err(CliError::Missing {
                what: format!("no sandbox {}", text::escape(text)),
                hint: "`host-ctl list` shows those there are",
            }),
        }
    }

    /// Prints a result: as JSON, or as the text that `describe` gives.
    fn print<T: Serialize>(
        &self,
        result: &T,
        describe: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        print(self.output, result, describe)
    }
}

fn print<T: Serialize>(
    output: Output,
    result: &T,
    describe: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    let text = match output {
        Output::Text => describe(result),
        Output::Json => {
            let json = serde_json::to_string_pretty(result).map_err(io::Error::from);
            json.map_err(CliError::io("serialize the result"))? + "\n"
        }
    };
    write_stdout(text.as_bytes())
}

fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(CliError::io("write stdout"))
}

/// One thread is enough: a command waits for others most of its time.
fn runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("start the runtime"))
}
