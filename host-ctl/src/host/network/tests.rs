//! Taps, made for real in a network namespace of each test's own.

use super::*;
use crate::config::SandboxId;
use hypervisor::{create_passing_tap, create_tap};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::{LinkDummy, LinkUnspec};
use std::path::Path;

mod frames;

/// Runs `test` on a thread with an empty network namespace of its own.
fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce(HostNetwork) -> F + Send) {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: taps need root and /dev/net/tun");
        return;
    }
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { test(HostNetwork::open().unwrap()).await });
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn planned(number: u32) -> TapRecord {
    let id = SandboxId::random().unwrap();
    let guest = HardwareAddress::draw().unwrap();
    TapRecord::planned(&id, Block::SHARED.pair(number), guest)
}

async fn made(network: &HostNetwork, number: u32) -> TapRecord {
    let mut tap = planned(number);
    tap.namespace = Some(network.namespace().clone());
    create_tap(&tap.name).unwrap();
    network.claim(&mut tap).await.unwrap();
    tap
}

#[test]
fn a_tap_is_made_fenced_opened_fenced_again_and_removed() {
    in_own_network(|network| async move {
        let tap = made(&network, 4).await;
        assert!(tap.index.is_some() && tap.host.is_some(), "{tap:?}");
        assert!(network.is_fenced(&tap).await.unwrap());
        assert!(network.routed().await.unwrap().is_empty());

        network.lift_fence(&tap).await.unwrap();
        assert!(!network.is_fenced(&tap).await.unwrap());
        let parameter = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", tap.name);
        if let Ok(value) = std::fs::read_to_string(parameter) {
            assert_eq!(value.trim(), "1");
        }
        // Again: nothing changes, nothing fails.
        network.lift_fence(&tap).await.unwrap();
        let routed = network.routed().await.unwrap();
        assert!(
            routed.iter().any(|one| one.overlaps(tap.addresses.block())),
            "{routed:?}"
        );
        let next = Block::SHARED.pair(6).block();
        assert!(!routed.iter().any(|one| one.overlaps(next)), "{routed:?}");

        network.fence(&tap).await.unwrap();
        assert!(network.is_fenced(&tap).await.unwrap());
        assert!(network.remove_tap(&tap).await.unwrap());
        assert!(!network.remove_tap(&tap).await.unwrap());
        let error = network.lift_fence(&tap).await.unwrap_err();
        assert!(matches!(error, NetworkError::Missing(_)), "{error}");
    });
}

#[test]
fn what_was_made_and_never_claimed_is_removed_by_its_plan() {
    in_own_network(|network| async move {
        let tap = planned(0);
        assert!(!network.remove_tap(&tap).await.unwrap());
        create_tap(&tap.name).unwrap();
        assert!(network.remove_tap(&tap).await.unwrap());
    });
}

#[test]
fn a_name_that_is_taken_is_not_attached_to() {
    in_own_network(|network| async move {
        let tap = made(&network, 0).await;
        assert!(create_tap(&tap.name).is_err());
        assert!(network.is_fenced(&tap).await.unwrap());
    });
}

#[test]
fn another_sandboxs_tap_of_that_name_or_index_stays() {
    in_own_network(|network| async move {
        let theirs = made(&network, 0).await;
        let mut ours = planned(2);
        ours.name.clone_from(&theirs.name);
        for index in [None, theirs.index] {
            ours.index = index;
            let error = network.remove_tap(&ours).await.unwrap_err();
            assert!(matches!(error, NetworkError::Foreign { .. }), "{error}");
            let error = network.lift_fence(&ours).await.unwrap_err();
            assert!(matches!(error, NetworkError::Foreign { .. }), "{error}");
        }
        assert!(network.is_fenced(&theirs).await.unwrap());
    });
}

#[test]
fn a_tap_whose_index_is_another_links_by_now_is_gone() {
    in_own_network(|network| async move {
        let theirs = made(&network, 0).await;
        let mut ours = planned(2);
        // 1 is the loopback device.
        for index in [Some(1), theirs.index] {
            ours.index = index;
            assert!(!network.remove_tap(&ours).await.unwrap());
            let error = network.lift_fence(&ours).await.unwrap_err();
            assert!(matches!(error, NetworkError::Missing(_)), "{error}");
        }
        assert!(network.is_fenced(&theirs).await.unwrap());
    });
}

#[test]
fn a_link_that_is_no_tap_or_is_in_use_stays() {
    in_own_network(|network| async move {
        let tap = planned(0);
        let dummy = LinkDummy::new(&tap.name).build();
        match network.handle.link().add(dummy).execute().await {
            Ok(()) => {
                let error = network.remove_tap(&tap).await.unwrap_err();
                assert!(matches!(error, NetworkError::Foreign { .. }), "{error}");
            }
            Err(error) => eprintln!("skipped: the kernel has no dummy links: {error}"),
        }
        // Up and without an alias: somebody uses it, and it is not ours.
        let used = planned(2);
        create_tap(&used.name).unwrap();
        let up = LinkUnspec::new_with_name(&used.name).up().build();
        network.handle.link().change(up).execute().await.unwrap();
        let error = network.remove_tap(&used).await.unwrap_err();
        assert!(matches!(error, NetworkError::Foreign { .. }), "{error}");
    });
}

#[test]
fn a_sweep_removes_a_tap_inside_a_runtime_too() {
    in_own_network(|network| async move {
        let tap = made(&network, 0).await;
        assert!(remove_tap_now(&tap).unwrap());
        assert!(!remove_tap_now(&tap).unwrap());
    });
}

#[test]
fn a_fence_that_somebody_else_has_taken_down_is_none_and_is_set_up_again() {
    in_own_network(|network| async move {
        let tap = made(&network, 0).await;
        let mut message = TcMessage::with_index(tap.index.unwrap().cast_signed());
        message.header.parent = TcHandle::INGRESS;
        let removal = RouteNetlinkMessage::DelQueueDiscipline(message);
        network.send(removal, 0).await.unwrap();
        assert!(!network.is_fenced(&tap).await.unwrap());
        network.fence(&tap).await.unwrap();
        assert!(network.is_fenced(&tap).await.unwrap());
    });
}

#[test]
fn a_passing_tap_is_fenced_and_goes_with_its_queue() {
    in_own_network(|network| async move {
        let mut tap = planned(0);
        let queue = create_passing_tap(&tap.name).unwrap();
        network.claim(&mut tap).await.unwrap();
        assert!(network.is_fenced(&tap).await.unwrap());
        drop(queue);
        assert!(!network.remove_tap(&tap).await.unwrap());
    });
}

#[test]
fn a_tap_of_another_network_namespace_is_neither_touched_nor_taken_for_gone() {
    in_own_network(|here| async move {
        let tap = made(&here, 0).await;
        in_own_network(|elsewhere| async move {
            // Its name and its index, even its alias, are no proof.
            let namesake = made(&elsewhere, 0).await;
            let mut recorded = tap.clone();
            recorded.name.clone_from(&namesake.name);
            recorded.sandbox.clone_from(&namesake.sandbox);
            recorded.index = namesake.index;
            let error = elsewhere.remove_tap(&recorded).await.unwrap_err();
            assert!(matches!(error, NetworkError::Elsewhere { .. }), "{error}");
            let inode = elsewhere.namespace().inode.to_string();
            assert!(error.to_string().contains(&inode), "{error}");
            let error = elsewhere.lift_fence(&recorded).await.unwrap_err();
            assert!(matches!(error, NetworkError::Elsewhere { .. }), "{error}");
            assert!(elsewhere.is_fenced(&namesake).await.unwrap());
        });
    });
}

#[test]
fn a_tap_of_another_boot_is_gone_wherever_it_was() {
    in_own_network(|network| async move {
        let theirs = made(&network, 0).await;
        let mut ours = theirs.clone();
        ours.namespace.as_mut().unwrap().boot_id = "another".to_owned();
        assert!(!network.remove_tap(&ours).await.unwrap());
        assert!(network.is_fenced(&theirs).await.unwrap());
    });
}

#[test]
fn a_kernel_that_does_not_answer_is_not_waited_for_for_ever() {
    in_own_network(|network| async move {
        let tap = made(&network, 0).await;
        // Nobody serves this socket.
        let (_connection, handle, _notices) = rtnetlink::new_connection().unwrap();
        let deaf = HostNetwork {
            handle,
            deadline: Duration::from_millis(20),
            ..network.clone()
        };
        let mut claimed = tap.clone();
        let outcomes = [
            deaf.routed().await.err(),
            deaf.claim(&mut claimed).await.err(),
            deaf.lift_fence(&tap).await.err(),
            deaf.fence(&tap).await.err(),
            deaf.is_fenced(&tap).await.err(),
            deaf.remove_tap(&tap).await.err(),
        ];
        for error in outcomes.map(Option::unwrap) {
            assert!(matches!(error, NetworkError::Deadline { .. }), "{error}");
            assert!(error.to_string().ends_with("no answer in 20ms"), "{error}");
        }
        assert_eq!(claimed, tap);
    });
}

#[test]
fn a_record_survives_its_text() {
    let mut tap = planned(8);
    tap.namespace = Some(NetworkNamespace::current().unwrap());
    let text = serde_json::to_string(&tap).unwrap();
    assert_eq!(serde_json::from_str::<TapRecord>(&text).unwrap(), tap);
    assert_eq!(tap.name, format!("tg{}", tap.sandbox));
    assert!(tap.name.len() <= 15);
}

#[test]
fn a_record_of_before_namespaces_were_noted_is_read() {
    let tap = planned(8);
    let mut value = serde_json::to_value(&tap).unwrap();
    value.as_object_mut().unwrap().remove("namespace").unwrap();
    assert_eq!(serde_json::from_value::<TapRecord>(value).unwrap(), tap);
}
