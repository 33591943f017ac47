//! Joins this process's standard streams to a process in the guest: stdin and
//! window size go in, stdout, stderr and the exit status come out.

use agent_client::{ClientError, ExecEvent, ExecInput, ExecOutput, ExecStream};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Bytes of stdin sent in one frame.
const CHUNK: usize = 32 * 1024;
/// Pieces of stdin read ahead of the guest.
const READ_AHEAD: usize = 2;

/// Why a joined process gave no exit status.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The agent has gone, and the VM most likely with it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The agent gave up.
    #[error("the agent: {0}")]
    Agent(String),
    /// Our own stdout or stderr cannot be written.
    #[error("write {stream}")]
    Output {
        /// Which.
        stream: &'static str,
        /// What write(2) said.
        #[source]
        source: io::Error,
    },
    /// Our terminal cannot be set.
    #[error("set the terminal")]
    Terminal(#[source] io::Error),
}

/// Puts the terminal into raw mode until dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Raw mode for the terminal at stdin; none if there is no terminal.
    ///
    /// # Errors
    /// What tcgetattr(3) and tcsetattr(3) say.
    pub fn enter() -> Result<Option<Self>, AttachError> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let failed = |error: rustix::io::Errno| AttachError::Terminal(error.into());
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that hung up needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal at stdout in rows and columns, if there is one.
#[must_use]
pub fn window_size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Joins our standard streams to a process until it ends. Gives its exit status
/// as a shell counts it.
///
/// # Errors
/// Any [`AttachError`]; what the process wrote until then was passed on.
pub async fn attach(stream: ExecStream, terminal: bool) -> Result<i32, AttachError> {
    let (output, input) = stream.split();
    tokio::select! {
        status = receive(output) => status,
        failed = send(input, read_stdin(), terminal) => Err(failed),
    }
}

/// Guest to us, until the exit status.
async fn receive(mut output: ExecOutput) -> Result<i32, AttachError> {
    loop {
        match output.next_event().await? {
            ExecEvent::Stdout(data) => write_out("stdout", &mut io::stdout().lock(), &data)?,
            ExecEvent::Stderr(data) => write_out("stderr", &mut io::stderr().lock(), &data)?,
            ExecEvent::Exit(status) => return Ok(status),
            ExecEvent::Error(reason) => return Err(AttachError::Agent(reason)),
        }
    }
}

fn write_out(stream: &'static str, out: &mut impl Write, data: &[u8]) -> Result<(), AttachError> {
    out.write_all(data)
        .and_then(|()| out.flush())
        .map_err(|source| AttachError::Output { stream, source })
}

/// Us to guest; never ends by itself. That the guest does not listen any more
/// is told by the other direction, with the exit status if there is one.
async fn send(
    mut input: ExecInput,
    mut stdin: mpsc::Receiver<Vec<u8>>,
    terminal: bool,
) -> AttachError {
    let mut resized = match signal(SignalKind::window_change()) {
        Ok(resized) => resized,
        Err(error) => return AttachError::Terminal(error),
    };
    let mut open = true;
    loop {
        let sent = tokio::select! {
            data = stdin.recv(), if open => match data {
                Some(data) => input.write_stdin(&data).await,
                None => {
                    open = false;
                    input.close_stdin().await
                }
            },
            _ = resized.recv(), if terminal => match window_size() {
                Some((rows, columns)) => input.resize(rows, columns).await,
                None => Ok(()),
            },
            else => std::future::pending().await,
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads stdin on a thread of its own: a read of a terminal or a pipe blocks,
/// and the thread ends with the process.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            match stdin.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if sender.blocking_send(chunk[..count].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}
