//! One sandbox's tap device: known again, fenced, opened, removed.

use super::{
    AddressPair, HardwareAddress, HostNetwork, NetworkError, NetworkNamespace, PAIR_LENGTH,
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
    /// Where it is. Taps were recorded without it once; those are looked for
    /// wherever we are.
    #[serde(default)]
    pub namespace: Option<NetworkNamespace>,
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
    /// The tap that a sandbox is to have; its namespace is to be noted before
    /// it is made.
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
            namespace: None,
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
            // Killed between making it and giving it its alias, before it is up.
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
    /// Takes a tap that was just made for the sandbox: gives it its alias,
    /// fences it, and notes its index and hardware address.
    ///
    /// # Errors
    /// When it is not there, the kernel refuses, or cannot filter.
    pub async fn claim(&self, tap: &mut TapRecord) -> Result<(), NetworkError> {
        let found = self.ours(tap).await?;
        let change = LinkUnspec::new_with_index(found.index).alias(tap.sandbox.as_str());
        self.change("set the alias of", tap, change).await?;
        // No address of IPv6 is given, and none is to be made up by the kernel.
        self.set_parameter("ipv6", &tap.name, "disable_ipv6", "1")
            .await?;
        self.drop_frames(tap, found.index).await?;
        // Up although it is fenced: a VMM cannot write to a tap that is down, and
        // the guest of a clone may send as soon as it has its addresses.
        let change = LinkUnspec::new_with_index(found.index).up();
        self.change("set up", tap, change).await?;
        tap.index = Some(found.index);
        tap.host = found.hardware_address;
        Ok(())
    }

    /// Opens the way for a guest that has its own addresses: the link has the
    /// host's, and takes frames that bear the guest's only, whatever the filter
    /// of sources (`rp_filter`) of the host is.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel refuses; it is to be fenced
    /// again then.
    pub async fn lift_fence(&self, tap: &TapRecord) -> Result<(), NetworkError> {
        let index = self.ours(tap).await?.index;
        // It was, since the tap is up; but nothing else may be behind the filter
        // that passes frames.
        self.drop_frames(tap, index).await?;
        let AddressPair { host, guest } = tap.addresses;
        let addresses = self.handle.address();
        let address = addresses.add(index, host.into(), PAIR_LENGTH).replace();
        self.ask("add an address to", &tap.name, address.execute())
            .await?;
        let neighbours = self.handle.neighbours();
        let neighbour = neighbours
            .add(index, guest.into())
            .state(NeighbourState::Permanent)
            .link_layer_address(tap.guest.as_bytes())
            .replace();
        self.ask("add a neighbor to", &tap.name, neighbour.execute())
            .await?;
        self.pass_own_frames(tap, index).await
    }

    /// Closes the way again: nothing passes, and the link has no address.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel refuses.
    pub async fn fence(&self, tap: &TapRecord) -> Result<(), NetworkError> {
        let index = self.ours(tap).await?.index;
        self.drop_frames(tap, index).await?;
        self.pass_no_frames(tap, index).await?;
        for address in self.addresses_of(index).await? {
            let removal = self.handle.address().del(address).execute();
            self.ask("remove an address of", &tap.name, removal).await?;
        }
        Ok(())
    }

    /// Whether no frame of the guest goes anywhere, by what the kernel says.
    ///
    /// # Errors
    /// When the tap is not there, or the kernel does not tell.
    pub async fn is_fenced(&self, tap: &TapRecord) -> Result<bool, NetworkError> {
        let index = self.ours(tap).await?.index;
        Ok(self.drops_all_frames(tap, index).await? && self.addresses_of(index).await?.is_empty())
    }

    /// Removes a tap, if it is there; says whether it was. A link that is not
    /// the recorded one stays.
    ///
    /// # Errors
    /// [`NetworkError::Foreign`], [`NetworkError::Elsewhere`], or what the
    /// kernel refuses.
    pub async fn remove_tap(&self, tap: &TapRecord) -> Result<bool, NetworkError> {
        let found = match self.ours(tap).await {
            Ok(found) => found,
            Err(NetworkError::Missing(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        // By index: a name might be another's by now.
        let removal = self.handle.link().del(found.index).execute();
        match self.ask("remove link", &tap.name, removal).await {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The link that is the recorded tap.
    async fn ours(&self, tap: &TapRecord) -> Result<Found, NetworkError> {
        let missing = || NetworkError::Missing(tap.name.clone());
        match &tap.namespace {
            Some(recorded) if recorded.boot_id != self.namespace.boot_id => return Err(missing()),
            Some(recorded) if *recorded != self.namespace => {
                return Err(NetworkError::Elsewhere {
                    name: tap.name.clone(),
                    recorded: recorded.inode,
                    here: self.namespace.inode,
                });
            }
            _ => {}
        }
        let request = self.handle.link().get();
        let request = match tap.index {
            Some(index) => request.match_index(index),
            None => request.match_name(&tap.name),
        };
        let mut links = request.execute();
        let found = match self.ask("get link", &tap.name, links.try_next()).await {
            Ok(Some(message)) => Found::from_message(&message),
            Ok(None) => return Err(missing()),
            Err(error) if is_missing(&error) => return Err(missing()),
            Err(error) => return Err(error),
        };
        match tap.difference(&found) {
            None => Ok(found),
            // After a boot of the host indices are given anew: it is another
            // link altogether, and ours is gone.
            Some(_) if tap.index.is_some() && found.name.as_ref() != Some(&tap.name) => {
                Err(missing())
            }
            Some(difference) => Err(NetworkError::Foreign {
                name: tap.name.clone(),
                difference,
            }),
        }
    }

    async fn change(
        &self,
        call: &'static str,
        tap: &TapRecord,
        change: rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetworkError> {
        let request = self.handle.link().change(change.build());
        self.ask(call, &tap.name, request.execute()).await
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let request = request.execute().try_collect();
        let addresses: Vec<AddressMessage> = self.ask("list", "addresses", request).await?;
        // The kernel heeds the question's index only on sockets that ask for
        // strict checking, and else tells of all links.
        let own = addresses.into_iter();
        Ok(own
            .filter(|address| address.header.index == index)
            .collect())
    }
}

fn is_missing(error: &NetworkError) -> bool {
    error.refusal() == Some(Errno::NODEV.raw_os_error())
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
