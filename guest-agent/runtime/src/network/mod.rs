//! The guest's links, addresses, routes and neighbors, by rtnetlink(7).

mod address;
mod borrowed;
mod counters;
mod link;
mod message;
mod neighbor;
mod route;

pub use address::{HardwareAddress, InvalidAddress, IpPrefix};
pub use borrowed::has_links;
pub use counters::{Counters, LinkCounters, link_counters};
pub use link::InterfaceSpec;
pub use neighbor::NeighborSpec;
pub use route::{RouteSource, RouteSpec};

use message::Kernel;
use std::io;

/// What a thaw makes of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Links and their addresses.
    pub interfaces: Vec<InterfaceSpec>,
    /// Routes.
    pub routes: Vec<RouteSpec>,
    /// Neighbors.
    pub neighbors: Vec<NeighborSpec>,
}

impl NetworkPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.routes.is_empty() && self.neighbors.is_empty()
    }
}

/// Why the network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no such link. Existing clients retry while an error's text
    /// holds "Link not found".
    #[error("Link not found: {wanted}")]
    LinkNotFound {
        /// Its hardware address or name.
        wanted: String,
    },
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
    /// A route's addresses are of two families.
    #[error("route {0} mixes address families")]
    MixedFamilies(String),
    /// The socket to the kernel cannot be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
}

/// The network of the namespace it was made in. Clones share one socket.
#[derive(Debug, Clone)]
pub struct Network {
    kernel: Kernel,
}

impl Network {
    /// Opens a socket to the kernel. To be called in a tokio runtime.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn new() -> Result<Self, NetworkError> {
        Ok(Self {
            kernel: Kernel::open()?,
        })
    }

    /// Makes the network what `plan` says, and nothing else: addresses and
    /// routes that it does not name are another machine's. The loopback link
    /// is left as it is.
    ///
    /// # Errors
    /// As [`Network::apply`].
    pub async fn replace(&self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        self.clear().await?;
        self.apply(plan).await
    }

    /// Does all of `plan`: links, then routes, then neighbors.
    ///
    /// # Errors
    /// The first that failed; what was done before stays, and doing all of it
    /// again is harmless.
    pub async fn apply(&self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        for interface in &plan.interfaces {
            self.update_interface(interface).await?;
        }
        self.update_routes(&plan.routes).await?;
        self.add_neighbors(&plan.neighbors).await
    }
}

/// For `map_err` on a request.
fn failed(
    call: &'static str,
    subject: impl Into<String>,
) -> impl FnOnce(io::Error) -> NetworkError {
    let subject = subject.into();
    move |source| NetworkError::Netlink {
        call,
        subject,
        source,
    }
}

#[cfg(test)]
mod tests;
