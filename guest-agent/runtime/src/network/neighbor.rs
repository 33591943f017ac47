//! Neighbors: who has which address on a link, known beforehand.

use super::message::{Message, bytes_of};
use super::{HardwareAddress, Network, NetworkError, failed};
use libc::{NDA_DST, NDA_LLADDR, RTM_NEWNEIGH};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourHeader, NeighbourState};
use std::net::IpAddr;

/// A neighbor to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighborSpec {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub hardware_address: Option<HardwareAddress>,
    /// The name of the link it is on.
    pub device: String,
    /// `NUD_*`, linux/neighbour.h; 0 is a permanent one.
    pub state: u16,
    /// `NTF_*`, linux/neighbour.h.
    pub flags: u8,
}

impl NeighborSpec {
    fn to_message(&self, index: u32) -> Message {
        let header = NeighbourHeader {
            family: match self.address {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            },
            ifindex: index,
            state: match self.state {
                0 => NeighbourState::Permanent,
                state => state.into(),
            },
            flags: NeighbourFlags::from_bits_retain(self.flags),
            ..NeighbourHeader::default()
        };
        let message = Message::new(RTM_NEWNEIGH, &header).with(NDA_DST, &bytes_of(self.address));
        match &self.hardware_address {
            Some(address) => message.with(NDA_LLADDR, address.as_bytes()),
            None => message,
        }
    }
}

impl Network {
    /// Adds neighbors, replacing equal ones.
    ///
    /// # Errors
    /// [`NetworkError::LinkNotFound`], or what the kernel refuses; what was
    /// added before stays.
    pub async fn add_neighbors(&self, neighbors: &[NeighborSpec]) -> Result<(), NetworkError> {
        for neighbor in neighbors {
            let index = self.index_of(&neighbor.device).await?;
            let request = neighbor.to_message(index);
            let subject = format!("{} dev {}", neighbor.address, neighbor.device);
            let added = self.kernel.replace(request).await;
            added.map_err(failed("add neighbor", subject))?;
        }
        Ok(())
    }
}
