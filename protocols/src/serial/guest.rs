//! The guest's end of the session layer: one port, one session at a time.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::codec::{self, Decoder, Nonce};
use super::device::{Device, Read};

/// How long the port may say that nobody is there before a session is over.
/// A hang-up is only a hint: it comes by the control queue and data by
/// another, so for a moment the bytes of a new host can be there before the
/// news of its coming.
const HANGUP_GRACE: Duration = Duration::from_millis(50);

/// Bytes read from the port at once.
const READ_SIZE: usize = 16 * 1024;

/// Most bytes taken by one write, and most bytes held when another is taken.
const WRITE_SIZE: usize = 16 * 1024;

/// A virtio-serial port that hosts open sessions on, one after the other.
#[derive(Debug)]
pub struct SerialPort {
    device: Device,
    decoder: Decoder,
    /// Bytes read and not yet decoded, from `start` on.
    input: Vec<u8>,
    start: usize,
    /// A session that was begun while another one lasted.
    next: Option<Nonce>,
}

impl SerialPort {
    /// Takes over the opened port. Must be called inside a runtime.
    ///
    /// # Errors
    /// What fcntl(2) or epoll_ctl(2) says.
    pub fn new(port: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            device: Device::new(port)?,
            decoder: Decoder::default(),
            input: Vec::with_capacity(READ_SIZE),
            start: 0,
            next: None,
        })
    }

    /// Waits until a host begins a session; the answer to it goes out with the
    /// session's first flush. All bytes before that are discarded: they are the
    /// remains of older sessions.
    ///
    /// # Errors
    /// What read(2) says of the port.
    pub async fn accept(&mut self) -> io::Result<Session<'_>> {
        let nonce = poll_fn(|context| self.poll_reset(context)).await?;
        Ok(Session {
            port: self,
            output: codec::acknowledgement(nonce),
            sent: 0,
            hangup: None,
            over: false,
        })
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Nonce>> {
        let mut discarded = [0; 1024];
        loop {
            if let Some(nonce) = self.next.take() {
                return Poll::Ready(Ok(nonce));
            }
            if self.start < self.input.len() {
                self.decode(&mut discarded);
            } else if !matches!(self.fill()?, Read::Bytes(_)) {
                ready!(self.device.poll_edge(context))?;
            }
        }
    }

    /// Decodes into `output` and gives the bytes of the session that is on;
    /// the beginning of the next one is kept in `next`.
    fn decode(&mut self, output: &mut [u8]) -> usize {
        let decoded = self.decoder.decode(&self.input[self.start..], output);
        self.start += decoded.consumed;
        self.next = decoded.reset;
        decoded.produced
    }

    /// Reads once from the port; only to be called when all input is decoded.
    fn fill(&mut self) -> io::Result<Read> {
        self.input.resize(READ_SIZE, 0);
        self.start = 0;
        let read = self.device.read(&mut self.input);
        let count = match read {
            Ok(Read::Bytes(count)) => count,
            _ => 0,
        };
        self.input.truncate(count);
        read
    }
}

/// A session: its bytes, until the host begins another or is gone. Reading
/// then gives the end of the stream and writing `BrokenPipe`.
///
/// What is written goes out when it is flushed, together: each write(2) to the
/// port is a way to the host and back.
#[derive(Debug)]
pub struct Session<'a> {
    port: &'a mut SerialPort,
    /// Bytes not yet written, from `sent` on; the answer to the host first.
    output: Vec<u8>,
    sent: usize,
    hangup: Option<Pin<Box<Sleep>>>,
    over: bool,
}

impl Session<'_> {
    fn is_over(&self) -> bool {
        self.over || self.port.next.is_some()
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.output.len() {
            let rest = &self.output[self.sent..];
            self.sent += ready!(self.port.device.poll_write(context, rest))?;
        }
        self.output.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Waits for a sign of life; `Ready` with nothing to read means look again.
    fn poll_hangup(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let grace = self
            .hangup
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(HANGUP_GRACE)));
        if grace.as_mut().poll(context).is_ready() {
            self.over = true;
            return Poll::Ready(Ok(()));
        }
        self.port.device.poll_edge(context)
    }
}

impl AsyncRead for Session<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.is_over() {
                return Poll::Ready(Ok(()));
            }
            if this.port.start < this.port.input.len() {
                let produced = this.port.decode(buffer.initialize_unfilled());
                if produced > 0 && this.port.next.is_none() {
                    buffer.advance(produced);
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match this.port.fill()? {
                Read::Bytes(_) => this.hangup = None,
                Read::Empty => {
                    this.hangup = None;
                    ready!(this.port.device.poll_edge(context))?;
                }
                Read::NoHost => ready!(this.poll_hangup(context))?,
            }
        }
    }
}

impl AsyncWrite for Session<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_over() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.output.len() >= WRITE_SIZE {
            ready!(self.poll_drain(context))?;
        }
        let taken = data.len().min(WRITE_SIZE);
        self.output.extend_from_slice(&data[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over() && !self.output.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.poll_drain(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
