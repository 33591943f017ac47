//! The host's side: one link to one agent, and streams to its ports.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::address::AgentAddress;
use crate::destination::Destination;
use crate::hybrid::{self, WordsError};
use crate::mux::{self, Opener};
use crate::port;
use crate::serial::HostSession;
use crate::stream::Stream;
use crate::vsock;

/// What is waited for when a port is asked for.
const OPENING: &str = "open a port of the agent";
/// How long an agent that has answered may take to answer the dial of the idle
/// connection.
const WATCH_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no link, or no stream on it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers at the address.
    #[error("connect to {address}")]
    Connect {
        /// Where.
        address: AgentAddress,
        /// What connect(2) or the first words said.
        source: io::Error,
    },
    /// The session on an already connected stream could not be begun.
    #[error("begin a session on the serial port")]
    Session(#[source] io::Error),
    /// The agent does not listen at this port, or refuses this host.
    #[error("open port {port}: refused: {text}")]
    Refused {
        /// The port asked for.
        port: u32,
        /// What the other side said, escaped.
        text: String,
    },
    /// The stream ended or broke while its port was asked for.
    #[error("open port {port}")]
    Open {
        /// The port asked for.
        port: u32,
        /// What happened.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline {
        /// What was waited for.
        call: &'static str,
        /// How long.
        after: Duration,
    },
    /// The other side is gone, or the link was closed here.
    #[error("the link to the agent is closed")]
    Closed,
}

/// A link to an agent; a cheap clone of it is the same link. Once closed it
/// stays so: whoever wants another connects again.
///
/// A link that no clone of is left, and no stream, ends by itself.
#[derive(Debug, Clone)]
pub struct Link {
    carrier: Carrier,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Fired by [`Link::close`].
    stop: CancellationToken,
    /// Fired when the agent has answered.
    established: CancellationToken,
    /// Fired when the link is over, for whatever reason.
    closed: CancellationToken,
}

#[derive(Debug, Clone)]
enum Carrier {
    /// All streams on one connection.
    Mux(Opener),
    /// Each stream dialled; the guard ends the watch with the last clone.
    Dial {
        destination: Arc<Destination>,
        _watch: Arc<DropGuard>,
    },
}

impl Link {
    /// Connects and waits until the agent has answered. Must be called inside
    /// a runtime, whose tasks carry the link.
    ///
    /// On serial a session is begun, which ends the one of any other host. On
    /// the others one idle connection to the RPC port is kept, so that a peer
    /// that vanishes is noticed without asking.
    ///
    /// # Errors
    /// Nobody there, a refusal, or no answer within `deadline`.
    pub async fn connect(
        destination: impl Into<Destination>,
        deadline: Duration,
    ) -> Result<Self, LinkError> {
        let destination = destination.into();
        let connect = async {
            let address = destination.address();
            if let AgentAddress::Serial { socket } = address {
                let stream =
                    destination
                        .connect(socket)
                        .await
                        .map_err(|source| LinkError::Connect {
                            address: address.clone(),
                            source,
                        })?;
                let link = Self::over_serial(stream)?;
                link.established(deadline).await?;
                Ok(link)
            } else {
                Self::by_dialling(&destination).await
            }
        };
        within("connect to the agent", deadline, connect).await
    }

    /// Begins a session on the connected stream of a virtio-serial chardev and
    /// does not wait for the answer: streams may be opened at once, also while
    /// the VM is still paused. Must be called inside a runtime.
    ///
    /// # Errors
    /// What getrandom(2) says of the session's nonce.
    pub fn over_serial(stream: UnixStream) -> Result<Self, LinkError> {
        let state = State::new();
        let session =
            HostSession::new(stream, state.established.clone()).map_err(LinkError::Session)?;
        let (opener, driver) = mux::client(session, state.stop.clone());
        let closed = state.closed.clone().drop_guard();
        tokio::spawn(async move {
            driver.await;
            drop(closed);
        });
        Ok(Self {
            carrier: Carrier::Mux(opener),
            state: Arc::new(state),
        })
    }

    /// A link that each stream is dialled for, and nobody has dialled yet; none
    /// for a serial port, where all streams share one connection. Its idle
    /// connection is made once [`Opening::granted`] has told of a port: the
    /// agent has nothing else to do before that. Must be called inside a runtime.
    #[must_use]
    pub fn undialled(destination: impl Into<Destination>) -> Option<Self> {
        let destination = destination.into();
        let is_serial = matches!(destination.address(), AgentAddress::Serial { .. });
        (!is_serial).then(|| Self::watched(&destination, None))
    }

    async fn by_dialling(destination: &Destination) -> Result<Self, LinkError> {
        let sentinel = dial(destination, port::RPC).await?;
        let link = Self::watched(destination, Some(sentinel));
        link.state.established.cancel();
        Ok(link)
    }

    /// A link that is over when its idle connection is: the one that is there,
    /// or one that is made when the agent has answered.
    fn watched(destination: &Destination, sentinel: Option<Stream>) -> Self {
        let destination = Arc::new(destination.clone());
        let state = State::new();
        let (stop, closed) = (state.stop.clone(), state.closed.clone());
        let (established, dialled) = (state.established.clone(), Arc::clone(&destination));
        let watch = CancellationToken::new();
        let guard = watch.clone().drop_guard();
        let sentinel = async move {
            let mut sentinel = match sentinel {
                Some(sentinel) => sentinel,
                None => {
                    established.cancelled().await;
                    let dial = dial(&dialled, port::RPC);
                    within("connect to the agent", WATCH_DEADLINE, dial).await?
                }
            };
            // A server never speaks first: whatever comes, even a byte, means
            // that this is over.
            let _ = sentinel.read_u8().await;
            Ok::<(), LinkError>(())
        };
        tokio::spawn(async move {
            tokio::select! {
                // Why it is over is no matter: whoever needs it dials again.
                _ = sentinel => {}
                () = stop.cancelled() => {}
                () = watch.cancelled() => {}
            }
            closed.cancel();
        });
        Self {
            carrier: Carrier::Dial {
                destination,
                _watch: Arc::new(guard),
            },
            state: Arc::new(state),
        }
    }

    /// Waits until the agent has answered for the first time.
    ///
    /// # Errors
    /// The link closed, or no answer within `deadline`.
    pub async fn established(&self, deadline: Duration) -> Result<(), LinkError> {
        let established = async {
            tokio::select! {
                () = self.state.established.cancelled() => Ok(()),
                () = self.state.closed.cancelled() => Err(LinkError::Closed),
            }
        };
        within("wait for the agent's session", deadline, established).await
    }

    /// Opens a stream to a port of the agent.
    ///
    /// # Errors
    /// At once for a refused port and for a closed link; at the deadline for
    /// an agent that says nothing.
    pub async fn open(&self, port: u32, deadline: Duration) -> Result<Stream, LinkError> {
        let open = async {
            tokio::select! {
                biased;
                () = self.state.closed.cancelled() => Err(LinkError::Closed),
                stream = self.open_stream(port) => stream,
            }
        };
        within(OPENING, deadline, open).await
    }

    async fn open_stream(&self, port: u32) -> Result<Stream, LinkError> {
        match &self.carrier {
            Carrier::Mux(opener) => {
                let mut stream = opener.open().await.ok_or(LinkError::Closed)?;
                hybrid::request(&mut stream, port)
                    .await
                    .map_err(|error| words_error(port, error))?;
                Ok(Box::new(stream))
            }
            Carrier::Dial { destination, .. } => dial(destination, port).await,
        }
    }

    /// A stream to the agent's `port`, not yet granted: what is written goes out
    /// together with the question. Whether there is such a port is what the
    /// [`Opening`] says, once the stream is read from.
    ///
    /// # Errors
    /// The link is dead.
    pub async fn open_early(
        &self,
        port: u32,
        deadline: Duration,
    ) -> Result<(Stream, Opening), LinkError> {
        let (stream, answer): (Stream, _) = match &self.carrier {
            Carrier::Mux(opener) => {
                let open = async {
                    let stream = opener.open().await.ok_or(LinkError::Closed)?;
                    let asked = hybrid::request_early(stream, port).await;
                    asked.map_err(|source| LinkError::Open { port, source })
                };
                let (stream, answer) = within(OPENING, deadline, open).await?;
                (Box::new(stream), Some(answer))
            }
            Carrier::Dial { destination, .. } => {
                within(OPENING, deadline, dial_early(destination, port)).await?
            }
        };
        Ok((
            stream,
            Opening {
                port,
                answer,
                state: Arc::clone(&self.state),
            },
        ))
    }

    /// Resolves when the link is over: the peer vanished, another host began a
    /// session, or it was closed here.
    pub async fn closed(&self) {
        self.state.closed.cancelled().await;
    }

    /// Whether the link is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.closed.is_cancelled()
    }

    /// Closes the link for all its clones. Streams of a multiplexed link end,
    /// and what they have not sent is lost.
    pub fn close(self) {
        self.state.stop.cancel();
    }
}

/// The answer to come of a port that was asked for.
#[derive(Debug)]
pub struct Opening {
    port: u32,
    /// None where the port was granted before the stream was there.
    answer: Option<oneshot::Receiver<Result<(), WordsError>>>,
    state: Arc<State>,
}

impl Opening {
    /// Waits for the answer, for which the stream must be read by someone.
    ///
    /// # Errors
    /// A refusal, the end of stream or link, or nothing within `deadline`.
    pub async fn granted(self, deadline: Duration) -> Result<(), LinkError> {
        if let Some(answer) = self.answer {
            let granted = async {
                tokio::select! {
                    // What was answered before the end counts.
                    biased;
                    told = answer => match told {
                        Ok(answer) => answer.map_err(|error| words_error(self.port, error)),
                        Err(_) => Err(LinkError::Closed),
                    },
                    () = self.state.closed.cancelled() => Err(LinkError::Closed),
                }
            };
            within(OPENING, deadline, granted).await?;
        }
        self.state.established.cancel();
        Ok(())
    }
}

impl State {
    fn new() -> Self {
        Self {
            stop: CancellationToken::new(),
            established: CancellationToken::new(),
            closed: CancellationToken::new(),
        }
    }
}

/// A connection of its own to a port.
async fn dial(destination: &Destination, port: u32) -> Result<Stream, LinkError> {
    let address = destination.address();
    let connect_error = |source| LinkError::Connect {
        address: address.clone(),
        source,
    };
    match address {
        AgentAddress::Vsock { cid, port: rpc } => {
            let number = if port == port::RPC { *rpc } else { port };
            match vsock::dial(*cid, number).await {
                Ok(stream) => Ok(Box::new(stream)),
                // How vsock says that nobody listens there (vsock(7)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    Err(LinkError::Refused {
                        port,
                        text: error.to_string(),
                    })
                }
                Err(error) => Err(connect_error(error)),
            }
        }
        AgentAddress::HybridVsock { socket, port: rpc } => {
            let number = if port == port::RPC { *rpc } else { port };
            let mut stream = destination.connect(socket).await.map_err(connect_error)?;
            hybrid::request(&mut stream, number)
                .await
                .map_err(|error| words_error(port, error))?;
            Ok(Box::new(stream))
        }
        AgentAddress::Unix { path } | AgentAddress::Serial { socket: path } => {
            let mut stream = destination.connect(path).await.map_err(connect_error)?;
            hybrid::request(&mut stream, port)
                .await
                .map_err(|error| words_error(port, error))?;
            Ok(Box::new(stream))
        }
    }
}

/// A connection of its own to a port, on which the port's first bytes can follow
/// the question, where there is one: vsock itself asks with its connect.
async fn dial_early(
    destination: &Destination,
    port: u32,
) -> Result<(Stream, Option<oneshot::Receiver<Result<(), WordsError>>>), LinkError> {
    let address = destination.address();
    let (path, number) = match address {
        AgentAddress::Vsock { .. } => return Ok((dial(destination, port).await?, None)),
        AgentAddress::HybridVsock { socket, port: rpc } => {
            (socket, if port == port::RPC { *rpc } else { port })
        }
        AgentAddress::Unix { path } | AgentAddress::Serial { socket: path } => (path, port),
    };
    let stream = destination
        .connect(path)
        .await
        .map_err(|source| LinkError::Connect {
            address: address.clone(),
            source,
        })?;
    let asked = hybrid::request_early(stream, number).await;
    let (stream, answer) = asked.map_err(|source| LinkError::Open { port, source })?;
    Ok((Box::new(stream), Some(answer)))
}

fn words_error(port: u32, error: WordsError) -> LinkError {
    match error {
        WordsError::Refused { text } => LinkError::Refused { port, text },
        // Firecracker and Cloud Hypervisor close the connection when nobody
        // listens at the port in the guest.
        WordsError::Stream(source) => LinkError::Open { port, source },
        error @ WordsError::Unknown { .. } => LinkError::Open {
            port,
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        },
    }
}

async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or(Err(LinkError::Deadline {
            call,
            after: deadline,
        }))
}
