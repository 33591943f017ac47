//! The one connection to a sandbox's agent.
//!
//! The chardev behind it serves a single client, so one task owns it: it waits
//! until the peer has vanished and dials again at once. Everyone else takes the
//! link of the moment from a [`LinkHandle`], or waits there for the next one.

use protocols::{Destination, Link};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// How long one dial waits for the agent's answer. A paused VM gives none: the
/// dial is then simply made again.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// The least time from one dial to the next after a failure: an agent that
/// answers with garbage at once does not get all of our CPU. The first dial
/// after a loss waits for nothing.
const DIAL_INTERVAL: Duration = Duration::from_millis(250);

/// No agent within a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent did not answer within {0:?}")]
pub struct NoAgent(pub Duration);

/// Owns a sandbox's agent link. Dropping it ends the dialling.
#[derive(Debug)]
pub struct AgentLink {
    handle: LinkHandle,
    redials: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// A way to the link of the moment; cheap to clone.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    current: watch::Receiver<Option<Link>>,
}

impl AgentLink {
    /// Keeps up the link to `agent`, beginning with `first` if somebody has
    /// dialled already. Must be called inside a runtime.
    #[must_use]
    pub fn keep(agent: impl Into<Destination>, first: Option<Link>) -> Self {
        let (sender, current) = watch::channel(first);
        let redials = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(keep_up(agent.into(), sender, Arc::clone(&redials)));
        Self {
            handle: LinkHandle { current },
            redials,
            task,
        }
    }

    /// A way to the link for others.
    #[must_use]
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }

    /// Lets go of it: it is not dialled again when it ends. Gives the one of the
    /// moment.
    #[must_use]
    pub fn release(&self) -> Option<Link> {
        self.task.abort();
        self.handle.current()
    }

    /// How many times the link was lost.
    #[must_use]
    pub fn redials(&self) -> u64 {
        self.redials.load(Ordering::Relaxed)
    }
}

impl Drop for AgentLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LinkHandle {
    /// The link, if there is one at this moment.
    #[must_use]
    pub fn current(&self) -> Option<Link> {
        self.current
            .borrow()
            .clone()
            .filter(|link| !link.is_closed())
    }

    /// The link, as soon as there is one.
    ///
    /// # Errors
    /// [`NoAgent`] when there is none within `deadline`.
    pub async fn ready(&self, deadline: Duration) -> Result<Link, NoAgent> {
        let mut current = self.current.clone();
        let open = |link: &Option<Link>| link.as_ref().is_some_and(|link| !link.is_closed());
        let link = timeout(deadline, current.wait_for(open))
            .await
            // The owner is gone: there will be no link any more.
            .map_or(None, |found| found.ok().and_then(|link| link.clone()));
        link.ok_or(NoAgent(deadline))
    }
}

/// Keeps a link up until it is aborted.
async fn keep_up(agent: Destination, sender: watch::Sender<Option<Link>>, redials: Arc<AtomicU64>) {
    loop {
        let link = sender.borrow().clone();
        if let Some(link) = link {
            link.closed().await;
            redials.fetch_add(1, Ordering::Relaxed);
            sender.send_replace(None);
        }
        let link = dial(&agent).await;
        sender.send_replace(Some(link));
    }
}

/// Dials until somebody answers. Whatever the reason of a failure, it is the
/// VMM's exit that ends this, and the supervisor watches for that.
async fn dial(agent: &Destination) -> Link {
    loop {
        let begun = Instant::now();
        if let Ok(link) = Link::connect(agent, DIAL_DEADLINE).await {
            return link;
        }
        sleep_until(begun + DIAL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocols::AgentAddress;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const DEADLINE: Duration = Duration::from_secs(10);

    /// An agent at a Unix socket that grants every port and echoes.
    async fn serve(listener: tokio::net::UnixListener) {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let port = protocols::hybrid::read_request(&mut stream).await.unwrap();
                protocols::hybrid::grant(&mut stream, port).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            });
        }
    }

    fn bind(path: &Path) -> tokio::net::UnixListener {
        let _ = std::fs::remove_file(path);
        let listener = protocols::unix::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        tokio::net::UnixListener::from_std(listener).unwrap()
    }

    async fn echoes(link: &Link) {
        let mut stream = link.open(7, DEADLINE).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }

    #[test]
    fn a_lost_agent_is_dialled_again_and_nobody_else_notices() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        runtime.block_on(async {
            let first = tokio::spawn(serve(bind(&path)));
            let link = AgentLink::keep(AgentAddress::Unix { path: path.clone() }, None);
            let handle = link.handle();
            let one = handle.ready(DEADLINE).await.unwrap();
            echoes(&one).await;
            // The agent dies with all its connections.
            first.abort();
            let second = tokio::spawn(serve(bind(&path)));
            one.clone().close();
            one.closed().await;
            let two = handle.ready(DEADLINE).await.unwrap();
            echoes(&two).await;
            assert_eq!(link.redials(), 1);
            second.abort();
        });
    }

    #[test]
    fn no_agent_is_an_error_at_the_deadline() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let nowhere = AgentAddress::Unix {
                path: "/nonexistent/agent".into(),
            };
            let link = AgentLink::keep(nowhere, None);
            let deadline = Duration::from_millis(20);
            assert!(link.handle().current().is_none());
            assert_eq!(
                link.handle().ready(deadline).await.unwrap_err(),
                NoAgent(deadline)
            );
        });
    }
}
