//! The host's end of a sandbox's network: one tap device each, by
//! rtnetlink(7), in the network namespace of whoever asks.
//!
//! A tap is recorded before it is made, and known again by its namespace, its
//! index and its alias, which is the sandbox's id: a sweep removes what a kill
//! has left, and nothing of anybody else. A fenced tap is up, but has no
//! address and a filter that drops every frame of the guest; the fence is
//! lifted when the guest is known to be itself, and then still only what bears
//! its own addresses passes.

mod address;
mod filter;
mod namespace;
mod tap;

pub use address::{AddressPair, Block, HardwareAddress, NotAnAddress, PAIR_LENGTH};
pub use namespace::NetworkNamespace;
pub use tap::TapRecord;

pub(crate) use tap::remove_tap_now;

use super::call::{CallFailed, failed};
use super::process::ProcessError;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use futures::TryStreamExt;

/// How long one request to the kernel may take. Links, addresses and filters
/// have one lock (the rtnl of Linux), and another's request is in the way for
/// milliseconds; a link that is torn down, for a second or so.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why the host's network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No socket to the kernel, or no thread or runtime for it.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refuses.
    #[error("{call} {subject}")]
    Netlink {
        /// What was tried.
        call: &'static str,
        /// On what.
        subject: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel has not answered in time. What was asked for may still be
    /// done later.
    #[error("{call} {subject}: no answer in {deadline:?}")]
    Deadline {
        /// What was tried.
        call: &'static str,
        /// On what.
        subject: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The kernel cannot filter what a guest sends, so there is no fence.
    #[error("filter the frames of {link}: the kernel has no {module}")]
    Unsupported {
        /// Of which tap.
        link: String,
        /// The module, and the option it is built by.
        module: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file of /proc could not be read or written.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The boot of the host could not be told.
    #[error(transparent)]
    Boot(#[from] ProcessError),
    /// What is there is not the recorded tap.
    #[error("link {name} is not the sandbox's: {difference}")]
    Foreign {
        /// The link's name.
        name: String,
        /// In what it differs.
        difference: &'static str,
    },
    /// The tap is in a network namespace that this process is not in.
    #[error("link {name} is in network namespace net:[{recorded}], and this is net:[{here}]")]
    Elsewhere {
        /// The link's name.
        name: String,
        /// The number of the namespace in which it was made.
        recorded: u64,
        /// That of the one in which it was looked for.
        here: u64,
    },
    /// The tap is not there.
    #[error("there is no link {0}")]
    Missing(String),
}

/// The network of the namespace it was opened in. Clones share one socket.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    handle: Handle,
    namespace: NetworkNamespace,
    deadline: Duration,
}

impl HostNetwork {
    /// Opens a socket to the kernel. What is asked by it is to be awaited in a
    /// tokio runtime with a clock.
    ///
    /// # Errors
    /// Those of socket(2), or when /proc is not mounted.
    pub fn open() -> Result<Self, NetworkError> {
        Ok(Self {
            handle: connect()?,
            namespace: NetworkNamespace::current()?,
            deadline: DEADLINE,
        })
    }

    /// The namespace it was opened in.
    #[must_use]
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// The IPv4 addresses that some route of the host leads to, its own among
    /// them; default routes apart.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn routed(&self) -> Result<Vec<Block>, NetworkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        let request = self.handle.route().get(question).execute().try_collect();
        let routes: Vec<RouteMessage> = self.ask("list", "routes", request).await?;
        let blocks = routes.iter().filter_map(block_of);
        Ok(blocks.filter(|block| !block.is_everything()).collect())
    }

    /// Awaits the kernel's answer, until the deadline.
    async fn ask<T>(
        &self,
        call: &'static str,
        subject: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetworkError> {
        let answer = self.in_time(call, subject, request).await?;
        answer.map_err(|error| NetworkError::Netlink {
            call,
            subject: subject.to_owned(),
            source: match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            },
        })
    }

    /// Sets a link's parameter of IP (Documentation/networking/ip-sysctl.rst of
    /// Linux), if the kernel has it.
    async fn set_parameter(
        &self,
        family: &str,
        link: &str,
        parameter: &str,
        value: &'static str,
    ) -> Result<(), NetworkError> {
        let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{parameter}"));
        let subject = path.display().to_string();
        // It takes the lock of all links too.
        let write = spawn_blocking(move || match std::fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("write", &path)(error))
            }
            _ => Ok(()),
        });
        let written = self.in_time("write", &subject, write).await?;
        Ok(written.map_err(|error| NetworkError::Open(error.into()))??)
    }

    async fn in_time<F: Future>(
        &self,
        call: &'static str,
        subject: &str,
        done: F,
    ) -> Result<F::Output, NetworkError> {
        timeout(self.deadline, done)
            .await
            .map_err(|_| NetworkError::Deadline {
                call,
                subject: subject.to_owned(),
                deadline: self.deadline,
            })
    }
}

impl NetworkError {
    /// The number by which the kernel has refused a request.
    fn refusal(&self) -> Option<i32> {
        match self {
            NetworkError::Netlink { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A socket, and a thread that serves it until nobody can ask any more: the
/// kernel does what it is asked inside of sendmsg(2), which must not keep the
/// caller's only thread from seeing a deadline pass.
fn connect() -> Result<Handle, NetworkError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            // The caller waits for it.
            Err(error) => return drop(sender.send(Err(error))),
        };
        runtime.block_on(async {
            match rtnetlink::new_connection() {
                Ok((connection, handle, notices)) => {
                    drop(notices);
                    drop(sender.send(Ok(handle)));
                    connection.await;
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        });
    };
    // It is in this thread's network namespace, clone(2).
    let thread = thread::Builder::new().name("netlink".to_owned());
    thread.spawn(serve).map_err(NetworkError::Open)?;
    let opened = receiver
        .recv()
        .unwrap_or_else(|gone| Err(io::Error::other(gone)));
    opened.map_err(NetworkError::Open)
}

/// Where a route leads; those of multicast and broadcast lead nowhere of ours.
fn block_of(route: &RouteMessage) -> Option<Block> {
    if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    route.attributes.iter().find_map(|one| match one {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(Block::around(
            *address,
            route.header.destination_prefix_length,
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
