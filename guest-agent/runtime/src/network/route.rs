//! Routes of the main table.

use super::address::bits_of;
use super::message::{Message, address, attributes_of, bytes_of, number};
use super::{InvalidAddress, IpPrefix, Network, NetworkError, failed};
use libc::{
    RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_SRC, RTA_TABLE,
    RTM_GETROUTE, RTM_NEWROUTE,
};
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteProtocol, RouteScope, RouteType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The metric that is the MTU, linux/rtnetlink.h.
const RTAX_MTU: u16 = 2;

/// A route: what it is to be, or is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where it leads; none is everywhere else.
    pub destination: Option<IpPrefix>,
    /// By whom; none is at once.
    pub gateway: Option<IpAddr>,
    /// The name of the link it goes out by.
    pub device: String,
    /// From where.
    pub source: Option<RouteSource>,
    /// `RT_SCOPE_*`, rtnetlink(7).
    pub scope: u8,
    /// `RTNH_F_*`, linux/rtnetlink.h.
    pub flags: u32,
    /// The largest packet on it, in bytes.
    pub mtu: Option<u32>,
    /// Which family a route has that names no address.
    pub is_ipv6: bool,
}

/// What a route says of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteSource {
    /// It holds for packets from there.
    Prefix(IpPrefix),
    /// The address packets get that have none.
    Preferred(IpAddr),
}

impl FromStr for RouteSource {
    type Err = InvalidAddress;

    /// `ADDRESS/LENGTH` is a prefix, unless the length is 0; an address alone
    /// is a preferred one.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let prefix: IpPrefix = text.parse()?;
        Ok(if text.contains('/') && prefix.length() > 0 {
            Self::Prefix(prefix)
        } else {
            Self::Preferred(prefix.address())
        })
    }
}

impl fmt::Display for RouteSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(out),
            Self::Preferred(address) => address.fmt(out),
        }
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(destination) => write!(out, "{destination}")?,
            None => write!(out, "default")?,
        }
        if let Some(gateway) = self.gateway {
            write!(out, " via {gateway}")?;
        }
        write!(out, " dev {}", self.device)
    }
}

impl RouteSpec {
    fn family(&self) -> AddressFamily {
        let is_ipv6 = self
            .destination
            .map(|prefix| prefix.address())
            .or(self.gateway)
            .map_or(self.is_ipv6, |address| address.is_ipv6());
        if is_ipv6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        }
    }

    fn to_message(&self, index: u32) -> Result<Message, NetworkError> {
        let family = self.family();
        let checked = |address: IpAddr| {
            if address.is_ipv6() == (family == AddressFamily::Inet6) {
                Ok(bytes_of(address))
            } else {
                Err(NetworkError::MixedFamilies(self.to_string()))
            }
        };
        let source = match self.source {
            Some(RouteSource::Prefix(prefix)) => prefix.length(),
            _ => 0,
        };
        let header = RouteHeader {
            address_family: family,
            destination_prefix_length: self.destination.map_or(0, |prefix| prefix.length()),
            source_prefix_length: source,
            table: RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: RouteScope::from(self.scope),
            kind: RouteType::Unicast,
            flags: RouteFlags::from_bits_retain(self.flags),
            ..RouteHeader::default()
        };
        let mut message = Message::new(RTM_NEWROUTE, &header).with(RTA_OIF, &index.to_ne_bytes());
        if let Some(destination) = self.destination {
            message = message.with(RTA_DST, &checked(destination.address())?);
        }
        if let Some(gateway) = self.gateway {
            message = message.with(RTA_GATEWAY, &checked(gateway)?);
        }
        message = match self.source {
            Some(RouteSource::Prefix(prefix)) => message.with(RTA_SRC, &checked(prefix.address())?),
            Some(RouteSource::Preferred(own)) => message.with(RTA_PREFSRC, &checked(own)?),
            None => message,
        };
        if let Some(mtu) = self.mtu {
            let metric = DefaultNla::new(RTAX_MTU, mtu.to_ne_bytes().to_vec());
            let mut metrics = vec![0; metric.buffer_len()];
            metric.emit(&mut metrics);
            message = message.with(RTA_METRICS | NLA_F_NESTED, &metrics);
        }
        Ok(message)
    }
}

impl Network {
    /// Adds routes, replacing equal ones: those without a gateway first, since
    /// the others may lead through them.
    ///
    /// # Errors
    /// [`NetworkError::LinkNotFound`], or what the kernel refuses; what was
    /// added before stays.
    pub async fn update_routes(&self, routes: &[RouteSpec]) -> Result<(), NetworkError> {
        let (direct, through): (Vec<_>, Vec<_>) =
            routes.iter().partition(|route| route.gateway.is_none());
        for route in direct.into_iter().chain(through) {
            let index = self.index_of(&route.device).await?;
            let added = self.kernel.replace(route.to_message(index)?).await;
            added.map_err(failed("add route", route.to_string()))?;
        }
        Ok(())
    }

    /// The unicast routes of the main table, of both families.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub async fn list_routes(&self) -> Result<Vec<RouteSpec>, NetworkError> {
        let names = self.names().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let header = RouteHeader {
                address_family: family,
                ..RouteHeader::default()
            };
            let answers = self.kernel.list(Message::new(RTM_GETROUTE, &header)).await;
            let answers = answers.map_err(failed("list", "routes"))?;
            let named = |index: u32| names.get(&index).cloned().unwrap_or_default();
            let found = answers.iter();
            routes.extend(found.filter_map(|message| from_message(message, named)));
        }
        Ok(routes)
    }
}

/// The route in a message; none if it is not a unicast one of the main table.
fn from_message(message: &Message, named: impl Fn(u32) -> String) -> Option<RouteSpec> {
    let (header, attributes) = message.parts(RouteHeader::parse)?;
    let mut table = header.table.into();
    let mut route = RouteSpec {
        scope: header.scope.into(),
        flags: header.flags.bits(),
        is_ipv6: header.address_family == AddressFamily::Inet6,
        ..RouteSpec::default()
    };
    for (kind, value) in attributes {
        match kind {
            RTA_TABLE => table = number(value)?,
            RTA_DST => route.destination = prefix(value, header.destination_prefix_length),
            RTA_GATEWAY => route.gateway = address(value),
            RTA_PREFSRC => route.source = address(value).map(RouteSource::Preferred),
            RTA_SRC => {
                let from = prefix(value, header.source_prefix_length);
                route.source = from.map(RouteSource::Prefix);
            }
            RTA_OIF => route.device = number(value).map(&named).unwrap_or_default(),
            RTA_METRICS => {
                let mut metrics = attributes_of(value);
                let mtu = metrics.find(|(metric, _)| *metric == RTAX_MTU);
                route.mtu = mtu.and_then(|(_, value)| number(value));
            }
            _ => {}
        }
    }
    if table != u32::from(RT_TABLE_MAIN) || header.kind != RouteType::Unicast {
        return None;
    }
    // With a gateway, "everywhere" is told as an address, so that clients that
    // drop routes without a destination keep it.
    if route.destination.is_none() && route.gateway.is_some() {
        let anywhere: IpAddr = if route.is_ipv6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        route.destination = IpPrefix::new(anywhere, 0).ok();
    }
    Some(route)
}

fn prefix(bytes: &[u8], length: u8) -> Option<IpPrefix> {
    let address = address(bytes)?;
    IpPrefix::new(address, length.min(bits_of(address))).ok()
}
