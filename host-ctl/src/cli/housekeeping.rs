//! `stop`, `rm` and `gc`: the end of sandboxes, and of what nobody ended.

use super::arguments::{RmArguments, StopArguments};
use super::text::{Table, escape};
use super::{CliError, Context, runtime};
use crate::config::SandboxId;
use crate::host::{Action, Finding, explain, sandboxes, sweep};
use crate::store::Store;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// What became of one sandbox.
#[derive(Debug, Serialize)]
struct Ended {
    sandbox: SandboxId,
    done: bool,
    error: Option<String>,
}

pub(super) fn stop(context: &Context, arguments: &StopArguments) -> Result<ExitCode, CliError> {
    let grace = Duration::from_secs(arguments.grace.into());
    let ids = resolve(context, &arguments.sandboxes)?;
    let ended = runtime()?.block_on(async {
        let mut ended = Vec::new();
        for id in ids {
            let outcome = context.supervisors.stop(&id, grace).await;
            ended.push(Ended::new(id, outcome));
        }
        ended
    });
    finish(context, &ended, "stopped")
}

pub(super) fn rm(context: &Context, arguments: &RmArguments) -> Result<ExitCode, CliError> {
    let ids = if arguments.all {
        sandboxes(context.paths())?
    } else {
        resolve(context, &arguments.sandboxes)?
    };
    let ended = runtime()?.block_on(async {
        let mut ended = Vec::new();
        for id in ids {
            let outcome = context.supervisors.remove(&id).await;
            ended.push(Ended::new(id, outcome));
        }
        ended
    });
    finish(context, &ended, "removed")
}

/// All of them or none: a typing mistake ends nothing.
fn resolve(context: &Context, texts: &[String]) -> Result<Vec<SandboxId>, CliError> {
    texts.iter().map(|text| context.sandbox(text)).collect()
}

impl Ended {
    fn new<E: std::error::Error>(sandbox: SandboxId, outcome: Result<(), E>) -> Self {
        Self {
            sandbox,
            done: outcome.is_ok(),
            error: outcome.err().map(|error| explain(&error)),
        }
    }
}

fn finish(context: &Context, ended: &[Ended], what: &str) -> Result<ExitCode, CliError> {
    context.print(&serde_json::json!({ "sandboxes": ended }), |_| {
        let line = |one: &Ended| match &one.error {
            None => format!("{}: {what}\n", one.sandbox),
            Some(error) => format!("{}: error: {}\n", one.sandbox, escape(error)),
        };
        ended.iter().map(line).collect()
    })?;
    Ok(if ended.iter().all(|one| one.done) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sandboxes first: what they no longer use the store's sweep then removes.
pub(super) fn gc(context: &Context) -> Result<ExitCode, CliError> {
    let mut findings = sweep(context.paths())?;
    findings.extend(Store::open(context.paths())?.sweep()?);
    context.print(&serde_json::json!({ "findings": findings }), |_| {
        describe(&findings)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn describe(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing to do\n".to_owned();
    }
    let mut table = Table::new(&["DONE", "WHAT", "WHY"]);
    for finding in findings {
        let action = match finding.action {
            Action::Removed => "removed",
            Action::Kept => "kept",
        };
        table.row([
            action.to_owned(),
            finding.subject.clone(),
            finding.reason.clone(),
        ]);
    }
    table.to_string()
}
