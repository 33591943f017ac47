//! What is on the wire, and what must never be.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::spec::{AgentDevice, Backing, Memory};

fn spec() -> VmSpec {
    VmSpec {
        name: "vm".into(),
        uuid: "00112233-4455-6677-8899-aabbccddeeff".into(),
        vcpus: 2,
        memory: Memory {
            size_mib: 256,
            backing: Backing::Anonymous,
        },
        kernel: "/store/secret/vmlinux".into(),
        initrd: "/store/secret/initrd".into(),
        cmdline: "console=ttyS0".into(),
        disks: Vec::new(),
        agent: AgentDevice::HybridVsock {
            socket: "/run/secret/agent.sock".into(),
            cid: 3,
        },
        console: "/run/secret/console.sock".into(),
        monitor: "/run/secret/api.sock".into(),
        nics: Vec::new(),
        directories: Vec::new(),
        cpu_model: None,
        log: "/run/secret/log".into(),
        cgroup: None,
    }
}

fn agent() -> Agent<'static> {
    Agent {
        socket: "agent.sock",
        cid: 3,
    }
}

fn texts(requests: &[Request<'_>]) -> Vec<String> {
    requests
        .iter()
        .map(|request| {
            format!(
                "{} {}{} {:?}",
                request.method, request.path, request.id, request.body
            )
        })
        .collect()
}

fn body<'a>(requests: &'a [Request<'_>], path: &str) -> &'a Value {
    let request = requests.iter().find(|request| request.path == path);
    request.unwrap().body.as_ref().unwrap()
}

proptest! {
    #[test]
    fn no_path_of_a_spec_is_ever_told(
        disks in proptest::collection::vec(any::<bool>(), 0..20),
        taps in proptest::collection::vec("[a-z]{1,15}", 0..6),
    ) {
        let mut spec = spec();
        spec.disks = disks.iter().enumerate().map(|(index, &readonly)| Disk {
            id: format!("d-{index}"),
            path: PathBuf::from(format!("/store/secret/{index}")),
            readonly,
        }).collect();
        spec.nics = taps.iter().enumerate().map(|(index, name)| Nic {
            id: format!("n-{index}"),
            mac: "02:00:00:00:00:01".into(),
            backend: NicBackend::Tap { name: name.clone() },
        }).collect();
        let boot = boot(&spec, agent()).unwrap();
        let restore = restore(&spec, agent()).unwrap();
        let arguments = arguments(&spec, "api.sock");
        for text in texts(&boot).iter().chain(&texts(&restore)).chain(&arguments) {
            prop_assert!(!text.contains("secret"), "{text}");
        }
        let drives: Vec<_> = boot.iter().filter(|request| request.path == "/drives/").collect();
        prop_assert_eq!(drives.len(), disks.len());
        for ((drive, readonly), number) in drives.iter().zip(&disks).zip(910..) {
            let body = drive.body.as_ref().unwrap();
            prop_assert_eq!(&body["is_read_only"], &json!(readonly));
            prop_assert_eq!(&body["path_on_host"], &json!(format!("/proc/self/fd/{number}")));
            prop_assert_eq!(&body["drive_id"], &json!(drive.id));
            prop_assert!(drive.id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
        let load = body(&restore, "/snapshot/load");
        let names: Vec<_> = taps.iter().enumerate().map(|(index, name)| {
            json!({"iface_id": format!("nic{index}"), "host_dev_name": name})
        }).collect();
        prop_assert_eq!(&load["network_overrides"], &json!(names));
        prop_assert_eq!(&load["resume_vm"], &json!(false));
    }
}

#[test]
fn a_guest_is_not_offered_to_be_a_hypervisor() {
    let requests = boot(&spec(), agent()).unwrap();
    let cpu = body(&requests, "/cpu-config");
    let bitmap = |index: usize| {
        let modifier = &cpu["cpuid_modifiers"][index]["modifiers"][0];
        assert_eq!(modifier["register"], "ecx");
        modifier["bitmap"].as_str().unwrap().to_owned()
    };
    for (index, bit) in [(0, 5), (1, 2)] {
        let bitmap = bitmap(index);
        let bits: Vec<char> = bitmap.strip_prefix("0b").unwrap().chars().rev().collect();
        assert_eq!(bits.len(), 32);
        for (place, found) in bits.iter().enumerate() {
            assert_eq!(*found, if place == bit { '0' } else { 'x' });
        }
    }
}

#[test]
fn the_guest_starts_last_and_the_log_is_quiet_first() {
    for requests in [
        boot(&spec(), agent()).unwrap(),
        restore(&spec(), agent()).unwrap(),
    ] {
        assert_eq!(requests[0].path, "/logger");
        let last = requests.last().unwrap();
        assert!(["/actions", "/snapshot/load"].contains(&last.path));
    }
}

#[test]
fn interfaces_without_a_tap_are_refused_by_name() {
    for (backend, name) in [
        (NicBackend::None, "without a tap"),
        (NicBackend::User, "user-mode"),
    ] {
        let mut spec = spec();
        spec.nics.push(Nic {
            id: "n".into(),
            mac: "02:00:00:00:00:01".into(),
            backend,
        });
        for refused in [boot(&spec, agent()), restore(&spec, agent())] {
            assert!(refused.unwrap_err().to_string().contains(name));
        }
    }
}
