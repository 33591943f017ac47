//! `list`, `inspect` and `logs`: what sandboxes there are and what they say.

use super::arguments::{ListArguments, LogsArguments, SandboxArgument};
use super::text::{Table, escape_lines, since};
use super::{CliError, Context, runtime, write_stdout};
use crate::config::{SandboxId, TemplateDigest};
use crate::host::{RecordError, Ring, Stage, explain, sandboxes};
use crate::sandbox::limits::Limited;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::State;
use crate::supervisor::client::ClientError;
use crate::supervisor::control::{Request, Status};
use crate::supervisor::output::container_log;
use rustix::termios::isatty;
use serde::Serialize;
use std::io;
use std::process::ExitCode;

/// One line of `list`.
#[derive(Debug, Serialize)]
struct Line {
    sandbox: SandboxId,
    state: State,
    /// When its making began, in seconds since 1970.
    created: u64,
    template: Option<TemplateDigest>,
    containers: Vec<String>,
    memory_mib: u32,
    /// The VMM's process.
    pid: Option<i32>,
    exit: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    sandboxes: Vec<Line>,
}

pub(super) fn list(context: &Context, arguments: &ListArguments) -> Result<ExitCode, CliError> {
    let mut lines = Vec::new();
    for sandbox in sandboxes(context.paths())? {
        match SandboxRecord::read(context.paths(), &sandbox) {
            // The place where a template is being built is no sandbox.
            Ok(record) if record.head.stage == Stage::Building => {}
            Ok(record) => lines.push(line(record)),
            // Removed meanwhile, or not written yet.
            Err(RecordError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let listed = Listed { sandboxes: lines };
    context.print(&listed, |listed| {
        if arguments.quiet {
            let ids = listed.sandboxes.iter().map(|line| &line.sandbox);
            return ids.map(|id| format!("{id}\n")).collect();
        }
        describe_list(&listed.sandboxes)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn line(record: SandboxRecord) -> Line {
    let state = record.present_state();
    Line {
        sandbox: record.id,
        state,
        created: record.created,
        template: record.template,
        containers: record
            .spec
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect(),
        memory_mib: record.spec.memory_mib,
        pid: record
            .vm
            .filter(|_| state != State::Stopped)
            .map(|vm| vm.pid),
        exit: record.exit,
    }
}

fn describe_list(lines: &[Line]) -> String {
    let mut table = Table::new(&[
        "SANDBOX",
        "STATE",
        "CREATED",
        "TEMPLATE",
        "CONTAINERS",
        "MEMORY",
        "PID",
    ]);
    for line in lines {
        let template = line.template.as_ref();
        table.row([
            line.sandbox.to_string(),
            line.state.to_string(),
            since(line.created),
            template.map_or_else(|| "-".to_owned(), |digest| digest.short().to_owned()),
            line.containers.join(","),
            format!("{} MiB", line.memory_mib),
            line.pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        ]);
    }
    table.to_string()
}

/// What `inspect` prints: the record, its state brought up to date, and what
/// the supervisor adds.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    record: SandboxRecord,
    /// What limits its VMM, while there is one.
    limited: Option<Limited>,
    /// The supervisor's own answer, while there is a VM.
    status: Option<Status>,
    /// Why there is none.
    status_error: Option<String>,
}

pub(super) fn inspect(context: &Context, argument: &SandboxArgument) -> Result<ExitCode, CliError> {
    let sandbox = context.sandbox(&argument.sandbox)?;
    let mut asked = None;
    if let State::Running | State::Paused = known(context, &sandbox)?.present_state() {
        let ask = context.supervisors.ask(&sandbox, &Request::Inspect {});
        asked = Some(runtime()?.block_on(ask));
    }
    // Read again: its supervisor may have just been revived.
    let mut record = known(context, &sandbox)?;
    record.set_state(record.present_state());
    let (status, status_error) = match asked {
        Some(Ok(status)) => (Some(status), None),
        Some(Err(error)) => (None, Some(explain(&error))),
        None => (None, None),
    };
    let inspected = Inspected {
        limited: record.vm.is_some().then(|| record.limited()),
        record,
        status,
        status_error,
    };
    // Everything known is a tree; people get it in the same form.
    super::print(super::Output::Json, &inspected, |_| String::new())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Log {
    /// `console`, or the container's id.
    source: String,
    /// Its last part; what is not UTF-8 is replaced.
    text: String,
}

#[derive(Debug, Serialize)]
struct Logs {
    logs: Vec<Log>,
}

pub(super) fn logs(context: &Context, arguments: &LogsArguments) -> Result<ExitCode, CliError> {
    let sandbox = context.sandbox(&arguments.sandbox)?;
    let record = known(context, &sandbox)?;
    let paths = context.paths().sandbox(&sandbox);
    let sources = if arguments.console {
        vec![("console".to_owned(), paths.console_log())]
    } else {
        let containers = record.spec.containers.iter();
        containers
            .map(|container| (container.id.clone(), container_log(&paths, &container.id)))
            .collect()
    };
    let mut logs = Vec::new();
    for (source, path) in sources {
        logs.push((source, Ring::read(&path, Ring::HALF)?));
    }
    if context.output == super::Output::Text && !isatty(io::stdout()) {
        // Into a file or a pipe every byte goes as it came.
        for (_, bytes) in &logs {
            write_stdout(bytes)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let logs: Vec<Log> = logs
        .into_iter()
        .map(|(source, bytes)| Log {
            source,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
        .collect();
    context.print(&Logs { logs }, |Logs { logs }| {
        logs.iter().map(|log| escape_lines(&log.text)).collect()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The record of a sandbox that must be there.
fn known(context: &Context, sandbox: &SandboxId) -> Result<SandboxRecord, CliError> {
    match SandboxRecord::read(context.paths(), sandbox) {
        Err(RecordError::Missing(_)) => Err(ClientError::Unknown(sandbox.clone()).into()),
        record => Ok(record?),
    }
}
