//! Raw streams: Exec answers with a single-use token, the bytes then flow over
//! a stream of the transport, whose own back-pressure bounds them.

use super::Agent;
use super::error::{ServiceError, with_causes};
use super::identity::{random_bytes, random_hex};
use super::process::{Output, ProcessEntry};
use authz::Authorized;
use guest_runtime::container::{ExecError, ProcessSpec};
use guest_runtime::process::WindowSize;
use guest_runtime::{ContainerId, ExecId};
use protocols::Stream;
use protocols::frame::{Frame, FrameReader, FrameWriter};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// How long a token waits for its stream, and a new stream for its token.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);
/// Output read at once; with the frame's head below the frame limit.
const CHUNK: usize = 32 * 1024;
const SIGKILL: i32 = 9;

/// A process to run, with its bytes on a raw stream.
#[derive(Debug)]
pub(crate) struct ExecStream {
    /// `None`: in the guest itself.
    pub(crate) container: Option<ContainerId>,
    pub(crate) exec: Option<ExecId>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<std::path::PathBuf>,
    pub(crate) terminal: bool,
    pub(crate) size: Option<WindowSize>,
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) stdin: bool,
}

/// A single-use token: 16 bytes of getrandom(2).
type Token = [u8; 16];

/// What a token stands for.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// A process that runs already.
    Process(Arc<ProcessEntry>, Forget),
    /// A command that could not be executed: the shell's exit status for it,
    /// and why.
    Unexecutable { status: i32, reason: String },
}

/// Takes an exec out of its container's table when its stream is over.
#[derive(Debug)]
pub(crate) struct Forget(Option<(Arc<super::container::Container>, ExecId)>);

impl Drop for Forget {
    fn drop(&mut self) {
        if let Some((container, exec)) = self.0.take() {
            container.processes.release(&exec);
        }
    }
}

/// Tokens that wait for their streams.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    waiting: Mutex<HashMap<Token, Attachment>>,
}

impl Tokens {
    fn waiting(&self) -> MutexGuard<'_, HashMap<Token, Attachment>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `attachment` until its stream comes; a process nobody comes for
    /// is killed.
    fn issue(self: &Arc<Self>, attachment: Attachment) -> Result<Token, ServiceError> {
        let token = random_bytes().map_err(ServiceError::system("getrandom"))?;
        self.waiting().insert(token, attachment);
        let tokens = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(ATTACH_DEADLINE).await;
            if let Some(Attachment::Process(entry, _)) = tokens.take(&token) {
                // It may have ended by itself meanwhile.
                let _ = entry.process.signal(SIGKILL);
            }
        });
        Ok(token)
    }

    /// Forgets all tokens; the processes behind them are killed.
    pub(crate) fn revoke_all(&self) {
        for (_, attachment) in std::mem::take(&mut *self.waiting()) {
            if let Attachment::Process(entry, _) = attachment {
                // It may have ended by itself meanwhile.
                let _ = entry.process.signal(SIGKILL);
            }
        }
    }

    fn take(&self, token: &Token) -> Option<Attachment> {
        self.waiting().remove(token)
    }
}

impl Agent {
    /// Starts a process and gives the token of its stream. A command that
    /// cannot be executed is no error of the call: its stream ends at once,
    /// with the exit status a shell gives it (127 not found, 126 not
    /// executable).
    pub(crate) async fn exec_stream(
        self: &Arc<Self>,
        request: Authorized<ExecStream>,
    ) -> Result<(Token, ExecId), ServiceError> {
        self.lifecycle.require_running("exec")?;
        let request = request.into_inner();
        let exec = match &request.exec {
            Some(exec) => exec.clone(),
            None => random_exec_id()?,
        };
        let agent = Arc::clone(self);
        // Process and token are one recipe: a process always has somebody who
        // will end it, the stream or the token's deadline.
        self.recipes
            .run(async move {
                let attachment = match agent.start_exec(&exec, request).await {
                    Ok(attachment) => attachment,
                    Err(ServiceError::Exec { source, .. }) if source.exit_status().is_some() => {
                        Attachment::Unexecutable {
                            status: source.exit_status().unwrap_or(EXIT_NOT_FOUND),
                            reason: explain(&source),
                        }
                    }
                    Err(error) => return Err(error),
                };
                Ok((agent.tokens.issue(attachment)?, exec))
            })
            .await
    }

    async fn start_exec(
        &self,
        exec: &ExecId,
        request: ExecStream,
    ) -> Result<Attachment, ServiceError> {
        let stdin = request.stdin;
        let Some(id) = &request.container else {
            self.require_guest("exec in the guest")?;
            let process = process_spec(None, request);
            let started = self
                .launcher()?
                .exec_in_guest(&process, stdin)
                .await
                .map_err(|source| ServiceError::Exec {
                    exec: exec.clone(),
                    source,
                })?;
            let entry = ProcessEntry::new(started.process, started.stdio);
            return Ok(Attachment::Process(entry, Forget(None)));
        };
        let container = self.registry.get(id)?;
        let process = process_spec(Some(&container.spec.process), request);
        let entry = self
            .exec_in(&container, exec.clone(), process, stdin)
            .await?;
        Ok(Attachment::Process(
            entry,
            Forget(Some((container, exec.clone()))),
        ))
    }

    /// Serves one stream of the stream port: its token, then its bytes. What
    /// goes wrong on it concerns nobody else.
    pub(crate) async fn attach(&self, stream: Stream) -> std::io::Result<()> {
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = FrameReader::new(reader);
        let mut writer = FrameWriter::new(writer);
        let first = tokio::time::timeout(ATTACH_DEADLINE, reader.next()).await??;
        let token = match first {
            Some(Frame::Token(token)) => Token::try_from(token.as_ref()).ok(),
            _ => None,
        };
        match token.and_then(|token| self.tokens.take(&token)) {
            None => {
                let reason = "no such token".to_owned();
                writer.write(&Frame::Error(reason)).await
            }
            Some(Attachment::Unexecutable { status, reason }) => {
                writer.write(&Frame::Stderr(reason.into())).await?;
                writer.write(&Frame::Exit(status)).await
            }
            Some(Attachment::Process(entry, _forget)) => {
                let outcome = pump(&entry, reader, &mut writer).await;
                // An attached process lives no longer than its stream; one that
                // has ended ignores the signal.
                let _ = entry.process.signal(SIGKILL);
                outcome
            }
        }
    }
}

const EXIT_NOT_FOUND: i32 = 127;

fn random_exec_id() -> Result<ExecId, ServiceError> {
    let id = random_hex().map_err(ServiceError::system("getrandom"))?;
    id.parse().map_err(|error| ServiceError::System {
        call: "name an exec",
        source: std::io::Error::other(error),
    })
}

/// The container's own process with another command; outside a container,
/// root without a controlling environment.
fn process_spec(container: Option<&ProcessSpec>, request: ExecStream) -> ProcessSpec {
    let mut process = container.cloned().unwrap_or_else(ProcessSpec::guest_root);
    process.args = request.args;
    process.env.extend(request.env);
    process.terminal = request.terminal;
    process.console_size = request.size;
    if let Some(cwd) = request.cwd {
        process.cwd = cwd;
    }
    if let Some((uid, gid)) = request.user {
        process.user.uid = uid;
        process.user.gid = gid;
        process.user.additional_gids.clear();
    }
    process
}

fn explain(error: &ExecError) -> String {
    format!("exec: {}\n", with_causes(error))
}

/// Moves bytes until the process has ended and its output is drained, or the
/// peer is gone.
async fn pump<R, W>(
    entry: &ProcessEntry,
    reader: FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    tokio::select! {
        // Biased: a peer that is gone ends it even while output flows.
        biased;
        gone = receive(entry, reader) => gone,
        sent = send(entry, writer) => sent,
    }
}

/// Client to process; returns only when the peer is gone.
async fn receive<R>(entry: &ProcessEntry, mut reader: FrameReader<R>) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let mut ahead = None;
    loop {
        let frame = match ahead.take() {
            Some(frame) => frame,
            None => match reader.next().await? {
                Some(frame) => frame,
                None => return Ok(()),
            },
        };
        match frame {
            Frame::Stdin(data) => ahead = pass_stdin(entry, &data, &mut reader).await?,
            Frame::Resize { rows, columns } => {
                if let Some(terminal) = &entry.stdio.terminal {
                    // A terminal that is gone needs no size.
                    let _ = terminal.resize(WindowSize { rows, columns });
                }
            }
            _ => {}
        }
    }
}

/// Writes to the process. While it does not read, one frame more is waited
/// for: that is how a peer that goes away is noticed meanwhile.
async fn pass_stdin<R>(
    entry: &ProcessEntry,
    data: &[u8],
    reader: &mut FrameReader<R>,
) -> std::io::Result<Option<Frame>>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let Some(stdin) = entry.stdio.stdin.as_ref() else {
        return Ok(None);
    };
    if data.is_empty() {
        stdin.close();
        return Ok(None);
    }
    let write = stdin.write_all(data);
    tokio::pin!(write);
    let (written, ahead) = tokio::select! {
        written = &mut write => (written, None),
        next = reader.next() => {
            let next = next?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
            (write.await, Some(next))
        }
    };
    if written.is_err() {
        // The process closed its stdin; what else comes is lost, as in a pipe.
        stdin.close();
    }
    Ok(ahead)
}

/// Process to client: both outputs to their ends, then the exit status.
async fn send<W>(entry: &ProcessEntry, writer: &mut FrameWriter<W>) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let (mut stdout_open, mut stderr_open) = (true, true);
    while stdout_open || stderr_open {
        tokio::select! {
            data = entry.read(Output::Stdout, CHUNK), if stdout_open => {
                let data = data?;
                stdout_open = !data.is_empty();
                if stdout_open {
                    writer.write(&Frame::Stdout(data)).await?;
                }
            }
            data = entry.read(Output::Stderr, CHUNK), if stderr_open => {
                let data = data?;
                stderr_open = !data.is_empty();
                if stderr_open {
                    writer.write(&Frame::Stderr(data)).await?;
                }
            }
        }
    }
    let status = entry.process.wait().await;
    writer.write(&Frame::Exit(status.code())).await
}
