//! When the workload answers: a command run in a sandbox until it succeeds.

use crate::config::SandboxId;
use crate::host::explain;
use crate::supervisor::client::Supervisors;
use crate::timeline::now;
use agent_client::{AgentClient, ClientError, ExecConfig, ExecEvent};
use protocols::{AgentAddress, Link};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long a workload may take to be ready.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a call to the agent may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The least time from one try to the next: a workload that refuses at once is
/// not kept busy with being asked.
const TRY_INTERVAL: Duration = Duration::from_millis(10);

/// What to run, where.
#[derive(Debug, Clone)]
pub(super) struct Readiness {
    pub(super) container: String,
    pub(super) args: Vec<String>,
}

impl Readiness {
    /// Runs the command until it succeeds, and gives that moment in nanoseconds
    /// of CLOCK_MONOTONIC; or says why it never did.
    pub(super) async fn wait(
        &self,
        supervisors: &Supervisors,
        sandbox: &SandboxId,
    ) -> Result<u64, String> {
        let end = Instant::now() + DEADLINE;
        let address = supervisors.agent(sandbox).await;
        let address = address.map_err(|error| explain(&error))?;
        let client = connect(&address).await?;
        loop {
            let next = Instant::now() + TRY_INTERVAL;
            match timeout_at(end, self.run(&client)).await {
                Ok(Ok(0)) => return Ok(now()),
                Ok(Ok(_)) if next < end => sleep_until(next).await,
                Ok(Err(error)) => return Err(explain(&error)),
                Ok(Ok(_)) | Err(_) => {
                    return Err(format!("the workload was not ready within {DEADLINE:?}"));
                }
            }
        }
    }

    async fn run(&self, client: &AgentClient) -> Result<i32, ClientError> {
        let config = ExecConfig {
            container_id: Some(self.container.clone()),
            args: self.args.clone(),
            ..ExecConfig::default()
        };
        let mut stream = client.exec(&config, CALL_DEADLINE).await?;
        loop {
            match stream.next_event().await? {
                ExecEvent::Exit(status) => return Ok(status),
                ExecEvent::Error(reason) => {
                    return Err(ClientError::Malformed {
                        call: "Exec",
                        reason,
                    });
                }
                ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => {}
            }
        }
    }
}

async fn connect(address: &AgentAddress) -> Result<AgentClient, String> {
    let link = Link::connect(address, CALL_DEADLINE).await;
    let link = link.map_err(|error| explain(&error))?;
    let client = AgentClient::connect(&link, CALL_DEADLINE).await;
    client.map_err(|error| explain(&error))
}
