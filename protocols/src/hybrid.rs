//! The words of hybrid vsock, as Cloud Hypervisor and Firecracker speak them
//! at a guest's Unix socket: `CONNECT n` is answered by `OK n`, or here by
//! `ERR text`, and from then on the stream belongs to port n. The same words
//! open every stream of a multiplexed link.

use std::io;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::link::Link;
use crate::peer::is_one_of_ours;
use crate::text::escape_untrusted;

/// Longest line, bytes, its newline included.
pub const MAX_LINE: usize = 256;

/// How long a peer that connected may take to say which port it wants.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How long the proxy waits for the agent to answer for a port.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Connections the proxy carries at once.
const MAX_CONNECTIONS: usize = 128;

/// Why a port was not opened.
#[derive(Debug, thiserror::Error)]
pub enum WordsError {
    /// The other side said no; its text is escaped.
    #[error("refused: {text}")]
    Refused {
        /// What it said.
        text: String,
    },
    /// The other side said something else; escaped.
    #[error("expected the words of hybrid vsock, got {line:?}")]
    Unknown {
        /// What it said.
        line: String,
    },
    /// The stream failed, ended, or the line had no end.
    #[error("exchange the words of hybrid vsock")]
    Stream(#[from] io::Error),
}

/// Asks for `port` and waits for the answer. No deadline of its own.
///
/// # Errors
/// A refusal or anything else that is not `OK`; the stream is of no use then.
pub async fn request<S>(stream: &mut S, port: u32) -> Result<(), WordsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    ask(stream, port).await?;
    judge(&read_line(stream).await?)
}

async fn ask<S: AsyncWrite + Unpin>(stream: &mut S, port: u32) -> io::Result<()> {
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    stream.flush().await
}

/// What a line says that answers `CONNECT`.
fn judge(line: &str) -> Result<(), WordsError> {
    // The number is the VMM's source port, and nothing depends on it.
    if line == "OK" || line.starts_with("OK ") {
        Ok(())
    } else if let Some(text) = line.strip_prefix("ERR ") {
        Err(WordsError::Refused {
            text: escape_untrusted(text, MAX_LINE),
        })
    } else {
        Err(WordsError::Unknown {
            line: escape_untrusted(line, MAX_LINE),
        })
    }
}

/// Asks for `port` and does not wait: what is written to the stream follows the
/// question at once. The answer is taken from what is read before the port's
/// own bytes, and told to the receiver; if it is no `OK`, reading fails. Nothing
/// is told unless somebody reads.
///
/// # Errors
/// What the stream says.
pub(crate) async fn request_early<S>(
    mut stream: S,
    port: u32,
) -> io::Result<(Asked<S>, oneshot::Receiver<Result<(), WordsError>>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    ask(&mut stream, port).await?;
    let (told, answer) = oneshot::channel();
    let asked = Asked {
        stream,
        line: Vec::with_capacity(32),
        told: Some(told),
        is_refused: false,
    };
    Ok((asked, answer))
}

/// A stream whose first line is the answer to a question asked before.
#[derive(Debug)]
pub(crate) struct Asked<S> {
    stream: S,
    line: Vec<u8>,
    /// Present until the answer was read.
    told: Option<oneshot::Sender<Result<(), WordsError>>>,
    /// The answer was no `OK`: nothing that follows it is the port's.
    is_refused: bool,
}

impl<S: AsyncRead + Unpin> Asked<S> {
    /// Takes the answer off the stream; ready with an error if it is a refusal.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.told.is_some() {
            let read = ready!(self.poll_line(context));
            let answer = read
                .map_err(WordsError::from)
                .and_then(|()| judge(&String::from_utf8_lossy(&self.line)));
            let outcome = match &answer {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    error.to_string(),
                )),
            };
            // Whoever wanted to know may have gone.
            if let Some(told) = self.told.take() {
                let _ = told.send(answer);
            }
            if outcome.is_err() {
                self.is_refused = true;
                return Poll::Ready(outcome);
            }
        }
        if self.is_refused {
            return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        Poll::Ready(Ok(()))
    }

    /// Byte by byte: what follows the line is the port's.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            match buffer.filled() {
                [] => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                [b'\n'] => return Poll::Ready(Ok(())),
                filled => self.line.extend_from_slice(filled),
            }
            if self.line.len() >= MAX_LINE {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Asked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(context))?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Asked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Reads which port the other side asks for. No deadline of its own.
///
/// # Errors
/// Anything but `CONNECT n`.
pub async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u32, WordsError> {
    let line = read_line(stream).await?;
    line.strip_prefix("CONNECT ")
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| WordsError::Unknown {
            line: escape_untrusted(&line, MAX_LINE),
        })
}

/// Says that the stream belongs to `port` from here on.
///
/// # Errors
/// What the stream says.
pub async fn grant<S: AsyncWrite + Unpin>(stream: &mut S, port: u32) -> io::Result<()> {
    stream.write_all(format!("OK {port}\n").as_bytes()).await?;
    stream.flush().await
}

/// Says why the stream leads nowhere, and ends it.
///
/// # Errors
/// What the stream says.
pub async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> io::Result<()> {
    let text = text.replace('\n', " ");
    let text = &text[..text.floor_char_boundary(MAX_LINE - "ERR \n".len())];
    stream.write_all(format!("ERR {text}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// One line without its newline. Reads byte by byte: what follows the line is
/// the port's.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut line = Vec::with_capacity(32);
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            byte => line.push(byte),
        }
        if line.len() >= MAX_LINE {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
    }
}

/// Offers the one link to an agent to many clients, processes of ours: each
/// connection to `listener` says `CONNECT n` and is joined to a stream that is
/// opened on the link of the moment. `link` gives none while there is no agent
/// to talk to. Runs until the listener fails; dropping the future ends all
/// connections.
///
/// # Errors
/// What accept(2) says, except of a connection that is already gone.
pub async fn serve<F>(listener: UnixListener, link: F) -> io::Result<()>
where
    F: Fn() -> Option<Link> + Send + Sync + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let link = Arc::new(link);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let client = match accepted {
                    Ok((client, _)) => client,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error),
                };
                // Not a VMM, which may have our user and would be its guest's
                // way to another guest's agent.
                if !is_one_of_ours(&client).unwrap_or(false) {
                    continue;
                }
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                    continue;
                };
                let link = Arc::clone(&link);
                connections.spawn(async move {
                    join(client, || link()).await;
                    drop(place);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection. Its failures are its two ends' to notice: both see
/// their stream end.
async fn join(mut client: UnixStream, link: impl Fn() -> Option<Link>) {
    let request = tokio::time::timeout(REQUEST_DEADLINE, read_request(&mut client)).await;
    let port = match request {
        Ok(Ok(port)) => port,
        Ok(Err(WordsError::Unknown { .. })) => {
            let _ = refuse(&mut client, "expected CONNECT and a port").await;
            return;
        }
        Ok(Err(_)) | Err(_) => return,
    };
    let opened = match link() {
        Some(link) => link.open(port, OPEN_DEADLINE).await,
        None => Err(crate::link::LinkError::Closed),
    };
    match opened {
        Ok(agent) => {
            if grant(&mut client, port).await.is_ok() {
                // Both ends see their stream end, whatever the reason.
                let _ = carry(client, agent).await;
            }
        }
        Err(error) => {
            let _ = refuse(&mut client, &error.to_string()).await;
        }
    }
}

/// Copies both ways. An agent that has said its last words may have stopped
/// listening: that its stream takes no more must not lose those words, so only
/// the way to the client ends both.
async fn carry<S>(mut client: UnixStream, agent: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = client.split();
    let (mut from_agent, mut to_agent) = tokio::io::split(agent);
    let upward = async {
        // Whichever of the two failed, the agent hears that no more will come.
        let _ = tokio::io::copy(&mut from_client, &mut to_agent).await;
        let _ = to_agent.shutdown().await;
        Ok(())
    };
    let downward = async {
        tokio::io::copy(&mut from_agent, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(upward, downward).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn an_endless_line_is_given_up_at_its_limit() {
        let mut endless = tokio::io::repeat(b'x');
        assert!(matches!(
            read_request(&mut endless).await,
            Err(WordsError::Stream(_))
        ));
    }

    /// A stream that takes nothing any more and has its last words to say.
    struct Leaving(&'static [u8]);

    impl AsyncRead for Leaving {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Leaving {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn last_words_reach_a_client_that_still_talks() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"too late").await.unwrap();
        let mut heard = String::new();
        let listening = async {
            far.read_to_string(&mut heard).await?;
            far.shutdown().await
        };
        let (carried, listened) = tokio::join!(carry(near, Leaving(b"exit 0")), listening);
        carried.unwrap();
        listened.unwrap();
        assert_eq!(heard, "exit 0");
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_escaped() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let (asked, answered) = tokio::join!(request(&mut near, 7), async {
            assert_eq!(read_request(&mut far).await.unwrap(), 7);
            refuse(&mut far, "no\x1b[2J\nport").await
        });
        answered.unwrap();
        let Err(WordsError::Refused { text }) = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(text, "no\\u{1b}[2J port");
    }

    #[tokio::test]
    async fn what_is_said_before_the_answer_follows_the_question() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut asked, told) = request_early(near, 7).await.unwrap();
        asked.write_all(b"hello").await.unwrap();
        assert_eq!(read_request(&mut far).await.unwrap(), 7);
        let mut first = [0; 5];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"hello");
        far.write_all(b"OK 1\nworld").await.unwrap();
        asked.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"world");
        told.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_refusal_that_comes_later_is_told_and_ends_the_stream() {
        for (answer, is_refusal) in [
            ("ERR no\x1b[2J\nand more", true),
            ("HTTP/1.1\nand more", false),
            ("", false),
        ] {
            let (near, mut far) = tokio::io::duplex(1024);
            let (mut asked, told) = request_early(near, 7).await.unwrap();
            far.write_all(answer.as_bytes()).await.unwrap();
            drop(far);
            // Nor is what follows taken for the port's by whoever reads on.
            for _ in 0..2 {
                assert!(asked.read_u8().await.is_err(), "{answer}");
            }
            let error = told.await.unwrap().unwrap_err();
            assert_eq!(
                matches!(error, WordsError::Refused { .. }),
                is_refusal,
                "{error}"
            );
        }
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut asked, told) = request_early(near, 7).await.unwrap();
        far.write_all(&[b'x'; MAX_LINE]).await.unwrap();
        assert!(asked.read_u8().await.is_err());
        assert!(told.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_on_the_stream() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        far.write_all(b"OK 1073741824\nhello").await.unwrap();
        request(&mut near, 7).await.unwrap();
        let mut rest = [0; 5];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read_request(&mut bytes.as_slice()));
        }
    }
}
