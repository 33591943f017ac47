//! The host's end of a sandbox's network: one tap device each, by
//! rtnetlink(7), in the network namespace of whoever asks.
//!
//! A tap is recorded before it is made, and known again by its index and its
//! alias, which is the sandbox's id: a sweep removes what a kill has left, and
//! nothing of anybody else. A fenced tap is down and has no address, so that no
//! frame of the guest goes anywhere; the fence is lifted when the guest is
//! known to be itself.

mod address;
mod tap;

pub use address::{AddressPair, Block, HardwareAddress, NotAnAddress, PAIR_LENGTH};
pub use tap::TapRecord;

pub(crate) use tap::remove_tap_now;

use super::call::{CallFailed, failed};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::io;
use std::path::Path;

use futures::TryStreamExt;

/// Why the host's network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No socket to the kernel, or no runtime for it.
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
    /// A file below /proc/sys could not be written.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// What is there is not the recorded tap.
    #[error("link {name} is not the sandbox's: {difference}")]
    Foreign {
        /// The link's name.
        name: String,
        /// In what it differs.
        difference: &'static str,
    },
    /// The tap is not there.
    #[error("there is no link {0}")]
    Missing(String),
}

/// The network of the namespace it was opened in. Clones share one socket.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    handle: Handle,
}

impl HostNetwork {
    /// Opens a socket to the kernel. To be called in a tokio runtime.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().map_err(NetworkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The IPv4 addresses that some route of the host leads to, its own among
    /// them; default routes apart.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn routed(&self) -> Result<Vec<Block>, NetworkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        let routes: Vec<RouteMessage> = self
            .handle
            .route()
            .get(question)
            .execute()
            .try_collect()
            .await
            .map_err(refused("list", "routes"))?;
        let blocks = routes.iter().filter_map(block_of);
        Ok(blocks.filter(|block| !block.is_everything()).collect())
    }
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

/// For `map_err` on a request.
fn refused(
    call: &'static str,
    subject: impl Into<String>,
) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let subject = subject.into();
    move |error| NetworkError::Netlink {
        call,
        subject,
        source: match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        },
    }
}

/// Sets a link's parameter of IP (Documentation/networking/ip-sysctl.rst).
fn set_parameter(family: &str, link: &str, parameter: &str, value: &str) -> Result<(), CallFailed> {
    let path = format!("/proc/sys/net/{family}/conf/{link}/{parameter}");
    let path = Path::new(&path);
    std::fs::write(path, value).map_err(failed("write", path))
}

#[cfg(test)]
mod tests;
