//! The guest's console. Firecracker writes it to a file or a pipe; clients of
//! ours connect to a socket. In between is a task of the VM's owner.
//!
//! Firecracker opens the pipe itself, for reading too and without blocking, so
//! that neither a reader that is gone nor a full pipe stops it or the guest:
//! what does not fit is lost. The task reads at all times, and keeps the last
//! of what no client has taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::Error;
use crate::socket::Listener;

/// How much of what no client has taken is kept, in bytes.
const MOST_KEPT: usize = 64 << 10;
/// How much is read at once.
const READ_SIZE: usize = 4 << 10;
/// How long a client may take for the rest, after the VMM's end.
const REST_DEADLINE: Duration = Duration::from_secs(2);

/// A console nobody reads yet. Dropped, its socket is gone.
pub(super) struct Console {
    socket: Listener,
    clients: UnixListener,
    guest: Receiver,
}

impl Console {
    /// Binds the socket. The second is the end that the guest's output goes to.
    pub(super) fn bind(path: &Path) -> Result<(Self, OwnedFd), Error> {
        let socket = Listener::bind(path)?;
        let failed = |call| move |source| Error::Process { call, source };
        let clients = socket.descriptor.try_clone().and_then(|duplicate| {
            let clients = std::os::unix::net::UnixListener::from(duplicate);
            clients.set_nonblocking(true)?;
            UnixListener::from_std(clients)
        });
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::process("pipe"))?;
        let console = Self {
            clients: clients.map_err(failed("epoll_ctl console"))?,
            socket,
            guest: Receiver::from_owned_fd(ours).map_err(failed("epoll_ctl pipe"))?,
        };
        Ok((console, theirs))
    }

    /// Hands it to a task that ends with the VMM, or with the runtime.
    pub(super) fn keep(self) -> Relay {
        let (closed, closes) = watch::channel(());
        tokio::spawn(relay(self, closed));
        Relay { closes }
    }
}

/// The task of a console.
#[derive(Debug)]
pub(super) struct Relay {
    closes: watch::Receiver<()>,
}

impl Relay {
    /// Waits until the VMM has closed the console and the socket is gone.
    pub(super) async fn closed(&self) {
        // Nothing is ever sent: only the end is told.
        while self.closes.clone().changed().await.is_ok() {}
    }
}

async fn relay(console: Console, closed: watch::Sender<()>) {
    let Console {
        socket,
        clients,
        mut guest,
    } = console;
    let mut kept = Kept::default();
    let mut client = None;
    pump(&mut guest, &clients, &mut client, &mut kept).await;
    if client.is_none() {
        // It may have connected and not been accepted yet.
        client = timeout(Duration::ZERO, accept(&clients)).await.ok();
    }
    drop((socket, clients, closed));
    if let Some(mut client) = client {
        // A client that does not read gets no more.
        let _ = timeout(REST_DEADLINE, client.write_all(kept.0.make_contiguous())).await;
    }
}

/// Moves bytes until the guest's end is closed. Cancelling any of the waits
/// loses nothing: what was written is known at once.
async fn pump(
    guest: &mut (impl AsyncRead + Unpin),
    clients: &UnixListener,
    client: &mut Option<UnixStream>,
    kept: &mut Kept,
) {
    let mut read = [0; READ_SIZE];
    let mut ignored = [0; 256];
    loop {
        let stream = client.as_ref();
        let step = tokio::select! {
            length = guest.read(&mut read) => match length {
                Ok(length @ 1..) => Step::Heard(length),
                _ => return,
            },
            accepted = accept(clients), if stream.is_none() => Step::Came(accepted),
            sent = send(stream, kept.first()), if stream.is_some() && !kept.0.is_empty() => {
                sent.map_or(Step::Left, Step::Sent)
            }
            // Nothing reaches the guest from here: input is taken and dropped.
            taken = receive(stream, &mut ignored), if stream.is_some() => match taken {
                Ok(1..) => Step::Nothing,
                _ => Step::Left,
            },
        };
        match step {
            Step::Heard(length) => kept.add(&read[..length]),
            Step::Came(accepted) => *client = Some(accepted),
            Step::Sent(length) => drop(kept.0.drain(..length)),
            Step::Left => *client = None,
            Step::Nothing => {}
        }
    }
}

enum Step {
    Heard(usize),
    Came(UnixStream),
    Sent(usize),
    Left,
    Nothing,
}

async fn accept(clients: &UnixListener) -> UnixStream {
    match clients.accept().await {
        Ok((client, _)) => client,
        // Out of descriptors: tried again when the guest has said more.
        Err(_) => std::future::pending().await,
    }
}

async fn send(client: Option<&UnixStream>, bytes: &[u8]) -> io::Result<usize> {
    let client = client.ok_or(io::ErrorKind::NotConnected)?;
    loop {
        client.writable().await?;
        match client.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return written,
        }
    }
}

async fn receive(client: Option<&UnixStream>, bytes: &mut [u8]) -> io::Result<usize> {
    let client = client.ok_or(io::ErrorKind::NotConnected)?;
    loop {
        client.readable().await?;
        match client.try_read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// What no client has taken yet, the newest of it.
#[derive(Default)]
struct Kept(VecDeque<u8>);

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(MOST_KEPT);
        self.0.drain(..surplus);
    }

    fn first(&self) -> &[u8] {
        self.0.as_slices().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn console() -> (tempfile::TempDir, std::path::PathBuf, Relay, File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let (console, guest) = Console::bind(&path).unwrap();
        (directory, path, console.keep(), File::from(guest))
    }

    async fn hear(client: &mut UnixStream, words: &[u8]) {
        let mut heard = vec![0; words.len()];
        let read = timeout(PATIENCE, client.read_exact(&mut heard)).await;
        read.unwrap().unwrap();
        assert_eq!(heard, words);
    }

    #[tokio::test]
    async fn what_was_said_before_between_and_after_clients_is_heard() {
        let (_directory, path, relay, mut guest) = console();
        guest.write_all(b"first ").unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        hear(&mut client, b"first ").await;
        guest.write_all(b"second ").unwrap();
        hear(&mut client, b"second ").await;
        drop(client);
        let mut client = UnixStream::connect(&path).await.unwrap();
        guest.write_all(b"last").unwrap();
        drop(guest);
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, client.read_to_end(&mut rest)).await;
        read.unwrap().unwrap();
        assert_eq!(rest, b"last");
        timeout(PATIENCE, relay.closed()).await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_guest_that_never_stops_talking_waits_for_nobody_and_the_newest_is_kept() {
        let (_directory, path, relay, mut guest) = console();
        // A client that connects and does not read.
        let mut client = UnixStream::connect(&path).await.unwrap();
        let talking = tokio::task::spawn_blocking(move || {
            for line in 0..100_000 {
                guest.write_all(format!("{line:09}\n").as_bytes()).unwrap();
            }
        });
        timeout(PATIENCE, talking).await.unwrap().unwrap();
        timeout(PATIENCE, relay.closed()).await.unwrap();
        let mut heard = Vec::new();
        let read = timeout(PATIENCE, client.read_to_end(&mut heard)).await;
        read.unwrap().unwrap();
        assert!(heard.ends_with(b"000099999\n"));
        assert!(heard.len() < 1_000_000, "some was lost: {}", heard.len());
    }

    #[tokio::test]
    async fn a_console_that_is_dropped_leaves_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        drop(Console::bind(&path).unwrap());
        assert!(!path.exists());
    }
}
