//! The client itself: one ttrpc connection and the three services on it.

use std::fmt;
use std::time::Duration;

use protocols::wire::agent_ttrpc::{AgentServiceClient, HealthClient};
use protocols::wire::lifecycle_ttrpc::LifecycleClient;
use protocols::{Link, port};

use crate::call::link_error;
use crate::error::ClientError;

/// Speaks to one agent. A cheap clone speaks on the same connection; calls of
/// all clones run side by side. When an error says that the connection is
/// dead, connect again.
#[derive(Clone)]
pub struct AgentClient {
    pub(crate) link: Link,
    pub(crate) agent: AgentServiceClient,
    pub(crate) health: HealthClient,
    pub(crate) lifecycle: LifecycleClient,
}

impl AgentClient {
    /// Opens the RPC port of the agent at the other end of `link`. The
    /// agent's first answer is not waited for: see [`check`](Self::check).
    /// Must be called inside a runtime, whose tasks carry the connection.
    ///
    /// # Errors
    /// The link is dead, or the port was not opened within `deadline`.
    pub async fn connect(link: &Link, deadline: Duration) -> Result<Self, ClientError> {
        let stream = link
            .open(port::RPC, deadline)
            .await
            .map_err(|error| link_error("connect", error))?;
        let socket = ttrpc::r#async::transport::Socket::new(stream);
        let client = ttrpc::r#async::Client::new(socket);
        Ok(Self {
            link: link.clone(),
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            lifecycle: LifecycleClient::new(client),
        })
    }

    /// The link this client speaks over.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient")
            .field("closed", &self.link.is_closed())
            .finish_non_exhaustive()
    }
}
