//! Links, addresses, routes and neighbors of the guest.

use std::net::IpAddr;
use std::time::Duration;

use protobuf::MessageField;
use protocols::wire::{agent, lifecycle, types};
use serde::{Deserialize, Serialize};

use crate::call::call;
use crate::client::AgentClient;
use crate::error::ClientError;

/// NUD_PERMANENT of linux/neighbour.h.
const PERMANENT: i32 = 0x80;

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix: at most 32, or 128 for IPv6.
    pub length: u8,
}

/// A link of the guest, and how it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, e.g. `eth0`; the link with that hardware address gets it.
    pub name: String,
    /// Its hardware address, six bytes in hexadecimal with colons.
    pub hardware_address: String,
    /// Largest packet, bytes; 0 leaves it as it is.
    pub mtu: u32,
    /// All its addresses.
    pub addresses: Vec<Prefix>,
}

/// A route of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; none is the default route.
    pub destination: Option<Prefix>,
    /// By way of.
    pub gateway: Option<IpAddr>,
    /// By which link.
    pub device: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// rtnetlink(7): 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// Whether it is of IPv6; matters when no address says so.
    pub is_ipv6: bool,
}

/// A neighbor that is known for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// Its address.
    pub address: IpAddr,
    /// By which link.
    pub device: String,
    /// Its hardware address, six bytes in hexadecimal with colons.
    pub hardware_address: String,
}

/// All of it, as a thaw takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Links.
    pub interfaces: Vec<Interface>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Neighbors.
    pub neighbors: Vec<Neighbor>,
}

fn family(address: IpAddr) -> types::IPFamily {
    if address.is_ipv6() {
        types::IPFamily::v6
    } else {
        types::IPFamily::v4
    }
}

impl Prefix {
    fn to_wire(self) -> types::IPAddress {
        types::IPAddress {
            family: family(self.address).into(),
            address: self.address.to_string(),
            mask: self.length.to_string(),
            ..Default::default()
        }
    }
}

impl Interface {
    fn to_wire(&self) -> types::Interface {
        types::Interface {
            device: self.name.clone(),
            name: self.name.clone(),
            IPAddresses: self.addresses.iter().map(|one| one.to_wire()).collect(),
            mtu: self.mtu.into(),
            hwAddr: self.hardware_address.clone(),
            ..Default::default()
        }
    }
}

impl Route {
    fn to_wire(&self) -> types::Route {
        let text = |address: Option<IpAddr>| address.map(|one| one.to_string()).unwrap_or_default();
        let destination = self
            .destination
            .map(|to| format!("{}/{}", to.address, to.length));
        let known = self.destination.map(|to| to.address).or(self.gateway);
        let family = match known {
            Some(address) => family(address),
            None if self.is_ipv6 => types::IPFamily::v6,
            None => types::IPFamily::v4,
        };
        types::Route {
            dest: destination.unwrap_or_default(),
            gateway: text(self.gateway),
            device: self.device.clone(),
            source: text(self.source),
            scope: self.scope.into(),
            family: family.into(),
            ..Default::default()
        }
    }
}

impl Neighbor {
    fn to_wire(&self) -> types::ARPNeighbor {
        types::ARPNeighbor {
            toIPAddress: MessageField::some(types::IPAddress {
                family: family(self.address).into(),
                address: self.address.to_string(),
                ..Default::default()
            }),
            device: self.device.clone(),
            lladdr: self.hardware_address.clone(),
            state: PERMANENT,
            ..Default::default()
        }
    }
}

impl Network {
    pub(crate) fn to_wire(&self) -> lifecycle::Network {
        lifecycle::Network {
            interfaces: self.interfaces.iter().map(Interface::to_wire).collect(),
            routes: self.routes.iter().map(Route::to_wire).collect(),
            neighbors: self.neighbors.iter().map(Neighbor::to_wire).collect(),
            ..Default::default()
        }
    }
}

impl AgentClient {
    /// Makes a link as described. An error whose message holds `Link not
    /// found` means that the device has not appeared yet.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn update_interface(
        &self,
        interface: &Interface,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::UpdateInterfaceRequest {
            interface: MessageField::some(interface.to_wire()),
            ..Default::default()
        };
        call("UpdateInterface", deadline, |context| {
            self.agent.update_interface(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Makes these the routes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn update_routes(
        &self,
        routes: &[Route],
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::UpdateRoutesRequest {
            routes: MessageField::some(agent::Routes {
                Routes: routes.iter().map(Route::to_wire).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        call("UpdateRoutes", deadline, |context| {
            self.agent.update_routes(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Makes these neighbors known for good.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn add_neighbors(
        &self,
        neighbors: &[Neighbor],
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::AddARPNeighborsRequest {
            neighbors: MessageField::some(agent::ARPNeighbors {
                ARPNeighbors: neighbors.iter().map(Neighbor::to_wire).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        call("AddARPNeighbors", deadline, |context| {
            self.agent.add_arp_neighbors(context, &request)
        })
        .await?;
        Ok(())
    }
}
