//! yamux over one connection, each stream opened with the words of hybrid
//! vsock: yamux itself knows no ports, and a stream is invisible to the other
//! side until its first write.
//!
//! A connection is driven by one task. Memory is bounded: streams are counted
//! at both ends, and each has the smallest window yamux allows.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use yamux::{ConnectionError, Mode};

use crate::listen::Admission;

/// Streams in use at once on one connection; each holds at most
/// [`yamux::DEFAULT_CREDIT`] (256 KiB) of unread bytes.
pub(crate) const MAX_STREAMS: usize = 128;

/// Streams yamux itself may know: those in use, and those of which only one
/// end has heard that they are over. Beyond it yamux ends the connection.
const MAX_KNOWN_STREAMS: usize = 4 * MAX_STREAMS;

/// Requests to open a stream that wait for the driver.
const OPEN_QUEUE: usize = 16;

/// How long sending out what is left may take.
const CLOSE_DEADLINE: Duration = Duration::from_millis(200);

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_KNOWN_STREAMS);
    // No more than the first window of every stream: windows never grow.
    config.set_max_connection_receive_window(Some(
        MAX_KNOWN_STREAMS * yamux::DEFAULT_CREDIT as usize,
    ));
    config
}

/// A multiplexed stream. The connection lives at least as long.
#[derive(Debug)]
pub(crate) struct MuxStream {
    stream: Compat<yamux::Stream>,
    _place: OwnedSemaphorePermit,
    /// Keeps the driver of the opening side going.
    _opener: Option<mpsc::Sender<Reply>>,
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for MuxStream {
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

type Reply = oneshot::Sender<yamux::Stream>;

/// Opens streams on a connection that a task drives.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    requests: mpsc::Sender<Reply>,
    places: Arc<Semaphore>,
}

impl Opener {
    /// A new stream, not yet visible to the other side; none once the
    /// connection is over.
    pub(crate) async fn open(&self) -> Option<MuxStream> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let (reply, opened) = oneshot::channel();
        self.requests.send(reply).await.ok()?;
        let stream = opened.await.ok()?;
        Some(MuxStream {
            stream: stream.compat(),
            _place: place,
            _opener: Some(self.requests.clone()),
        })
    }
}

/// The opening side of a connection: streams by [`Opener`], and the future
/// that drives it all. It ends when `stop` is fired, when the other side is
/// gone, or when all openers and streams are dropped.
pub(crate) fn client<T>(
    io: T,
    stop: CancellationToken,
) -> (Opener, impl Future<Output = ()> + Send + 'static)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, mut waiting) = mpsc::channel(OPEN_QUEUE);
    let opener = Opener {
        requests,
        places: Arc::new(Semaphore::new(MAX_STREAMS)),
    };
    let driver = async move {
        let mut connection = yamux::Connection::new(io.compat(), config(), Mode::Client);
        // The reason for an end is seen by nobody: all streams end, and that is
        // what their users notice.
        let ended = tokio::select! {
            ended = drive(&mut connection, &mut waiting) => ended,
            // Dropped as it is: a graceful end leaves readers waiting for ever.
            () = stop.cancelled() => return,
        };
        if ended.is_ok() {
            // Nobody is left who reads: what the last streams wrote goes out.
            let close = poll_fn(|context| connection.poll_close(context));
            let _ = tokio::time::timeout(CLOSE_DEADLINE, close).await;
        }
    };
    (opener, driver)
}

async fn drive<T>(
    connection: &mut yamux::Connection<Compat<T>>,
    requests: &mut mpsc::Receiver<Reply>,
) -> Result<(), ConnectionError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut next: Option<Reply> = None;
    poll_fn(move |context| {
        loop {
            if next.is_none() {
                match requests.poll_recv(context) {
                    Poll::Ready(Some(reply)) => next = Some(reply),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
            }
            if let Some(reply) = next.take() {
                match connection.poll_new_outbound(context) {
                    Poll::Ready(opened) => {
                        // Whoever asked may have gone; the stream is dropped then.
                        let _ = reply.send(opened?);
                        continue;
                    }
                    Poll::Pending => next = Some(reply),
                }
            }
            match connection.poll_next_inbound(context) {
                // Nothing is ever opened towards the host.
                Poll::Ready(Some(Ok(stream))) => drop(stream),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// The accepting side of a connection: every stream that asks for a port of
/// `admission` is handed on. Ends with the connection.
pub(crate) async fn serve<T>(io: T, admission: &Admission)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = yamux::Connection::new(io.compat(), config(), Mode::Server);
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut entering = JoinSet::new();
    loop {
        tokio::select! {
            inbound = poll_fn(|context| connection.poll_next_inbound(context)) => {
                let Some(Ok(stream)) = inbound else {
                    return;
                };
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    continue;
                };
                let stream = MuxStream {
                    stream: stream.compat(),
                    _place: place,
                    _opener: None,
                };
                entering.spawn(admission.clone().admit(stream));
            }
            Some(_) = entering.join_next() => {}
        }
    }
}
