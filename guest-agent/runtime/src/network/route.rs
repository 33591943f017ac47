//! Routes of the main table.

use super::address::bits_of;
use super::{InvalidAddress, IpPrefix, Network, NetworkError, failed};
use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `RT_TABLE_MAIN`, linux/rtnetlink.h.
const MAIN_TABLE: u32 = 254;

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

    fn to_message(&self, index: u32) -> Result<RouteMessage, NetworkError> {
        let mixed = |_| NetworkError::MixedFamilies(self.to_string());
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(index)
            .table_id(MAIN_TABLE)
            .scope(RouteScope::from(self.scope));
        builder.get_mut().header.address_family = self.family();
        if let Some(destination) = self.destination {
            let (address, length) = (destination.address(), destination.length());
            builder = builder.destination_prefix(address, length).map_err(mixed)?;
        }
        if let Some(gateway) = self.gateway {
            builder = builder.gateway(gateway).map_err(mixed)?;
        }
        builder = match self.source {
            Some(RouteSource::Prefix(prefix)) => builder
                .source_prefix(prefix.address(), prefix.length())
                .map_err(mixed)?,
            Some(RouteSource::Preferred(address)) => builder.pref_source(address).map_err(mixed)?,
            None => builder,
        };
        let mut message = builder.build();
        message.header.flags = RouteFlags::from_bits_retain(self.flags);
        if let Some(mtu) = self.mtu {
            let metrics = vec![RouteMetric::Mtu(mtu)];
            message.attributes.push(RouteAttribute::Metrics(metrics));
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
            self.handle
                .route()
                .add(route.to_message(index)?)
                .replace()
                .execute()
                .await
                .map_err(failed("add route", route.to_string()))?;
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
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let messages: Vec<RouteMessage> = self
                .handle
                .route()
                .get(question)
                .execute()
                .try_collect()
                .await
                .map_err(failed("list", "routes"))?;
            let named = |index: &u32| names.get(index).cloned().unwrap_or_default();
            routes.extend(
                messages
                    .iter()
                    .filter(|message| is_main_unicast(message))
                    .map(|message| from_message(message, named)),
            );
        }
        Ok(routes)
    }
}

fn is_main_unicast(message: &RouteMessage) -> bool {
    let table = message.attributes.iter().find_map(|one| match one {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or_else(|| message.header.table.into());
    table == MAIN_TABLE && message.header.kind == RouteType::Unicast
}

fn from_message(message: &RouteMessage, named: impl Fn(&u32) -> String) -> RouteSpec {
    let header = &message.header;
    let mut route = RouteSpec {
        scope: header.scope.into(),
        flags: header.flags.bits(),
        is_ipv6: header.address_family == AddressFamily::Inet6,
        ..RouteSpec::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = prefix(address, header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => {
                route.source = ip(address).map(RouteSource::Preferred);
            }
            RouteAttribute::Source(address) => {
                let from = prefix(address, header.source_prefix_length);
                route.source = from.map(RouteSource::Prefix);
            }
            RouteAttribute::Oif(index) => route.device = named(index),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
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
    route
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn prefix(address: &RouteAddress, length: u8) -> Option<IpPrefix> {
    let address = ip(address)?;
    IpPrefix::new(address, length.min(bits_of(address))).ok()
}
