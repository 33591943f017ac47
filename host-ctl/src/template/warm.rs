//! Commands in the container before the freeze: wait until it is ready, then
//! warm it.

use std::time::Duration;

use agent_client::{AgentClient, ClientError, ExecConfig, ExecEvent};
use protocols::text::escape_untrusted;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::BuildError;

/// How long the agent may take to start a command, emulation included.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Least time between the begins of two tries of a readiness command: a guest
/// that refuses at once is not kept busy with being asked.
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a command's output an error shows, in bytes.
const TAIL: usize = 2048;

/// How a command ended.
struct Ended {
    /// As a shell counts it; none when it had to be killed.
    status: Option<i32>,
    /// The last of what it said.
    output: Tail,
}

/// Runs a command in a container again and again until it succeeds.
pub(super) async fn until_ready(
    client: &AgentClient,
    container: &str,
    args: &[String],
    deadline: Duration,
) -> Result<(), BuildError> {
    let end = Instant::now() + deadline;
    loop {
        let next = Instant::now() + TRY_INTERVAL;
        let ended = run(client, container, args, end)
            .await
            .map_err(BuildError::agent("run the readiness command"))?;
        if ended.status == Some(0) {
            return Ok(());
        }
        if ended.status.is_none() || next >= end {
            return Err(BuildError::Slow {
                command: named("readiness command", args),
                deadline,
                output: ended.output.text(),
            });
        }
        sleep_until(next).await;
    }
}

/// Runs a command in a container, once; it must succeed.
pub(super) async fn warm(
    client: &AgentClient,
    container: &str,
    args: &[String],
    deadline: Duration,
) -> Result<(), BuildError> {
    let ended = run(client, container, args, Instant::now() + deadline)
        .await
        .map_err(BuildError::agent("run a warm command"))?;
    let command = named("warm command", args);
    let output = ended.output.text();
    match ended.status {
        Some(0) => Ok(()),
        Some(status) => Err(BuildError::Command {
            command,
            status,
            output,
        }),
        None => Err(BuildError::Slow {
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

/// The last bytes of an output of any length.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(TAIL);
        self.0.drain(..excess);
    }

    /// Fit for an error: escaped, and never empty.
    fn text(&self) -> String {
        match String::from_utf8_lossy(&self.0).trim_end() {
            "" => "(nothing)".to_owned(),
            text => escape_untrusted(text, TAIL),
        }
    }
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
    fn a_tail_is_the_bounded_end_of_an_output() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.add(&[b'x'; 1000]);
        }
        tail.add(b"the end\n");
        assert_eq!(tail.0.len(), TAIL);
        assert!(tail.text().ends_with("xthe end"), "{}", tail.text());
        assert_eq!(Tail::default().text(), "(nothing)");
    }

    #[test]
    fn a_command_is_named_without_its_arguments() {
        let args = ["redis-cli".to_owned(), "secret".to_owned()];
        assert_eq!(named("warm command", &args), "warm command redis-cli");
    }
}
