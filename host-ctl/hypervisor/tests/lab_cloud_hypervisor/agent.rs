//! Asking the agent in a guest whether it is well, over hybrid vsock: one call
//! of ttrpc (github.com/containerd/ttrpc, PROTOCOL.md), written by hand, since
//! this package knows nothing of the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// The agent's port.
const PORT: u32 = 1024;
/// How long a guest may take to boot: emulated twice, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long an agent that listens may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Returns once the agent has answered `Health.Check`.
pub(crate) async fn answers(socket: &Path) {
    let begun = Instant::now();
    while let Err(error) = timeout(ANSWER, health(socket))
        .await
        .unwrap_or_else(|_| Err("late".into()))
    {
        assert!(
            begun.elapsed() < PATIENCE,
            "the agent at {socket:?}: {error}"
        );
        // Nobody tells when a port is opened; the VMM hangs up until then.
        sleep(Duration::from_millis(50)).await;
    }
}

async fn health(socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    stream
        .write_all(format!("CONNECT {PORT}\n").as_bytes())
        .await?;
    let mut line = String::new();
    (&mut stream).take(32).read_line(&mut line).await?;
    if !line.starts_with("OK ") {
        return Err(format!("the vmm says {line:?}").into());
    }
    let request = [field(1, b"grpc.Health"), field(2, b"Check")].concat();
    let mut frame = u32::try_from(request.len())?.to_be_bytes().to_vec();
    // Stream 1, a request, no flags.
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(request);
    stream.write_all(&frame).await?;
    let mut head = [0; 10];
    stream.read_exact(&mut head).await?;
    // Stream 1, a response.
    if head[4..9] != [0, 0, 0, 1, 2] {
        return Err(format!("no response: {head:?}").into());
    }
    let [a, b, c, d, ..] = head;
    let mut response = vec![0; usize::try_from(u32::from_be_bytes([a, b, c, d]))?.min(4096)];
    stream.read_exact(&mut response).await?;
    // A status (field 1) is only there with an error in it, or an empty one.
    match response.as_slice() {
        [0x0a, length, code, ..] if *length > 0 && *code == 0x08 => {
            let words = String::from_utf8_lossy(&response);
            Err(format!("the agent refuses: {words:?}").into())
        }
        _ => Ok(()),
    }
}

/// A field of protobuf with up to 127 bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    [&[number << 3 | 2, length], bytes].concat()
}
