//! Calls about the sandbox as a whole, and about the agent itself.

use std::time::Duration;

use protocols::wire::agent;
use protocols::wire::agent::health_check_response::ServingStatus;
use serde::Serialize;

use crate::call::call;
use crate::client::AgentClient;
use crate::error::ClientError;
use crate::reply::{self, MAX_NAME};

/// What a sandbox is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Hostname of containers that have none of their own.
    pub hostname: String,
    /// Lines of resolv.conf(5).
    pub dns: Vec<String>,
    /// The sandbox's own id.
    pub sandbox_id: String,
}

/// What an agent says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentVersion {
    /// Of the API.
    pub api: String,
    /// Of the agent.
    pub agent: String,
}

/// What an agent says of its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestDetails {
    /// The agent's version.
    pub agent_version: String,
    /// Whether the agent is the guest's first process.
    pub init_daemon: bool,
    /// Storage drivers it knows.
    pub storage_drivers: Vec<String>,
    /// Features it names.
    pub extra_features: Vec<String>,
}

impl AgentClient {
    /// Asks whether the agent serves.
    ///
    /// # Errors
    /// It does not, or any [`ClientError`].
    pub async fn check(&self, deadline: Duration) -> Result<(), ClientError> {
        const CALL: &str = "Health.Check";
        let request = agent::CheckRequest::new();
        let answer = call(CALL, deadline, |context| {
            self.health.check(context, &request)
        })
        .await?;
        if answer.status == ServingStatus::SERVING.into() {
            Ok(())
        } else {
            Err(reply::malformed(
                CALL,
                "the agent says that it does not serve",
            ))
        }
    }

    /// Asks for the agent's version.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn version(&self, deadline: Duration) -> Result<AgentVersion, ClientError> {
        const CALL: &str = "Health.Version";
        let request = agent::CheckRequest::new();
        let answer = call(CALL, deadline, |context| {
            self.health.version(context, &request)
        })
        .await?;
        Ok(AgentVersion {
            api: reply::text(CALL, &answer.grpc_version, MAX_NAME)?,
            agent: reply::text(CALL, &answer.agent_version, MAX_NAME)?,
        })
    }

    /// Asks what the guest and its agent can do.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn guest_details(&self, deadline: Duration) -> Result<GuestDetails, ClientError> {
        const CALL: &str = "GetGuestDetails";
        let request = agent::GuestDetailsRequest::new();
        let answer = call(CALL, deadline, |context| {
            self.agent.get_guest_details(context, &request)
        })
        .await?;
        let details = answer.agent_details.unwrap_or_default();
        Ok(GuestDetails {
            agent_version: reply::text(CALL, &details.version, MAX_NAME)?,
            init_daemon: details.init_daemon,
            storage_drivers: reply::texts(CALL, details.storage_handlers, MAX_NAME)?,
            extra_features: reply::texts(CALL, details.extra_features, MAX_NAME)?,
        })
    }

    /// Sets the sandbox up; before any container.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_sandbox(
        &self,
        config: &SandboxConfig,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::CreateSandboxRequest {
            hostname: config.hostname.clone(),
            dns: config.dns.clone(),
            sandbox_id: config.sandbox_id.clone(),
            ..Default::default()
        };
        call("CreateSandbox", deadline, |context| {
            self.agent.create_sandbox(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Ends all containers and, in a VM, powers it off. The answer may be lost
    /// with the connection.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn destroy_sandbox(&self, deadline: Duration) -> Result<(), ClientError> {
        let request = agent::DestroySandboxRequest::new();
        call("DestroySandbox", deadline, |context| {
            self.agent.destroy_sandbox(context, &request)
        })
        .await?;
        Ok(())
    }
}
