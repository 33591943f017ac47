//! What a sandbox's containers say, each into a ring of bounded size. Nobody
//! waits for it: what goes wrong here ends itself and nothing else.

use crate::config::SandboxPaths;
use crate::host::Ring;
use crate::sandbox::link::LinkHandle;
use agent_client::{AgentClient, ClientError, ProcessName};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a container's output asked for at once.
const READ_LIMIT: u32 = 32 * 1024;
/// How long a link, or a reader's connection on it, may take to appear.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// How long one read may wait for a silent container before it is asked again.
const READ_DEADLINE: Duration = Duration::from_secs(3600);

/// Where a container's output is kept.
#[must_use]
pub fn container_log(paths: &SandboxPaths, container: &str) -> PathBuf {
    paths.directory().join(format!("container-{container}.log"))
}

/// Copies the output of a container's init process into its ring until it
/// ends, over whatever link there is at the moment.
pub(super) async fn keep_container(links: LinkHandle, container: String, log: PathBuf) {
    let Ok(mut ring) = Ring::open(&log, Ring::HALF) else {
        return;
    };
    let mut open = Open {
        stdout: true,
        stderr: true,
    };
    while open.stdout || open.stderr {
        let Ok(link) = links.ready(CONNECT_DEADLINE).await else {
            // A paused VM has no link; one that is gone ends this task.
            continue;
        };
        let read = match AgentClient::connect(&link, CONNECT_DEADLINE).await {
            Ok(client) => read_on(&client, &container, &mut ring, &mut open).await,
            Err(error) => Err(error),
        };
        match read {
            Err(error) if error.is_dead() => link.closed().await,
            Err(ClientError::Deadline { .. }) | Ok(()) => {}
            // No such container, or not allowed: asking again changes nothing.
            Err(_) => return,
        }
    }
}

/// Which outputs have not ended yet.
struct Open {
    stdout: bool,
    stderr: bool,
}

/// Reads both outputs until they end or something fails.
async fn read_on(
    client: &AgentClient,
    container: &str,
    ring: &mut Ring,
    open: &mut Open,
) -> Result<(), ClientError> {
    let process = || ProcessName::init(container);
    // Each read goes on while the other output is written down: a read that is
    // given up may take bytes with it.
    let stdout = || client.read_stdout(process(), READ_LIMIT, READ_DEADLINE);
    let stderr = || client.read_stderr(process(), READ_LIMIT, READ_DEADLINE);
    let (mut out, mut err) = (Box::pin(stdout()), Box::pin(stderr()));
    while open.stdout || open.stderr {
        tokio::select! {
            data = &mut out, if open.stdout => {
                open.stdout = keep(&data?, ring);
                out.set(stdout());
            }
            data = &mut err, if open.stderr => {
                open.stderr = keep(&data?, ring);
                err.set(stderr());
            }
        }
    }
    Ok(())
}

/// Writes bytes down; none are the end.
fn keep(data: &[u8], ring: &mut Ring) -> bool {
    // A full disk loses output, and does not stop a container that writes.
    let _ = ring.write_all(data);
    !data.is_empty()
}
