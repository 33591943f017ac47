//! The host's end of the session layer, over the Unix socket of the chardev.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::codec::{self, AckScanner, Nonce};

/// Most bytes taken by one write, and most bytes held when another is taken;
/// escaped they are at most twice as many, so three times this is ever held.
const WRITE_SIZE: usize = 16 * 1024;

/// Bytes read at once while looking for the guest's answer.
const READ_SIZE: usize = 4 * 1024;

/// A session that this end began. Writing may go on at once; reading gives
/// what the guest sent behind its answer.
///
/// What is written goes out when it is flushed, together: each write of its own
/// would be an interrupt of its own in the guest.
#[derive(Debug)]
pub struct HostSession<S> {
    stream: S,
    /// Escaped bytes not yet written, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    /// Present until the guest has answered.
    scanner: Option<AckScanner>,
    /// Bytes that came together with the answer, from `start` on.
    early: Vec<u8>,
    start: usize,
    established: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> HostSession<S> {
    /// Begins a session with a fresh nonce. `established` is cancelled, which
    /// is to say fired, when the guest has answered.
    ///
    /// # Errors
    /// What getrandom(2) says.
    pub fn new(stream: S, established: CancellationToken) -> io::Result<Self> {
        let mut random = [0; 16];
        let drawn =
            rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
        if drawn != random.len() {
            // random(7): up to 256 bytes come whole or not at all.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let nonce = Nonce::new(random);
        Ok(Self {
            stream,
            output: codec::reset(nonce),
            sent: 0,
            scanner: Some(AckScanner::new(nonce)),
            early: Vec::new(),
            start: 0,
            established,
        })
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.output.len() {
            let stream = Pin::new(&mut self.stream);
            let count = ready!(stream.poll_write(context, &self.output[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.output.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Discards what came before the guest's answer. True at the end of the
    /// stream.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while let Some(scanner) = &mut self.scanner {
            let mut room = [0; READ_SIZE];
            let mut buffer = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(true));
            }
            if let Some(offset) = scanner.scan(buffer.filled()) {
                self.early = buffer.filled()[offset..].to_vec();
                self.scanner = None;
                self.established.cancel();
            }
        }
        Poll::Ready(Ok(false))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for HostSession<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if ready!(this.poll_answer(context))? {
            return Poll::Ready(Ok(()));
        }
        if this.start < this.early.len() {
            let count = buffer.remaining().min(this.early.len() - this.start);
            buffer.put_slice(&this.early[this.start..this.start + count]);
            this.start += count;
            return Poll::Ready(Ok(()));
        }
        this.early = Vec::new();
        this.start = 0;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HostSession<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.output.len() >= WRITE_SIZE {
            ready!(self.poll_drain(context))?;
        }
        let taken = data.len().min(WRITE_SIZE);
        codec::escape(&data[..taken], &mut self.output);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Closing the stream is what tells the VMM, and that is its owner's drop.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
