//! `exec`: a command in a sandbox, its streams and exit status ours.

use super::arguments::ExecArguments;
use super::attach::{RawTerminal, attach, window_size};
use super::{CliError, Context, runtime};
use crate::config::SandboxId;
use crate::host::RecordError;
use crate::sandbox::record::SandboxRecord;
use crate::supervisor::client::ClientError;
use agent_client::{AgentClient, ExecConfig};
use protocols::Link;
use std::process::ExitCode;
use std::time::Duration;

/// How long the agent may take to start the command.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The size of a terminal nobody knows the size of.
const USUAL_SIZE: (u16, u16) = (24, 80);

pub(super) fn exec(context: &Context, arguments: ExecArguments) -> Result<ExitCode, CliError> {
    let sandbox = context.sandbox(&arguments.sandbox)?;
    let terminal = arguments.terminal;
    let config = ExecConfig {
        container_id: container(context, &sandbox, &arguments)?,
        args: arguments.command,
        env: arguments.env,
        cwd: arguments
            .cwd
            .map(|path| path.to_string_lossy().into_owned()),
        terminal: terminal.then(|| window_size().unwrap_or(USUAL_SIZE)),
        stdin: true,
        ..ExecConfig::default()
    };
    let runtime = runtime()?;
    let status = runtime.block_on(async {
        let address = context.supervisors.agent(&sandbox).await?;
        let link = Link::connect(&address, START_DEADLINE).await;
        let link = link.map_err(|source| CliError::Agent {
            call: "reach the agent",
            source: agent_client::ClientError::Open {
                call: "connect",
                source,
            },
        })?;
        let client = AgentClient::connect(&link, START_DEADLINE)
            .await
            .map_err(agent_failed("reach the agent"))?;
        let stream = client
            .exec(&config, START_DEADLINE)
            .await
            .map_err(agent_failed("start the command"))?;
        let _raw = if terminal {
            RawTerminal::enter()?
        } else {
            None
        };
        Ok::<_, CliError>(attach(stream, terminal).await?)
    });
    // A thread may still wait for stdin; it ends with the process.
    runtime.shutdown_background();
    // As a shell counts them they are below 256; nothing else is a success.
    Ok(ExitCode::from(u8::try_from(status?).unwrap_or(u8::MAX)))
}

/// The container meant; none for the guest itself.
fn container(
    context: &Context,
    sandbox: &SandboxId,
    arguments: &ExecArguments,
) -> Result<Option<String>, CliError> {
    if arguments.guest {
        return Ok(None);
    }
    if let Some(container) = &arguments.container {
        return Ok(Some(container.clone()));
    }
    let record = match SandboxRecord::read(context.paths(), sandbox) {
        Err(RecordError::Missing(_)) => return Err(ClientError::Unknown(sandbox.clone()).into()),
        record => record?,
    };
    match record.spec.containers.first() {
        Some(container) => Ok(Some(container.id.clone())),
        None => Err(CliError::Missing {
            what: format!("sandbox {sandbox} has no container"),
            hint: "give --guest to run the command in the guest itself",
        }),
    }
}

fn agent_failed(call: &'static str) -> impl FnOnce(agent_client::ClientError) -> CliError {
    move |source| CliError::Agent { call, source }
}
