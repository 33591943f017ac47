//! Links, routes and neighbors, made for real in a network namespace of each
//! test's own.

use super::*;
use futures::TryStreamExt;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::{LinkBridge, LinkDummy, LinkUnspec};

/// Runs `test` on a thread with an empty network namespace of its own.
fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce(Network) -> F + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network namespace needs root");
        return;
    }
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            guest_kernel::namespace::unshare_network().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { test(Network::new().unwrap()).await });
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A second socket, of a library that knows what we do not ask for.
fn handle() -> rtnetlink::Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

/// A link that goes nowhere; false, loudly, where the kernel has none.
async fn add_dummy(name: &str, address: &str) -> bool {
    let bytes = address.parse::<HardwareAddress>().unwrap();
    let link = LinkDummy::new(name).address(bytes.as_bytes().to_vec());
    match handle().link().add(link.build()).execute().await {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: the kernel has no dummy links: {error}");
            false
        }
    }
}

/// A bridge without ports, which more kernels have, and which has addresses and
/// routes as well.
async fn add_bridge(name: &str, address: &str) -> bool {
    let bytes = address.parse::<HardwareAddress>().unwrap();
    let link = LinkBridge::new(name).address(bytes.as_bytes().to_vec());
    match handle().link().add(link.build()).execute().await {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: the kernel has no bridges: {error}");
            false
        }
    }
}

fn interface(name: &str, address: &str, prefixes: &[&str]) -> InterfaceSpec {
    InterfaceSpec {
        name: name.into(),
        hardware_address: Some(address.parse().unwrap()),
        mtu: Some(1400),
        no_arp: false,
        addresses: prefixes
            .iter()
            .map(|prefix| prefix.parse().unwrap())
            .collect(),
    }
}

async fn listed(network: &Network, name: &str) -> InterfaceSpec {
    let interfaces = network.list_interfaces().await.unwrap();
    let found = interfaces.into_iter().find(|one| one.name == name);
    found.unwrap()
}

#[test]
fn a_link_that_is_not_there_is_told_in_the_words_clients_retry_on() {
    in_own_network(|network| async move {
        let missing = interface("eth0", "02:00:00:00:00:01", &[]);
        let error = network.update_interface(&missing).await.unwrap_err();
        assert!(error.to_string().contains("Link not found"));
        let route = RouteSpec {
            device: "eth0".into(),
            ..RouteSpec::default()
        };
        let error = network.update_routes(&[route]).await.unwrap_err();
        assert!(error.to_string().contains("Link not found"));
    });
}

#[test]
fn an_interface_is_found_by_its_address_renamed_and_set_up() {
    in_own_network(|network| async move {
        if !add_dummy("dummy7", "02:00:00:00:00:01").await {
            return;
        }
        let spec = interface("eth0", "02:00:00:00:00:01", &["10.1.2.3/24", "fd00::3/64"]);
        network.update_interface(&spec).await.unwrap();
        // Again: nothing changes, nothing fails.
        network.update_interface(&spec).await.unwrap();
        let found = listed(&network, "eth0").await;
        assert_eq!(
            (found.mtu, &found.hardware_address),
            (Some(1400), &spec.hardware_address)
        );
        for prefix in &spec.addresses {
            assert!(found.addresses.contains(prefix), "{prefix}");
        }
    });
}

#[test]
fn an_interface_without_its_address_is_found_by_name_and_gets_it() {
    in_own_network(|network| async move {
        if !add_dummy("eth0", "02:00:00:00:00:01").await {
            return;
        }
        let spec = interface("eth0", "02:00:00:00:00:99", &["10.1.2.3/24"]);
        network.update_interface(&spec).await.unwrap();
        let found = listed(&network, "eth0").await;
        assert_eq!(found.hardware_address, spec.hardware_address);
    });
}

#[test]
fn two_links_swap_names() {
    in_own_network(|network| async move {
        if !add_dummy("eth0", "02:00:00:00:00:01").await
            || !add_dummy("eth1", "02:00:00:00:00:02").await
        {
            return;
        }
        let spec = interface("eth0", "02:00:00:00:00:02", &[]);
        network.update_interface(&spec).await.unwrap();
        let one = listed(&network, "eth0").await;
        let other = listed(&network, "eth1").await;
        assert_eq!(one.hardware_address, spec.hardware_address);
        assert_eq!(
            other.hardware_address,
            Some("02:00:00:00:00:01".parse().unwrap())
        );
    });
}

#[test]
fn routes_are_added_whatever_their_order_and_listed() {
    in_own_network(|network| async move {
        if !add_dummy("eth0", "02:00:00:00:00:01").await {
            return;
        }
        let spec = interface("eth0", "02:00:00:00:00:01", &["10.1.2.3/32"]);
        network.update_interface(&spec).await.unwrap();
        let default = RouteSpec {
            gateway: Some("10.9.0.1".parse().unwrap()),
            device: "eth0".into(),
            mtu: Some(1300),
            ..RouteSpec::default()
        };
        let direct = RouteSpec {
            destination: Some("10.9.0.0/24".parse().unwrap()),
            device: "eth0".into(),
            source: Some("10.1.2.3".parse().unwrap()),
            scope: 253,
            ..RouteSpec::default()
        };
        // The first leads through the second.
        let routes = [default.clone(), direct.clone()];
        network.update_routes(&routes).await.unwrap();
        network.update_routes(&routes).await.unwrap();
        let listed = network.list_routes().await.unwrap();
        assert!(listed.contains(&direct), "{listed:?}");
        let default = RouteSpec {
            destination: Some("0.0.0.0/0".parse().unwrap()),
            ..default
        };
        assert!(listed.contains(&default), "{listed:?}");
    });
}

/// Addresses of a link that somebody has set, as text.
async fn addresses(network: &Network, name: &str) -> Vec<String> {
    let found = listed(network, name).await.addresses;
    let set = found.iter().map(ToString::to_string);
    set.filter(|address| !address.starts_with("fe80:"))
        .collect()
}

#[test]
fn a_thaw_leaves_nothing_of_the_networks_of_others() {
    in_own_network(|network| async move {
        if !add_bridge("eth0", "02:00:00:00:00:01").await
            || !add_bridge("eth1", "02:00:00:00:00:02").await
        {
            return;
        }
        let up = LinkUnspec::new_with_name("lo").up().build();
        handle().link().change(up).execute().await.unwrap();
        let through = |gateway: &str, device: &str| RouteSpec {
            gateway: Some(gateway.parse().unwrap()),
            device: device.into(),
            ..RouteSpec::default()
        };
        let to = |destination: &str, gateway: &str, device: &str| RouteSpec {
            destination: Some(destination.parse().unwrap()),
            ..through(gateway, device)
        };
        // The second address of a network goes with the first.
        let before = NetworkPlan {
            interfaces: vec![
                interface(
                    "eth0",
                    "02:00:00:00:00:01",
                    &["10.1.2.3/24", "10.1.2.4/24", "fd00::3/64"],
                ),
                interface("eth1", "02:00:00:00:00:02", &["10.7.0.1/24"]),
            ],
            routes: vec![
                through("10.1.2.1", "eth0"),
                to("192.168.0.0/16", "10.7.0.9", "eth1"),
                to("fd99::/64", "fd00::9", "eth0"),
            ],
            neighbors: Vec::new(),
        };
        network.apply(&before).await.unwrap();
        assert!(addresses(&network, "eth0").await.len() >= 3);
        assert!(has_links());

        // A new hardware address too, as every clone has.
        let own = interface("eth0", "02:00:00:00:00:aa", &["10.9.9.1/31"]);
        let after = NetworkPlan {
            interfaces: vec![own.clone()],
            routes: vec![through("10.9.9.0", "eth0")],
            neighbors: Vec::new(),
        };
        for _ in 0..2 {
            network.replace(&after).await.unwrap();
            assert_eq!(addresses(&network, "eth0").await, ["10.9.9.1/31"]);
            assert_eq!(addresses(&network, "eth1").await, [""; 0]);
            assert_eq!(
                listed(&network, "eth0").await.hardware_address,
                own.hardware_address
            );
            let lo = addresses(&network, "lo").await;
            assert!(lo.contains(&"127.0.0.1/8".to_owned()), "{lo:?}");
            let routes = network.list_routes().await.unwrap();
            let gateways: Vec<_> = routes.iter().filter_map(|route| route.gateway).collect();
            assert_eq!(
                gateways,
                ["10.9.9.0".parse::<std::net::IpAddr>().unwrap()],
                "{routes:?}"
            );
            let is_old = |route: &RouteSpec| {
                let text = route.to_string();
                ["10.1.", "10.7.", "fd99:", "fd00:"]
                    .iter()
                    .any(|old| text.starts_with(old))
            };
            assert!(!routes.iter().any(is_old), "{routes:?}");
        }

        network.replace(&NetworkPlan::default()).await.unwrap();
        assert_eq!(addresses(&network, "eth0").await, [""; 0]);
        let routes = network.list_routes().await.unwrap();
        assert!(
            routes.iter().all(|route| route.gateway.is_none()),
            "{routes:?}"
        );
    });
}

#[test]
fn a_namespace_with_a_loopback_link_only_has_no_links() {
    in_own_network(|_network| async move {
        assert!(!has_links());
    });
}

#[test]
fn a_route_of_two_families_is_refused() {
    let route = RouteSpec {
        destination: Some("10.0.0.0/8".parse().unwrap()),
        source: Some("fd00::1".parse().unwrap()),
        device: "lo".into(),
        ..RouteSpec::default()
    };
    in_own_network(|network| async move {
        let error = network.update_routes(&[route]).await.unwrap_err();
        assert!(matches!(error, NetworkError::MixedFamilies(_)));
    });
}

#[test]
fn neighbors_are_permanent_and_replaced() {
    in_own_network(|network| async move {
        if !add_dummy("eth0", "02:00:00:00:00:01").await {
            return;
        }
        let up = LinkUnspec::new_with_name("eth0").up().build();
        handle().link().change(up).execute().await.unwrap();
        let neighbor = |hardware: &str| NeighborSpec {
            address: "10.9.0.1".parse().unwrap(),
            hardware_address: Some(hardware.parse().unwrap()),
            device: "eth0".into(),
            state: 0,
            flags: 0,
        };
        let first = neighbor("02:00:00:00:00:aa");
        let second = neighbor("02:00:00:00:00:bb");
        network.add_neighbors(&[first, second]).await.unwrap();
        let entries = handle().neighbours().get().execute();
        let entries: Vec<_> = entries.try_collect().await.unwrap();
        let entry = entries
            .iter()
            .find(|entry| {
                let ip = NeighbourAddress::Inet("10.9.0.1".parse().unwrap());
                entry
                    .attributes
                    .contains(&NeighbourAttribute::Destination(ip))
            })
            .unwrap();
        assert_eq!(entry.header.state, NeighbourState::Permanent);
        let hardware = vec![2, 0, 0, 0, 0, 0xbb];
        assert!(
            entry
                .attributes
                .contains(&NeighbourAttribute::LinkLayerAddress(hardware))
        );
    });
}
