//! Interfaces, routes and neighbors.

use super::{ConvertError, invalid, refuse};
use crate::service::network::{
    AddNeighbors, ListInterfaces, ListRoutes, NetworkPlan, UpdateInterface, UpdateRoutes,
};
use guest_runtime::network::{InterfaceSpec, IpPrefix, NeighborSpec, RouteSpec};
use protocols::wire::{agent, lifecycle, types};
use std::net::IpAddr;

/// IFF_NOARP, netdevice(7): the one flag of `raw_flags` that is acted on.
const IFF_NOARP: u32 = 0x80;
/// The largest slot of a PCI bus, PCI Local Bus Specification.
pub(super) const SLOT_MAX: u8 = 0x1f;

impl TryFrom<agent::UpdateInterfaceRequest> for UpdateInterface {
    type Error = ConvertError;

    fn try_from(request: agent::UpdateInterfaceRequest) -> Result<Self, ConvertError> {
        let interface = request
            .interface
            .into_option()
            .ok_or(ConvertError::Missing { field: "interface" })?;
        let path = &interface.devicePath;
        Ok(Self {
            slots: (!path.is_empty()).then(|| pci_path(path)).transpose()?,
            interface: interface_from_wire(interface)?,
        })
    }
}

impl TryFrom<agent::UpdateRoutesRequest> for UpdateRoutes {
    type Error = ConvertError;

    fn try_from(request: agent::UpdateRoutesRequest) -> Result<Self, ConvertError> {
        let routes = request
            .routes
            .into_option()
            .ok_or(ConvertError::Missing { field: "routes" })?;
        let routes = routes.Routes.into_iter().map(route_from_wire);
        Ok(Self {
            routes: routes.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<agent::AddARPNeighborsRequest> for AddNeighbors {
    type Error = ConvertError;

    fn try_from(request: agent::AddARPNeighborsRequest) -> Result<Self, ConvertError> {
        let neighbors = request
            .neighbors
            .into_option()
            .ok_or(ConvertError::Missing { field: "neighbors" })?;
        let neighbors = neighbors.ARPNeighbors.into_iter().map(neighbor_from_wire);
        Ok(Self {
            neighbors: neighbors.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<agent::ListInterfacesRequest> for ListInterfaces {
    type Error = ConvertError;

    fn try_from(_request: agent::ListInterfacesRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

impl TryFrom<agent::ListRoutesRequest> for ListRoutes {
    type Error = ConvertError;

    fn try_from(_request: agent::ListRoutesRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

/// The network part of a thaw.
pub(super) fn plan(network: lifecycle::Network) -> Result<NetworkPlan, ConvertError> {
    Ok(NetworkPlan {
        interfaces: network
            .interfaces
            .into_iter()
            .map(present_interface)
            .collect::<Result<_, _>>()?,
        routes: network
            .routes
            .into_iter()
            .map(route_from_wire)
            .collect::<Result<_, _>>()?,
        neighbors: network
            .neighbors
            .into_iter()
            .map(neighbor_from_wire)
            .collect::<Result<_, _>>()?,
    })
}

/// One that is not waited for.
fn present_interface(interface: types::Interface) -> Result<InterfaceSpec, ConvertError> {
    refuse(
        !interface.devicePath.is_empty(),
        "hotplug of an interface (devicePath)",
    )?;
    interface_from_wire(interface)
}

/// The slots of `02/1f`, or `02.0/1f.0`: hexadecimal, each of a device on the
/// bus of the one before.
fn pci_path(path: &str) -> Result<Vec<u8>, ConvertError> {
    let slot = |text: &str| {
        let slot = text.strip_suffix(".0").unwrap_or(text);
        let is_hexadecimal = slot.len() <= 2 && slot.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u8::from_str_radix(slot, 16).ok();
        number.filter(|number| is_hexadecimal && *number <= SLOT_MAX)
    };
    let slots: Option<Vec<u8>> = path.split('/').map(slot).collect();
    slots.ok_or_else(|| invalid("devicePath", path)("no slots and functions 0 of PCI buses"))
}

fn interface_from_wire(interface: types::Interface) -> Result<InterfaceSpec, ConvertError> {
    Ok(InterfaceSpec {
        hardware_address: optional("hwAddr", &interface.hwAddr)?,
        // 0 is how a client says that it does not care.
        mtu: match u32::try_from(interface.mtu) {
            Ok(0) => None,
            Ok(mtu) => Some(mtu),
            Err(error) => return Err(invalid("mtu", &interface.mtu.to_string())(error)),
        },
        no_arp: interface.raw_flags & IFF_NOARP != 0,
        addresses: interface
            .IPAddresses
            .iter()
            .map(prefix_from_wire)
            .collect::<Result<_, _>>()?,
        name: interface.name,
    })
}

/// The mask is a prefix length as text.
fn prefix_from_wire(address: &types::IPAddress) -> Result<IpPrefix, ConvertError> {
    let text = &address.address;
    let ip: IpAddr = text.parse().map_err(invalid("address", text))?;
    let length: u8 = address
        .mask
        .parse()
        .map_err(invalid("mask", &address.mask))?;
    IpPrefix::new(ip, length).map_err(invalid("mask", &address.mask))
}

fn route_from_wire(route: types::Route) -> Result<RouteSpec, ConvertError> {
    Ok(RouteSpec {
        destination: optional("dest", &route.dest)?,
        gateway: optional("gateway", &route.gateway)?,
        source: optional("source", &route.source)?,
        scope: u8::try_from(route.scope).map_err(invalid("scope", &route.scope.to_string()))?,
        flags: route.flags,
        mtu: (route.mtu != 0).then_some(route.mtu),
        is_ipv6: route.family.enum_value() == Ok(types::IPFamily::v6),
        device: route.device,
    })
}

fn neighbor_from_wire(neighbor: types::ARPNeighbor) -> Result<NeighborSpec, ConvertError> {
    let address = neighbor
        .toIPAddress
        .into_option()
        .unwrap_or_default()
        .address;
    if address.is_empty() {
        return Err(ConvertError::Missing {
            field: "toIPAddress.address",
        });
    }
    Ok(NeighborSpec {
        address: address.parse().map_err(invalid("toIPAddress", &address))?,
        hardware_address: optional("lladdr", &neighbor.lladdr)?,
        state: u16::try_from(neighbor.state)
            .map_err(invalid("state", &neighbor.state.to_string()))?,
        // The kernel's ndmsg has 8 bits of flags, rtnetlink(7).
        flags: u8::try_from(neighbor.flags & 0xff).unwrap_or_default(),
        device: neighbor.device,
    })
}

fn optional<T>(field: &'static str, text: &str) -> Result<Option<T>, ConvertError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(invalid(field, text))
}

pub(in crate::rpc) fn interfaces_to_wire(interfaces: Vec<InterfaceSpec>) -> agent::Interfaces {
    let mut out = agent::Interfaces::new();
    out.Interfaces = interfaces.into_iter().map(interface_to_wire).collect();
    out
}

fn interface_to_wire(interface: InterfaceSpec) -> types::Interface {
    let mut out = types::Interface::new();
    out.name = interface.name;
    out.mtu = u64::from(interface.mtu.unwrap_or_default());
    // In capital letters, as clients have always been told it.
    out.hwAddr = interface
        .hardware_address
        .map(|address| address.to_string().to_uppercase())
        .unwrap_or_default();
    out.raw_flags = if interface.no_arp { IFF_NOARP } else { 0 };
    out.IPAddresses = interface
        .addresses
        .iter()
        .map(|prefix| {
            let mut out = types::IPAddress::new();
            out.family = match prefix.address() {
                IpAddr::V4(_) => types::IPFamily::v4.into(),
                IpAddr::V6(_) => types::IPFamily::v6.into(),
            };
            out.address = prefix.address().to_string();
            out.mask = prefix.length().to_string();
            out
        })
        .collect();
    out
}

pub(in crate::rpc) fn routes_to_wire(routes: Vec<RouteSpec>) -> agent::Routes {
    let mut out = agent::Routes::new();
    out.Routes = routes.into_iter().map(route_to_wire).collect();
    out
}

fn route_to_wire(route: RouteSpec) -> types::Route {
    let text = |value: Option<String>| value.unwrap_or_default();
    let mut out = types::Route::new();
    out.dest = text(route.destination.map(|prefix| prefix.to_string()));
    out.gateway = text(route.gateway.map(|gateway| gateway.to_string()));
    out.source = text(route.source.map(|source| source.to_string()));
    out.scope = u32::from(route.scope);
    out.flags = route.flags;
    out.mtu = route.mtu.unwrap_or_default();
    out.family = if route.is_ipv6 {
        types::IPFamily::v6.into()
    } else {
        types::IPFamily::v4.into()
    };
    out.device = route.device;
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hardware_address_is_told_in_capital_letters_and_read_in_either() {
        for given in ["02:aB:00:00:00:ff", "02:ab:00:00:00:FF"] {
            let mut interface = types::Interface::new();
            interface.hwAddr = given.into();
            let told = interface_to_wire(interface_from_wire(interface).unwrap());
            assert_eq!(told.hwAddr, "02:AB:00:00:00:FF");
        }
    }

    #[test]
    fn a_pci_path_is_slots_in_hexadecimal() {
        assert_eq!(pci_path("02/1f").unwrap(), [2, 0x1f]);
        assert_eq!(pci_path("02.0/1f.0/3").unwrap(), [2, 0x1f, 3]);
        for path in ["", "/", "02/", "20", "02.1", "0.0.1234", "+2", "002"] {
            assert!(pci_path(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_pci_path_is_a_panic(path: String) {
            let _ = pci_path(&path);
        }
    }
}
