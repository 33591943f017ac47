//! The guest's side: streams of the host, each with the port it asked for.
//!
//! Only the host is accepted, before a byte is read: CID 2 on vsock (and there
//! its privileged processes only, if so told), the virtio-serial port, the same
//! uid on a Unix socket. A Unix socket also takes clients that speak ttrpc at
//! once, as those of the Kata agent do.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::address::GuestAddress;
use crate::hybrid::{self, REQUEST_DEADLINE};
use crate::mux::{self, MAX_STREAMS};
use crate::peer::is_same_user;
use crate::port;
use crate::serial::{SerialPort, find_port};
use crate::stream::{Duplex, Stream};
use crate::unix;
use crate::vsock::VsockPeers;

/// How long the virtio-serial port may take to appear: the guest's driver may
/// still be loading.
const PORT_DEADLINE: Duration = Duration::from_secs(10);

/// Streams accepted and not yet taken.
const QUEUE: usize = 16;

/// A stream of the host.
pub struct Incoming {
    /// The port asked for; one of those given to [`Listener::bind`].
    pub port: u32,
    /// Its bytes, from the first one on.
    pub stream: Stream,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming(port {})", self.port)
    }
}

/// Why an agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket could not be bound.
    #[error("listen at {address}")]
    Bind {
        /// Where.
        address: GuestAddress,
        /// What bind(2) or listen(2) said.
        source: io::Error,
    },
    /// No virtio-serial port of that name appeared.
    #[error("find the virtio-serial port {port_name:?}")]
    Find {
        /// The name looked for.
        port_name: String,
        /// `TimedOut`, or what the search said.
        source: io::Error,
    },
    /// The virtio-serial port is there and cannot be opened.
    #[error("open the virtio-serial port {port_name:?}")]
    Open {
        /// The port's name.
        port_name: String,
        /// What open(2) or epoll_ctl(2) said.
        source: io::Error,
    },
}

/// Accepts the host's streams. Dropping it stops listening; streams already
/// accepted live on, except those of a serial session.
#[derive(Debug)]
pub struct Listener {
    incoming: mpsc::Receiver<io::Result<Incoming>>,
    /// Aborted on drop.
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Listens at `address` for streams to `ports`; of vsock's only those of
    /// `peers` are taken. Must be called inside a runtime, whose tasks carry
    /// it. On serial this blocks the thread until the port has appeared, at
    /// most 10 s.
    ///
    /// # Errors
    /// The address cannot be bound, or the virtio-serial port is not there.
    pub fn bind(
        address: &GuestAddress,
        ports: &[u32],
        peers: VsockPeers,
    ) -> Result<Self, ListenError> {
        let (sender, incoming) = mpsc::channel(QUEUE);
        let admission = Admission {
            ports: ports.into(),
            sender,
        };
        let mut tasks = JoinSet::new();
        match address {
            GuestAddress::Vsock { port: rpc } => {
                for &port in ports {
                    let number = if port == port::RPC { *rpc } else { port };
                    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, number))
                        .map_err(|source| bind_error(address, source))?;
                    tasks.spawn(accept_vsock(listener, port, peers, admission.clone()));
                }
            }
            GuestAddress::Serial { port_name } => {
                let port = open_port(port_name)?;
                tasks.spawn(accept_serial(port, admission));
            }
            GuestAddress::Unix { path } => {
                let listener = unix::bind(path)
                    .and_then(|listener| {
                        listener.set_nonblocking(true)?;
                        UnixListener::from_std(listener)
                    })
                    .map_err(|source| bind_error(address, source))?;
                tasks.spawn(accept_unix(listener, admission));
            }
        }
        Ok(Self {
            incoming,
            _tasks: tasks,
        })
    }

    /// Listens on an already opened virtio-serial port, or on a socket that
    /// plays one. Must be called inside a runtime.
    ///
    /// # Errors
    /// What fcntl(2) or epoll_ctl(2) says.
    pub fn over_serial(port: OwnedFd, ports: &[u32]) -> io::Result<Self> {
        let (sender, incoming) = mpsc::channel(QUEUE);
        let admission = Admission {
            ports: ports.into(),
            sender,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept_serial(SerialPort::new(port)?, admission));
        Ok(Self {
            incoming,
            _tasks: tasks,
        })
    }

    /// The next stream of the host. May be dropped at any point without losing
    /// one.
    ///
    /// # Errors
    /// What the transport says when it can accept no more; it is of no use
    /// then and says `NotConnected` from there on.
    pub async fn accept(&mut self) -> io::Result<Incoming> {
        self.incoming
            .recv()
            .await
            .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }
}

fn bind_error(address: &GuestAddress, source: io::Error) -> ListenError {
    ListenError::Bind {
        address: address.clone(),
        source,
    }
}

fn open_port(port_name: &str) -> Result<SerialPort, ListenError> {
    let node = find_port(port_name, PORT_DEADLINE).map_err(|source| ListenError::Find {
        port_name: port_name.to_owned(),
        source,
    })?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(node, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(SerialPort::new)
        .map_err(|source| ListenError::Open {
            port_name: port_name.to_owned(),
            source,
        })
}

/// Which ports there are, and where their streams go.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    ports: Arc<[u32]>,
    sender: mpsc::Sender<io::Result<Incoming>>,
}

impl Admission {
    /// Reads which port a stream asks for and hands it on, or refuses it.
    pub(crate) async fn admit(self, stream: impl Duplex) {
        // A peer that says nothing, or goes, has nothing to be told.
        let _ = tokio::time::timeout(REQUEST_DEADLINE, self.exchange(stream)).await;
    }

    /// As [`Admission::admit`], for a Unix socket. There clients of the agent
    /// API say no word before their first request: they mean the RPC port.
    async fn admit_socket(self, stream: UnixStream) {
        let entered = async {
            match begins_with_request(&stream).await {
                Ok(true) if self.ports.contains(&port::RPC) => {
                    let incoming = Incoming {
                        port: port::RPC,
                        stream: Box::new(stream),
                    };
                    // Nobody takes streams any more: it is closed.
                    let _ = self.sender.send(Ok(incoming)).await;
                }
                Ok(_) => self.exchange(stream).await,
                Err(_) => {}
            }
        };
        // A peer that says nothing, or goes, has nothing to be told.
        let _ = tokio::time::timeout(REQUEST_DEADLINE, entered).await;
    }

    async fn exchange(self, mut stream: impl Duplex) {
        match hybrid::read_request(&mut stream).await {
            Ok(port) if self.ports.contains(&port) => {
                // First room, then the word: what is granted is also served.
                let Ok(room) = self.sender.reserve_owned().await else {
                    return;
                };
                if hybrid::grant(&mut stream, port).await.is_ok() {
                    room.send(Ok(Incoming {
                        port,
                        stream: Box::new(stream),
                    }));
                }
            }
            Ok(port) => {
                let _ = hybrid::refuse(&mut stream, &format!("port {port} is not open")).await;
            }
            Err(hybrid::WordsError::Unknown { .. }) => {
                let _ = hybrid::refuse(&mut stream, "expected CONNECT and a port").await;
            }
            Err(_) => {}
        }
    }

    async fn fail(&self, error: io::Error) {
        // Nobody left to tell when this fails.
        let _ = self.sender.send(Err(error)).await;
    }
}

/// How long a listener is left alone that lacks descriptors or memory: the
/// connection stays in its queue, and the next attempt would fail at once.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Whether accept(2) failed for one connection only, or for want of what comes
/// back (accept(2), "Error handling" and ERRORS).
async fn is_passing(error: &io::Error) -> bool {
    let shortage = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    if shortage
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    {
        tokio::time::sleep(SHORTAGE_PAUSE).await;
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Whether the first byte, which is left where it is, begins a ttrpc frame: the
/// highest byte of a length of at most 4 MiB is 0, and no word begins so.
async fn begins_with_request(stream: &UnixStream) -> io::Result<bool> {
    let mut first = [0xff];
    let length = stream
        .async_io(Interest::READABLE, || {
            let (_, length) = recv(stream, &mut first[..], RecvFlags::PEEK)?;
            Ok(length)
        })
        .await?;
    Ok(length == 1 && first == [0])
}

async fn accept_vsock(listener: VsockListener, port: u32, peers: VsockPeers, admission: Admission) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if peers.take(peer.cid(), peer.port()) => {
                let incoming = Incoming {
                    port,
                    stream: Box::new(stream),
                };
                if admission.sender.send(Ok(incoming)).await.is_err() {
                    return;
                }
            }
            // A container, another guest or whoever else: closed unread.
            Ok(_) => {}
            Err(error) if is_passing(&error).await => {}
            Err(error) => return admission.fail(error).await,
        }
    }
}

async fn accept_unix(listener: UnixListener, admission: Admission) {
    let room = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut entering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if !is_same_user(&stream).unwrap_or(false) {
                        continue;
                    }
                    let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                        continue;
                    };
                    let admission = admission.clone();
                    entering.spawn(async move {
                        admission.admit_socket(stream).await;
                        drop(place);
                    });
                }
                Err(error) if is_passing(&error).await => {}
                Err(error) => return admission.fail(error).await,
            },
            Some(_) = entering.join_next() => {}
        }
    }
}

async fn accept_serial(mut port: SerialPort, admission: Admission) {
    loop {
        match port.accept().await {
            Ok(session) => mux::serve(session, &admission).await,
            Err(error) => return admission.fail(error).await,
        }
    }
}
