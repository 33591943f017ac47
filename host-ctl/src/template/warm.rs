//! Commands in the container before the freeze, and after a boot in place of a
//! clone: wait until it is ready, then warm it.

use std::time::Duration;

use agent_client::{AgentClient, ClientError, ExecConfig, ExecEvent};
use protocols::text::escape_untrusted;
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::host::Tail;
use crate::sandbox::spec::SandboxSpec;
use crate::store::SavedWarmUp;
use crate::timeline::Timeline;

/// How long the agent may take to start a command, emulation included.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Least time between the begins of two tries of a readiness command: a guest
/// that refuses at once is not kept busy with being asked.
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// All tries of the readiness command together.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// One warm command.
const WARM_DEADLINE: Duration = Duration::from_secs(300);

/// Why a sandbox did not get warm.
#[derive(Debug, Error)]
pub enum WarmUpError {
    /// The agent refused, failed or did not answer.
    #[error("{step}")]
    Agent {
        /// The step.
        step: &'static str,
        /// What the client said.
        #[source]
        source: ClientError,
    },
    /// A command in the container did not succeed.
    #[error("{command}: exit status {status}; its output ends with: {output}")]
    Command {
        /// Which command, by its role and first word.
        command: String,
        /// As a shell counts it.
        status: i32,
        /// The last of what it said, escaped.
        output: String,
    },
    /// A command in the container, or all its tries, took too long.
    #[error("{command}: no success within {deadline:?}; its output ends with: {output}")]
    Slow {
        /// Which command, by its role and first word.
        command: String,
        /// How long was waited.
        deadline: Duration,
        /// The last of what it said, escaped.
        output: String,
    },
    /// Whoever wanted the sandbox does no more.
    #[error("interrupted")]
    Interrupted,
}

/// Brings the first container of a sandbox that runs to where a template's is:
/// the readiness command until it succeeds, then each warm command once.
///
/// # Errors
/// The first command that did not succeed; the sandbox is left as it is.
pub async fn warm_up(
    commands: &SavedWarmUp,
    spec: &SandboxSpec,
    client: &AgentClient,
    timeline: &Timeline,
) -> Result<(), WarmUpError> {
    // Without a container there is nothing to run a command in.
    let Some(container) = spec.containers.first() else {
        return Ok(());
    };
    if let Some(args) = &commands.ready {
        let _span = timeline.step("warm up: readiness command");
        until_ready(client, &container.id, args, READY_DEADLINE).await?;
    }
    let _span = timeline.step("warm up: warm commands");
    for args in &commands.warm {
        warm(client, &container.id, args, WARM_DEADLINE).await?;
    }
    Ok(())
}

/// How a command ended.
struct Ended {
    /// As a shell counts it; none when it had to be killed.
    status: Option<i32>,
    /// The last of what it said.
    output: Tail,
}

/// Runs a command in a container again and again until it succeeds.
async fn until_ready(
    client: &AgentClient,
    container: &str,
    args: &[String],
    deadline: Duration,
) -> Result<(), WarmUpError> {
    let end = Instant::now() + deadline;
    loop {
        let next = Instant::now() + TRY_INTERVAL;
        let ended = run(client, container, args, end)
            .await
            .map_err(agent_failed("run the readiness command"))?;
        if ended.status == Some(0) {
            return Ok(());
        }
        if ended.status.is_none() || next >= end {
            return Err(WarmUpError::Slow {
                command: named("readiness command", args),
                deadline,
                output: ended.output.text(),
            });
        }
        sleep_until(next).await;
    }
}

/// Runs a command in a container, once; it must succeed.
async fn warm(
    client: &AgentClient,
    container: &str,
    args: &[String],
    deadline: Duration,
) -> Result<(), WarmUpError> {
    let ended = run(client, container, args, Instant::now() + deadline)
        .await
        .map_err(agent_failed("run a warm command"))?;
    let command = named("warm command", args);
    let output = ended.output.text();
    match ended.status {
        Some(0) => Ok(()),
        Some(status) => Err(WarmUpError::Command {
            command,
            status,
            output,
        }),
        None => Err(WarmUpError::Slow {
            command,
            deadline,
            output,
        }),
    }
}

/// Runs a command to its end, or until `end`: then it dies with the stream it
/// is attached to.
async fn run(
    client: &AgentClient,
    container: &str,
    args: &[String],
    end: Instant,
) -> Result<Ended, ClientError> {
    let config = ExecConfig {
        container_id: Some(container.to_owned()),
        args: args.to_vec(),
        ..ExecConfig::default()
    };
    let mut output = Tail::default();
    let watched = async {
        let mut stream = client.exec(&config, START_DEADLINE).await?;
        loop {
            match stream.next_event().await? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.add(&bytes),
                ExecEvent::Exit(status) => return Ok(status),
                ExecEvent::Error(reason) => {
                    return Err(ClientError::Dead {
                        call: "Exec",
                        reason,
                    });
                }
            }
        }
    };
    let status = timeout_at(end, watched).await.ok().transpose()?;
    Ok(Ended { status, output })
}

fn agent_failed(step: &'static str) -> impl FnOnce(ClientError) -> WarmUpError {
    move |source| WarmUpError::Agent { step, source }
}

/// A command as an error names it: its arguments may hold secrets.
fn named(role: &str, args: &[String]) -> String {
    let program = args.first().map_or("", String::as_str);
    format!("{role} {}", escape_untrusted(program, 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_named_without_its_arguments() {
        let args = ["redis-cli".to_owned(), "secret".to_owned()];
        assert_eq!(named("warm command", &args), "warm command redis-cli");
    }
}
