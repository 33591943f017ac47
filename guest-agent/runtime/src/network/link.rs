//! Links and their addresses.

use super::message::{Message, address, bytes_of, number};
use super::{HardwareAddress, IpPrefix, Network, NetworkError, failed};
use libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, RTM_GETADDR,
    RTM_GETLINK, RTM_NEWADDR, RTM_SETLINK,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

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
    fn from_message(message: &Message) -> Option<Self> {
        let (header, attributes) = message.parts(LinkHeader::parse)?;
        let mut link = Self {
            index: header.index,
            name: String::new(),
            hardware_address: None,
            mtu: None,
            no_arp: header.flags.contains(LinkFlags::Noarp),
        };
        for (kind, value) in attributes {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = number(value),
                IFLA_ADDRESS => link.hardware_address = Some(HardwareAddress::from_bytes(value)),
                _ => {}
            }
        }
        Some(link)
    }

    /// A request to change it: the flags of `mask` become those of `flags`.
    fn request(&self, mask: LinkFlags, flags: LinkFlags) -> Message {
        let header = LinkHeader {
            index: self.index,
            flags,
            change_mask: mask,
            ..LinkHeader::default()
        };
        Message::new(RTM_SETLINK, &header)
    }

    fn up(&self) -> Message {
        self.request(LinkFlags::Up, LinkFlags::Up)
    }

    fn down(&self) -> Message {
        self.request(LinkFlags::Up, LinkFlags::empty())
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
        self.update_link(&links, link, spec).await
    }

    /// The same, for the link that has the name `found`: it gets the hardware
    /// address of `spec`, whoever else has that.
    ///
    /// # Errors
    /// As [`Network::update_interface`].
    pub async fn update_found_interface(
        &self,
        found: &str,
        spec: &InterfaceSpec,
    ) -> Result<(), NetworkError> {
        let links = self.links().await?;
        let link = links.iter().find(|link| link.name == found);
        let link = link.ok_or_else(|| not_found(found))?;
        self.update_link(&links, link, spec).await
    }

    async fn update_link(
        &self,
        links: &[Link],
        link: &Link,
        spec: &InterfaceSpec,
    ) -> Result<(), NetworkError> {
        let in_the_way = links
            .iter()
            .find(|other| other.name == spec.name && other.index != link.index);
        let renamed = !spec.name.is_empty() && spec.name != link.name;
        // A name and an address are changed while the link is down.
        self.change(link, link.down()).await?;
        if let Some(other) = in_the_way.filter(|_| renamed) {
            self.swap_names(link, other).await?;
        }
        let no_arp = if spec.no_arp {
            LinkFlags::Noarp
        } else {
            LinkFlags::empty()
        };
        let mut request = link.request(LinkFlags::Noarp, no_arp);
        if renamed {
            request = named(request, &spec.name);
        }
        if let Some(mtu) = spec.mtu {
            request = request.with(IFLA_MTU, &mtu.to_ne_bytes());
        }
        if let Some(address) = &spec.hardware_address
            && link.hardware_address.as_ref() != Some(address)
        {
            request = request.with(IFLA_ADDRESS, address.as_bytes());
        }
        self.change(link, request).await?;
        for prefix in &spec.addresses {
            self.add_address(link, *prefix).await?;
        }
        self.change(link, link.up()).await
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
        let question = Message::new(RTM_GETLINK, &LinkHeader::default());
        let answers = self.kernel.list(question).await;
        let answers = answers.map_err(failed("list", "links"))?;
        Ok(answers.iter().filter_map(Link::from_message).collect())
    }

    async fn addresses(&self) -> Result<HashMap<u32, Vec<IpPrefix>>, NetworkError> {
        let question = Message::new(RTM_GETADDR, &AddressHeader::default());
        let answers = self.kernel.list(question).await;
        let answers = answers.map_err(failed("list", "addresses"))?;
        let mut addresses: HashMap<u32, Vec<IpPrefix>> = HashMap::new();
        for (index, prefix) in answers.iter().filter_map(prefix_of) {
            addresses.entry(index).or_default().push(prefix);
        }
        Ok(addresses)
    }

    async fn change(&self, link: &Link, request: Message) -> Result<(), NetworkError> {
        let changed = self.kernel.change(request).await;
        changed.map_err(failed("change link", &link.name))
    }

    async fn add_address(&self, link: &Link, prefix: IpPrefix) -> Result<(), NetworkError> {
        let added = self.kernel.replace(new_address(link.index, prefix)).await;
        added.map_err(failed("add address", format!("{prefix} to {}", link.name)))
    }

    /// Gives `other` the name of `link`, whose own is then free to be changed.
    async fn swap_names(&self, link: &Link, other: &Link) -> Result<(), NetworkError> {
        let none = LinkFlags::empty();
        let rename = |one: &Link, name: &str| named(one.request(none, none), name);
        self.change(other, other.down()).await?;
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
            let renamed = self.kernel.change(request).await;
            renamed.map_err(failed("rename link", &one.name))?;
        }
        self.change(other, other.up()).await
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

/// A request that also names the link; the kernel wants the name to end in 0.
fn named(request: Message, name: &str) -> Message {
    let name: Vec<u8> = name.bytes().chain([0]).collect();
    request.with(IFLA_IFNAME, &name)
}

/// Text up to the 0 that ends it.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// A request for an address; one of IPv4 gets the broadcast address of its
/// network, if that has one.
fn new_address(index: u32, prefix: IpPrefix) -> Message {
    let (own, length) = (prefix.address(), prefix.length());
    let header = AddressHeader {
        family: match own {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        prefix_len: length,
        index,
        ..AddressHeader::default()
    };
    let bytes = bytes_of(own);
    let message = Message::new(RTM_NEWADDR, &header)
        .with(IFA_ADDRESS, &bytes)
        .with(IFA_LOCAL, &bytes);
    match own {
        IpAddr::V4(own) if length < 31 => {
            let broadcast = Ipv4Addr::from_bits(own.to_bits() | (u32::MAX >> length));
            message.with(IFA_BROADCAST, &broadcast.octets())
        }
        _ => message,
    }
}

/// The address in a message, and the index of its link. A point-to-point link's
/// own address is the local one.
fn prefix_of(message: &Message) -> Option<(u32, IpPrefix)> {
    let (header, attributes) = message.parts(AddressHeader::parse)?;
    let (mut local, mut other) = (None, None);
    for (kind, value) in attributes {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => other = address(value),
            _ => {}
        }
    }
    let prefix = IpPrefix::new(local.or(other)?, header.prefix_len).ok()?;
    Some((header.index, prefix))
}
