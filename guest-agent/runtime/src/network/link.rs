//! Links and their addresses.

use super::{HardwareAddress, IpPrefix, Network, NetworkError, failed};
use futures::TryStreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use std::collections::HashMap;

/// `IFNAMSIZ` - 1, linux/if.h: the longest name, in bytes.
const NAME_MAX: usize = 15;

/// An interface: what it is to be, or is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// The name it is to have; with no hardware address, the one it has.
    pub name: String,
    /// By which it is found.
    pub hardware_address: Option<HardwareAddress>,
    /// The largest packet, in bytes; none leaves it as it is.
    pub mtu: Option<u32>,
    /// Whether it does without ARP.
    pub no_arp: bool,
    /// Added to those it has, replacing equal ones.
    pub addresses: Vec<IpPrefix>,
}

/// A link that is there.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    hardware_address: Option<HardwareAddress>,
    mtu: Option<u32>,
    no_arp: bool,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            hardware_address: None,
            mtu: None,
            no_arp: message.header.flags.contains(LinkFlags::Noarp),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::Address(bytes) => {
                    link.hardware_address = Some(HardwareAddress::from_bytes(bytes));
                }
                _ => {}
            }
        }
        link
    }
}

impl Network {
    /// Makes an interface what `spec` says, and sets it up. It is found by its
    /// hardware address, and if no link has that, by its name: it then gets the
    /// address. A link in the way of the name takes the found one's.
    ///
    /// # Errors
    /// [`NetworkError::LinkNotFound`], or what the kernel refuses.
    pub async fn update_interface(&self, spec: &InterfaceSpec) -> Result<(), NetworkError> {
        let links = self.links().await?;
        let link = find(&links, spec)?;
        let in_the_way = links
            .iter()
            .find(|other| other.name == spec.name && other.index != link.index);
        let renamed = !spec.name.is_empty() && spec.name != link.name;
        // A name and an address are changed while the link is down.
        self.change(link, LinkUnspec::new_with_index(link.index).down())
            .await?;
        if let Some(other) = in_the_way.filter(|_| renamed) {
            self.swap_names(link, other).await?;
        }
        let mut request = LinkUnspec::new_with_index(link.index).arp(!spec.no_arp);
        if renamed {
            request = request.name(&spec.name);
        }
        if let Some(mtu) = spec.mtu {
            request = request.mtu(mtu);
        }
        if let Some(address) = &spec.hardware_address
            && link.hardware_address.as_ref() != Some(address)
        {
            request = request.address(address.as_bytes().to_vec());
        }
        self.change(link, request).await?;
        for prefix in &spec.addresses {
            self.add_address(link, *prefix).await?;
        }
        self.change(link, LinkUnspec::new_with_index(link.index).up())
            .await
    }

    /// The links that are there, the loopback one too.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub async fn list_interfaces(&self) -> Result<Vec<InterfaceSpec>, NetworkError> {
        let mut addresses = self.addresses().await?;
        let links = self.links().await?;
        Ok(links
            .into_iter()
            .map(|link| InterfaceSpec {
                addresses: addresses.remove(&link.index).unwrap_or_default(),
                name: link.name,
                hardware_address: link.hardware_address,
                mtu: link.mtu,
                no_arp: link.no_arp,
            })
            .collect())
    }

    /// The index of the link of that name.
    pub(super) async fn index_of(&self, name: &str) -> Result<u32, NetworkError> {
        let links = self.links().await?;
        let link = links.iter().find(|link| link.name == name);
        link.map(|link| link.index).ok_or_else(|| not_found(name))
    }

    /// The name of each link, by its index.
    pub(super) async fn names(&self) -> Result<HashMap<u32, String>, NetworkError> {
        let links = self.links().await?;
        Ok(links
            .into_iter()
            .map(|link| (link.index, link.name))
            .collect())
    }

    async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        self.handle
            .link()
            .get()
            .execute()
            .map_ok(|message| Link::from_message(&message))
            .try_collect()
            .await
            .map_err(failed("list", "links"))
    }

    async fn addresses(&self) -> Result<HashMap<u32, Vec<IpPrefix>>, NetworkError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list", "addresses"))?;
        let mut addresses: HashMap<u32, Vec<IpPrefix>> = HashMap::new();
        for message in messages {
            if let Some(prefix) = prefix_of(&message) {
                addresses
                    .entry(message.header.index)
                    .or_default()
                    .push(prefix);
            }
        }
        Ok(addresses)
    }

    async fn change(
        &self,
        link: &Link,
        request: rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetworkError> {
        self.handle
            .link()
            .change(request.build())
            .execute()
            .await
            .map_err(failed("change link", &link.name))
    }

    async fn add_address(&self, link: &Link, prefix: IpPrefix) -> Result<(), NetworkError> {
        self.handle
            .address()
            .add(link.index, prefix.address(), prefix.length())
            .replace()
            .execute()
            .await
            .map_err(failed("add address", format!("{prefix} to {}", link.name)))
    }

    /// Gives `other` the name of `link`, whose own is then free to be changed.
    async fn swap_names(&self, link: &Link, other: &Link) -> Result<(), NetworkError> {
        let rename =
            |one: &Link, name: &str| LinkUnspec::new_with_index(one.index).name(name).build();
        let down = LinkUnspec::new_with_index(other.index).down();
        self.change(other, down).await?;
        let room = NAME_MAX - "_tmp".len();
        let stem: String = link.name.chars().take(room).collect();
        let between = format!("{stem}_tmp");
        let requests = [
            (other, rename(other, &between)),
            // The found link keeps no name of its own until its own change.
            (link, rename(link, &other.name)),
            (other, rename(other, &link.name)),
        ];
        for (one, request) in requests {
            self.handle
                .link()
                .change(request)
                .execute()
                .await
                .map_err(failed("rename link", &one.name))?;
        }
        let up = LinkUnspec::new_with_index(other.index).up();
        self.change(other, up).await
    }
}

/// By hardware address, else by name.
fn find<'a>(links: &'a [Link], spec: &InterfaceSpec) -> Result<&'a Link, NetworkError> {
    let by_address = links.iter().find(|link| {
        spec.hardware_address.is_some() && link.hardware_address == spec.hardware_address
    });
    by_address
        .or_else(|| links.iter().find(|link| link.name == spec.name))
        .ok_or_else(|| match &spec.hardware_address {
            Some(address) => not_found(&address.to_string()),
            None => not_found(&spec.name),
        })
}

fn not_found(wanted: &str) -> NetworkError {
    NetworkError::LinkNotFound {
        wanted: wanted.into(),
    }
}

/// A point-to-point link's own address is the local one.
fn prefix_of(message: &AddressMessage) -> Option<IpPrefix> {
    let local = message.attributes.iter().find_map(|one| match one {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|one| match one {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpPrefix::new(address, message.header.prefix_len).ok()
}
