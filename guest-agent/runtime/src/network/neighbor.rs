//! Neighbors: who has which address on a link, known beforehand.

use super::{HardwareAddress, Network, NetworkError, failed};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
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

impl Network {
    /// Adds neighbors, replacing equal ones.
    ///
    /// # Errors
    /// [`NetworkError::LinkNotFound`], or what the kernel refuses; what was
    /// added before stays.
    pub async fn add_neighbors(&self, neighbors: &[NeighborSpec]) -> Result<(), NetworkError> {
        for neighbor in neighbors {
            let index = self.index_of(&neighbor.device).await?;
            let mut request = self
                .handle
                .neighbours()
                .add(index, neighbor.address)
                .flags(NeighbourFlags::from_bits_retain(neighbor.flags))
                .replace();
            if neighbor.state != 0 {
                request = request.state(NeighbourState::from(neighbor.state));
            }
            if let Some(address) = &neighbor.hardware_address {
                request = request.link_layer_address(address.as_bytes());
            }
            let subject = format!("{} dev {}", neighbor.address, neighbor.device);
            request
                .execute()
                .await
                .map_err(failed("add neighbor", subject))?;
        }
        Ok(())
    }
}
