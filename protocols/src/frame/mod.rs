//! The frames of a raw stream: one byte of kind, four of length (big-endian),
//! then the payload, at most [`MAX_PAYLOAD`] bytes of it.
//!
//! Back-pressure is the stream's own. A length is checked before anything is
//! allocated for it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest payload of a frame, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Longest token, bytes.
pub const MAX_TOKEN: usize = 256;

/// Longest error text, bytes.
pub const MAX_ERROR_TEXT: usize = 4 * 1024;

const HEADER: usize = 5;

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first frame, client to agent: which call this stream belongs to.
    Token(Vec<u8>),
    /// Client to agent; an empty payload is the end of stdin.
    Stdin(Vec<u8>),
    /// Agent to client.
    Stdout(Vec<u8>),
    /// Agent to client.
    Stderr(Vec<u8>),
    /// Client to agent: the size of the terminal, in characters.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Agent to client, the last frame: exit status as a shell counts it,
    /// 128 + signal for a death by signal.
    Exit(i32),
    /// Agent to client, the last frame: why there is no exit status. At most
    /// [`MAX_ERROR_TEXT`] bytes; the writer cuts what is longer.
    Error(String),
}

/// Shows kinds and lengths only: payloads are secrets and tokens are keys.
impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(payload) => write!(f, "Token({} bytes)", payload.len()),
            Self::Stdin(payload) => write!(f, "Stdin({} bytes)", payload.len()),
            Self::Stdout(payload) => write!(f, "Stdout({} bytes)", payload.len()),
            Self::Stderr(payload) => write!(f, "Stderr({} bytes)", payload.len()),
            Self::Resize { rows, columns } => write!(f, "Resize({rows} x {columns})"),
            Self::Exit(status) => write!(f, "Exit({status})"),
            Self::Error(text) => write!(f, "Error({} bytes)", text.len()),
        }
    }
}

/// Why bytes are no frame, or a frame cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No kind has this number.
    #[error("frame of unknown kind {kind}")]
    Kind {
        /// The first byte.
        kind: u8,
    },
    /// The kind does not have payloads of this length.
    #[error("frame of kind {kind} with {length} bytes of payload")]
    Length {
        /// The first byte.
        kind: u8,
        /// The length announced or given, bytes.
        length: usize,
    },
    /// An error text that is not UTF-8.
    #[error("error frame that is not utf-8")]
    Text,
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Torn,
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        let kind = match error {
            FrameError::Torn => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Whether a frame of this kind may have that length; asked before allocating.
fn check_length(kind: u8, length: usize) -> Result<(), FrameError> {
    let fits = match kind {
        0 => (1..=MAX_TOKEN).contains(&length),
        1..=3 => length <= MAX_PAYLOAD,
        4 | 5 => length == 4,
        6 => length <= MAX_ERROR_TEXT,
        _ => return Err(FrameError::Kind { kind }),
    };
    if fits {
        Ok(())
    } else {
        Err(FrameError::Length { kind, length })
    }
}

/// Appends the bytes of `frame` to `out`.
///
/// # Errors
/// [`FrameError::Length`] for a payload that its kind does not allow.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut append = |kind: u8, payload: &[u8]| {
        check_length(kind, payload.len())?;
        let length = u32::try_from(payload.len()).map_err(|_| FrameError::Length {
            kind,
            length: payload.len(),
        })?;
        out.reserve(HEADER + payload.len());
        out.push(kind);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(payload);
        Ok(())
    };
    match frame {
        Frame::Token(payload) => append(0, payload),
        Frame::Stdin(payload) => append(1, payload),
        Frame::Stdout(payload) => append(2, payload),
        Frame::Stderr(payload) => append(3, payload),
        Frame::Resize { rows, columns } => {
            let [a, b] = rows.to_be_bytes();
            let [c, d] = columns.to_be_bytes();
            append(4, &[a, b, c, d])
        }
        Frame::Exit(status) => append(5, &status.to_be_bytes()),
        Frame::Error(text) => append(
            6,
            &text.as_bytes()[..text.floor_char_boundary(MAX_ERROR_TEXT)],
        ),
    }
}

fn decode(kind: u8, payload: Vec<u8>) -> Result<Frame, FrameError> {
    check_length(kind, payload.len())?;
    Ok(match (kind, payload.as_slice()) {
        (0, _) => Frame::Token(payload),
        (1, _) => Frame::Stdin(payload),
        (2, _) => Frame::Stdout(payload),
        (3, _) => Frame::Stderr(payload),
        (4, &[a, b, c, d]) => Frame::Resize {
            rows: u16::from_be_bytes([a, b]),
            columns: u16::from_be_bytes([c, d]),
        },
        (5, &[a, b, c, d]) => Frame::Exit(i32::from_be_bytes([a, b, c, d])),
        (6, _) => Frame::Error(String::from_utf8(payload).map_err(|_| FrameError::Text)?),
        _ => return Err(FrameError::Kind { kind }),
    })
}

/// Reads frames. [`next`](Self::next) may be dropped at any point, as select
/// does: what was read so far stays for the next call.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    header: [u8; HEADER],
    payload: Vec<u8>,
    /// Bytes of header and payload read so far.
    filled: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of `reader`, from its present place on.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            header: [0; HEADER],
            payload: Vec::new(),
            filled: 0,
        }
    }

    /// The next frame, or none at the end of the stream.
    ///
    /// # Errors
    /// What the stream says, or a [`FrameError`] as `InvalidData`
    /// (`UnexpectedEof` for a torn frame). Nothing can be read after one.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        while self.filled < HEADER {
            let read = self.reader.read(&mut self.header[self.filled..]).await?;
            if read == 0 {
                return if self.filled == 0 {
                    Ok(None)
                } else {
                    Err(FrameError::Torn.into())
                };
            }
            self.filled += read;
            if self.filled == HEADER {
                let length = self.announced();
                check_length(self.header[0], length)?;
                self.payload = vec![0; length];
            }
        }
        let whole = HEADER + self.announced();
        while self.filled < whole {
            let read = self
                .reader
                .read(&mut self.payload[self.filled - HEADER..])
                .await?;
            if read == 0 {
                return Err(FrameError::Torn.into());
            }
            self.filled += read;
        }
        self.filled = 0;
        Ok(Some(decode(
            self.header[0],
            std::mem::take(&mut self.payload),
        )?))
    }

    /// The length that the header names.
    fn announced(&self) -> usize {
        let [_, a, b, c, d] = self.header;
        // A u32 that does not fit is larger than any limit below.
        usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX)
    }
}

/// Writes frames. A call dropped in mid-write tears no frame: the rest goes
/// out first with the next call.
#[derive(Debug)]
pub struct FrameWriter<W> {
    writer: W,
    pending: Vec<u8>,
    sent: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Frames to `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            pending: Vec::new(),
            sent: 0,
        }
    }

    /// Writes and flushes one frame.
    ///
    /// # Errors
    /// What the stream says, or a [`FrameError`] as `InvalidData` before a
    /// byte of it is written.
    pub async fn write(&mut self, frame: &Frame) -> io::Result<()> {
        self.drain().await?;
        encode(frame, &mut self.pending)?;
        self.drain().await?;
        self.writer.flush().await
    }

    /// Ends the writing direction.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.drain().await?;
        self.writer.shutdown().await
    }

    async fn drain(&mut self) -> io::Result<()> {
        while self.sent < self.pending.len() {
            let written = self.writer.write(&self.pending[self.sent..]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += written;
        }
        self.pending.clear();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
