//! One sandbox's tap device: known again, fenced, opened, removed.

use super::{
    AddressPair, HardwareAddress, HostNetwork, NetworkError, PAIR_LENGTH, refused, set_parameter,
};
use crate::config::SandboxId;
use futures::TryStreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;

/// A tap as it is recorded: beside what it is for, all by which it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapRecord {
    /// Its name.
    pub name: String,
    /// Whose it is; its alias.
    pub sandbox: SandboxId,
    /// Its index, once it was made (rtnetlink(7)).
    pub index: Option<u32>,
    /// The addresses of its link.
    pub addresses: AddressPair,
    /// The guest's hardware address.
    pub guest: HardwareAddress,
    /// The host's, once it was made.
    pub host: Option<HardwareAddress>,
}

/// A link that is there.
struct Found {
    index: u32,
    name: Option<String>,
    is_tap: bool,
    is_up: bool,
    alias: Option<String>,
    hardware_address: Option<HardwareAddress>,
}

impl TapRecord {
    /// The tap that a sandbox is to have.
    #[must_use]
    pub fn planned(sandbox: &SandboxId, addresses: AddressPair, guest: HardwareAddress) -> Self {
        Self {
            // 15 bytes is the most: there is room for all of the id, so that no two
            // sandboxes ever mean the same link.
            name: format!("tg{sandbox}"),
            sandbox: sandbox.clone(),
            index: None,
            addresses,
            guest,
            host: None,
        }
    }

    /// In what a link that has its name or index is not it.
    fn difference(&self, found: &Found) -> Option<&'static str> {
        let fresh = self.index.is_none();
        match &found.alias {
            _ if !found.is_tap => Some("it is no tap"),
            _ if !fresh && self.index != Some(found.index) => Some("it has another index"),
            Some(alias) if alias != self.sandbox.as_str() => Some("it has another alias"),
            Some(_) => None,
            // Killed between making it and giving it its alias.
            None if fresh && !found.is_up => None,
            None => Some("it has no alias"),
        }
    }
}

impl Found {
    fn from_message(message: &LinkMessage) -> Self {
        let mut found = Self {
            index: message.header.index,
            name: None,
            is_tap: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            alias: None,
            hardware_address: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name = Some(name.clone()),
                LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
                LinkAttribute::Address(bytes) => {
                    found.hardware_address = HardwareAddress::from_bytes(bytes);
                }
                LinkAttribute::LinkInfo(infos) => {
                    found.is_tap = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        found
    }
}

impl HostNetwork {
    /// Takes a tap that was just made for the sandbox: gives it its alias, and
    /// notes its index and hardware address. It stays fenced.
    ///
    /// # Errors
    /// When it is not there, or the kernel refuses.
    pub async fn claim(&self, tap: &mut TapRecord) -> Result<(), NetworkError> {
        let found = self.ours(tap).await?;
        let alias = LinkUnspec::new_with_index(found.index).alias(tap.sandbox.as_str());
        self.change(tap, "alias", alias).await?;
        tap.index = Some(found.index);
        tap.host = found.hardware_address;
        Ok(())
    }

    /// Opens the way for a guest that has its own address: the link goes up
    /// with the host's address, and takes packets from the guest's only.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel refuses; it is to be fenced
    /// again then.
    pub async fn lift_fence(&self, tap: &TapRecord) -> Result<(), NetworkError> {
        let index = self.ours(tap).await?.index;
        // Strict: a packet is dropped whose source is not routed to this link,
        // and only the guest's address is (RFC 3704). A host that filters loosely
        // on all links overrules it (ip-sysctl.rst: the larger number counts),
        // which `doctor` tells.
        set_parameter("ipv4", &tap.name, "rp_filter", "1")?;
        // No address of IPv6 is given, and none is to be made up by the kernel
        // or offered by the guest. A kernel without IPv6 has no such file.
        if let Err(error) = set_parameter("ipv6", &tap.name, "disable_ipv6", "1")
            && error.source.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let host = tap.addresses.host;
        self.handle
            .address()
            .add(index, host.into(), PAIR_LENGTH)
            .replace()
            .execute()
            .await
            .map_err(refused("add address", format!("{host} to {}", tap.name)))?;
        self.change(tap, "set up", LinkUnspec::new_with_index(index).up())
            .await?;
        let guest = tap.addresses.guest;
        self.handle
            .neighbours()
            .add(index, guest.into())
            .state(NeighbourState::Permanent)
            .link_layer_address(tap.guest.as_bytes())
            .replace()
            .execute()
            .await
            .map_err(refused("add neighbor", format!("{guest} dev {}", tap.name)))
    }

    /// Closes the way again: down, and without an address.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel refuses.
    pub async fn fence(&self, tap: &TapRecord) -> Result<(), NetworkError> {
        let index = self.ours(tap).await?.index;
        self.change(tap, "set down", LinkUnspec::new_with_index(index).down())
            .await?;
        for address in self.addresses_of(index).await? {
            let request = self.handle.address().del(address).execute();
            request
                .await
                .map_err(refused("remove address", &tap.name))?;
        }
        Ok(())
    }

    /// Whether frames of the guest go anywhere.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel does not tell.
    pub async fn is_fenced(&self, tap: &TapRecord) -> Result<bool, NetworkError> {
        let found = self.ours(tap).await?;
        Ok(!found.is_up && self.addresses_of(found.index).await?.is_empty())
    }

    /// Removes a tap, if it is there; says whether it was. A link that is not
    /// the recorded one stays.
    ///
    /// # Errors
    /// [`NetworkError::Foreign`], or what the kernel refuses.
    pub async fn remove_tap(&self, tap: &TapRecord) -> Result<bool, NetworkError> {
        let found = match self.ours(tap).await {
            Ok(found) => found,
            Err(NetworkError::Missing(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        // By index: a name might be another's by now.
        match self.handle.link().del(found.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(refused("remove link", &tap.name)(error)),
        }
    }

    /// The link that is the recorded tap.
    async fn ours(&self, tap: &TapRecord) -> Result<Found, NetworkError> {
        let request = self.handle.link().get();
        let request = match tap.index {
            Some(index) => request.match_index(index),
            None => request.match_name(&tap.name),
        };
        let found = match request.execute().try_next().await {
            Ok(Some(message)) => Found::from_message(&message),
            Ok(None) => return Err(NetworkError::Missing(tap.name.clone())),
            Err(error) if is_missing(&error) => {
                return Err(NetworkError::Missing(tap.name.clone()));
            }
            Err(error) => return Err(refused("get link", &tap.name)(error)),
        };
        match tap.difference(&found) {
            None => Ok(found),
            // After a boot of the host indices are given anew: it is another
            // link altogether, and ours is gone.
            Some(_) if tap.index.is_some() && found.name.as_ref() != Some(&tap.name) => {
                Err(NetworkError::Missing(tap.name.clone()))
            }
            Some(difference) => Err(NetworkError::Foreign {
                name: tap.name.clone(),
                difference,
            }),
        }
    }

    async fn change(
        &self,
        tap: &TapRecord,
        call: &'static str,
        request: rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetworkError> {
        let request = self.handle.link().change(request.build());
        request.execute().await.map_err(refused(call, &tap.name))
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let addresses: Vec<AddressMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(refused("list", "addresses"))?;
        // The kernel heeds the question's index only on sockets that ask for
        // strict checking, and else tells of all links.
        let own = addresses.into_iter();
        Ok(own
            .filter(|address| address.header.index == index)
            .collect())
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return false;
    };
    message.to_io().raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Removes a tap as [`HostNetwork::remove_tap`] does, for callers outside of a
/// runtime and inside one alike: on a thread that ends with it.
///
/// # Errors
/// Those of [`HostNetwork::remove_tap`].
pub(crate) fn remove_tap_now(tap: &TapRecord) -> Result<bool, NetworkError> {
    let remove = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(NetworkError::Open)?;
        runtime.block_on(async { HostNetwork::open()?.remove_tap(tap).await })
    };
    std::thread::scope(|scope| {
        let removed = scope.spawn(remove).join();
        removed.unwrap_or_else(|_| {
            Err(NetworkError::Open(io::Error::other(
                "the thread has panicked",
            )))
        })
    })
}
