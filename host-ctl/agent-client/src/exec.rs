//! A process in the guest with its bytes on a raw stream.

use std::io;
use std::time::Duration;

use protobuf::MessageField;
use protocols::frame::MAX_PAYLOAD;
use protocols::text::escape_untrusted;
use protocols::wire::lifecycle as wire;
use protocols::{Frame, FrameReader, FrameWriter, Stream, port};
use tokio::io::{ReadHalf, WriteHalf};

use crate::call::{call, link_error};
use crate::client::AgentClient;
use crate::error::ClientError;
use crate::reply;

const CALL: &str = "Exec";

/// Longest text of the agent that is shown, characters.
const MAX_REASON: usize = 1024;

/// A process to be run.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ExecConfig {
    /// In which container; none is the guest itself.
    pub container_id: Option<String>,
    /// By which name; none lets the agent pick one.
    pub exec_id: Option<String>,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, in addition to the container's.
    pub env: Vec<String>,
    /// Working directory; none is the container's own.
    pub cwd: Option<String>,
    /// Whether it gets a terminal, of this many rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// As which uid and gid; none is the container's own user.
    pub user: Option<(u32, u32)>,
    /// Whether stdin will be sent; else the process reads /dev/null.
    pub stdin: bool,
}

/// Shows neither arguments nor environment.
impl std::fmt::Debug for ExecConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecConfig")
            .field("container_id", &self.container_id)
            .field("exec_id", &self.exec_id)
            .finish_non_exhaustive()
    }
}

/// The right to attach to a started process, once and soon.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecTicket {
    /// The name that was given or picked, escaped.
    pub exec_id: String,
    /// What the first frame of its stream must hold.
    pub token: Vec<u8>,
}

/// Does not show the token: it is a key.
impl std::fmt::Debug for ExecTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExecTicket({})", self.exec_id)
    }
}

/// What comes from a process.
#[derive(Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of its stdout, raw.
    Stdout(Vec<u8>),
    /// Bytes of its stderr, raw.
    Stderr(Vec<u8>),
    /// Its exit status as a shell counts it; nothing comes after.
    Exit(i32),
    /// Why there is no exit status, escaped; nothing comes after.
    Error(String),
}

/// Shows no output.
impl std::fmt::Debug for ExecEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout(data) => write!(f, "Stdout({} bytes)", data.len()),
            Self::Stderr(data) => write!(f, "Stderr({} bytes)", data.len()),
            Self::Exit(status) => write!(f, "Exit({status})"),
            Self::Error(reason) => write!(f, "Error({reason})"),
        }
    }
}

/// An attached process. Dropping it kills the process: an agent lets an
/// attached process live no longer than its stream.
#[derive(Debug)]
pub struct ExecStream {
    exec_id: String,
    output: ExecOutput,
    input: ExecInput,
}

/// The receiving half.
pub struct ExecOutput {
    reader: FrameReader<ReadHalf<Stream>>,
}

/// The sending half.
pub struct ExecInput {
    writer: FrameWriter<WriteHalf<Stream>>,
}

impl std::fmt::Debug for ExecOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecOutput")
    }
}

impl std::fmt::Debug for ExecInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecInput")
    }
}

impl AgentClient {
    /// Starts a process and attaches to it.
    ///
    /// # Errors
    /// Any [`ClientError`]. A command that cannot be executed is none: its
    /// stream ends with status 127 or 126.
    pub async fn exec(
        &self,
        config: &ExecConfig,
        deadline: Duration,
    ) -> Result<ExecStream, ClientError> {
        let end = tokio::time::Instant::now() + deadline;
        let ticket = self.start_exec(config, deadline).await?;
        tokio::time::timeout_at(end, self.attach(ticket, deadline))
            .await
            .unwrap_or(Err(ClientError::Deadline {
                call: CALL,
                after: deadline,
            }))
    }

    /// Starts a process; whoever has the ticket may attach to it. One that
    /// nobody attaches to is killed by the agent after a while.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn start_exec(
        &self,
        config: &ExecConfig,
        deadline: Duration,
    ) -> Result<ExecTicket, ClientError> {
        let (rows, columns) = config.terminal.unwrap_or_default();
        let user = config.user.map(|(uid, gid)| wire::ExecUser {
            uid,
            gid,
            ..Default::default()
        });
        let request = wire::ExecRequest {
            container_id: config.container_id.clone().unwrap_or_default(),
            exec_id: config.exec_id.clone().unwrap_or_default(),
            args: config.args.clone(),
            env: config.env.clone(),
            cwd: config.cwd.clone().unwrap_or_default(),
            terminal: config.terminal.is_some(),
            rows: rows.into(),
            columns: columns.into(),
            user: MessageField::from_option(user),
            stdin: config.stdin,
            ..Default::default()
        };
        let answer = call(CALL, deadline, |context| {
            self.lifecycle.exec(context, &request)
        })
        .await?;
        if !(1..=protocols::frame::MAX_TOKEN).contains(&answer.token.len()) {
            return Err(reply::malformed(CALL, "the token has no sensible length"));
        }
        Ok(ExecTicket {
            // Exec ids have up to 128 bytes.
            exec_id: reply::text(CALL, &answer.exec_id, 2 * reply::MAX_NAME)?,
            token: answer.token,
        })
    }

    /// Attaches to a started process.
    ///
    /// # Errors
    /// The stream could not be opened. A ticket that is not good any more is
    /// told as [`ExecEvent::Error`].
    pub async fn attach(
        &self,
        ticket: ExecTicket,
        deadline: Duration,
    ) -> Result<ExecStream, ClientError> {
        let stream = self
            .link
            .open(port::STREAM, deadline)
            .await
            .map_err(|error| link_error(CALL, error))?;
        let (reader, writer) = tokio::io::split(stream);
        let mut stream = ExecStream {
            exec_id: ticket.exec_id,
            output: ExecOutput {
                reader: FrameReader::new(reader),
            },
            input: ExecInput {
                writer: FrameWriter::new(writer),
            },
        };
        stream.input.send(&Frame::Token(ticket.token)).await?;
        Ok(stream)
    }
}

impl ExecStream {
    /// The name of the process.
    #[must_use]
    pub fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// See [`ExecOutput::next_event`].
    ///
    /// # Errors
    /// As there.
    pub async fn next_event(&mut self) -> Result<ExecEvent, ClientError> {
        self.output.next_event().await
    }

    /// See [`ExecInput::write_stdin`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        self.input.write_stdin(data).await
    }

    /// See [`ExecInput::close_stdin`].
    ///
    /// # Errors
    /// As there.
    pub async fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.input.close_stdin().await
    }

    /// See [`ExecInput::resize`].
    ///
    /// # Errors
    /// As there.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), ClientError> {
        self.input.resize(rows, columns).await
    }

    /// The two halves, for two tasks. The process lives until both are
    /// dropped.
    #[must_use]
    pub fn split(self) -> (ExecOutput, ExecInput) {
        (self.output, self.input)
    }
}

impl ExecOutput {
    /// What comes next. Waits as long as the process is silent and the
    /// connection stands; may be dropped at any point without losing bytes.
    ///
    /// # Errors
    /// `Dead` when the stream ends without an exit status, `Malformed` for
    /// anything an agent does not send.
    pub async fn next_event(&mut self) -> Result<ExecEvent, ClientError> {
        match self.reader.next().await {
            Ok(Some(Frame::Stdout(data))) => Ok(ExecEvent::Stdout(data)),
            Ok(Some(Frame::Stderr(data))) => Ok(ExecEvent::Stderr(data)),
            Ok(Some(Frame::Exit(status))) => Ok(ExecEvent::Exit(status)),
            Ok(Some(Frame::Error(reason))) => {
                Ok(ExecEvent::Error(escape_untrusted(&reason, MAX_REASON)))
            }
            Ok(Some(Frame::Token(_) | Frame::Stdin(_) | Frame::Resize { .. })) => {
                Err(reply::malformed(CALL, "a frame that only clients send"))
            }
            Ok(None) => Err(ClientError::Dead {
                call: CALL,
                reason: "the stream ended without an exit status".to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(reply::malformed(CALL, &error.to_string()))
            }
            Err(error) => Err(broken(&error)),
        }
    }
}

impl ExecInput {
    /// Sends bytes for stdin, waiting while the process does not read.
    ///
    /// # Errors
    /// `Dead` when the stream is broken, as after the end of the process.
    pub async fn write_stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        for part in data.chunks(MAX_PAYLOAD) {
            self.send(&Frame::Stdin(part.to_vec())).await?;
        }
        Ok(())
    }

    /// Ends stdin.
    ///
    /// # Errors
    /// `Dead` when the stream is broken.
    pub async fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.send(&Frame::Stdin(Vec::new())).await
    }

    /// Gives the terminal another size, in characters.
    ///
    /// # Errors
    /// `Dead` when the stream is broken.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), ClientError> {
        self.send(&Frame::Resize { rows, columns }).await
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), ClientError> {
        self.writer
            .write(frame)
            .await
            .map_err(|error| broken(&error))
    }
}

fn broken(error: &io::Error) -> ClientError {
    ClientError::Dead {
        call: CALL,
        reason: escape_untrusted(&error.to_string(), MAX_REASON),
    }
}
