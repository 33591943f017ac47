//! The client itself: one ttrpc connection and the three services on it.

use std::fmt;
use std::time::Duration;

use protocols::wire::agent_ttrpc::{AgentServiceClient, HealthClient};
use protocols::wire::lifecycle_ttrpc::LifecycleClient;
use protocols::{Link, Opening, Stream, port};

use crate::call::link_error;
use crate::error::ClientError;

/// How errors name the opening of the RPC port.
const CONNECT: &str = "connect";

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
            .map_err(|error| link_error(CONNECT, error))?;
        Ok(Self::over(link, stream))
    }

    /// Opens the RPC port without waiting for it to be granted: calls can be
    /// made at once and go out together with the question, in one piece. Those
    /// of a client whose port is refused fail as dead; why, says the
    /// [`Connecting`]. Must be called inside a runtime.
    ///
    /// # Errors
    /// The link is dead.
    pub async fn connect_early(
        link: &Link,
        deadline: Duration,
    ) -> Result<(Self, Connecting), ClientError> {
        let (stream, opening) = link
            .open_early(port::RPC, deadline)
            .await
            .map_err(|error| link_error(CONNECT, error))?;
        Ok((Self::over(link, stream), Connecting(opening)))
    }

    fn over(link: &Link, stream: Stream) -> Self {
        let socket = ttrpc::r#async::transport::Socket::new(stream);
        let client = ttrpc::r#async::Client::new(socket);
        Self {
            link: link.clone(),
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            lifecycle: LifecycleClient::new(client),
        }
    }

    /// The link this client speaks over.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }
}

/// Whether the port of a client that is used already was granted.
#[derive(Debug)]
pub struct Connecting(Opening);

impl Connecting {
    /// Waits for the agent's word.
    ///
    /// # Errors
    /// The port was refused or not granted within `deadline`, or the link is
    /// dead.
    pub async fn granted(self, deadline: Duration) -> Result<(), ClientError> {
        let granted = self.0.granted(deadline).await;
        granted.map_err(|error| link_error(CONNECT, error))
    }
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient")
            .field("closed", &self.link.is_closed())
            .finish_non_exhaustive()
    }
}
