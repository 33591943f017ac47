//! What the VMM is told, without it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::spec::{Memory, NicBackend};

fn spec(disks: usize, nics: usize) -> VmSpec {
    let disk = |index: usize| Disk {
        id: format!("d{index}"),
        path: format!("/images/{index}").into(),
        readonly: true,
    };
    let nic = |index: usize| Nic {
        id: format!("n{index}"),
        mac: "52:54:00:00:00:01".to_owned(),
        backend: NicBackend::Tap {
            name: format!("tap{index}"),
        },
    };
    VmSpec {
        name: "vm".to_owned(),
        uuid: "6dc6a3a1-5d2a-4b0f-9a52-0b7e2d5c1f10".to_owned(),
        vcpus: 2,
        memory: Memory {
            size_mib: 128,
            backing: Backing::FileBacked {
                path: "/run/memory".into(),
                shared: true,
            },
        },
        kernel: "/boot/kernel".into(),
        initrd: "/boot/initrd".into(),
        cmdline: "console=ttyS0".to_owned(),
        disks: (0..disks).map(disk).collect(),
        agent: AgentDevice::HybridVsock {
            socket: "/run/agent".into(),
            cid: 3,
        },
        console: "/run/console".into(),
        monitor: "/run/api".into(),
        nics: (0..nics).map(nic).collect(),
        directories: Vec::new(),
        cpu_model: None,
        log: "/run/log".into(),
        cgroup: None,
    }
}

fn files() -> Files {
    Files::of(&PathBuf::from("/run/api"))
}

fn around(files: &Files, confines_files: bool) -> Surroundings<'_> {
    Surroundings {
        files,
        confines_files,
    }
}

/// Every value of a member of this name, wherever it is.
fn all<'a>(value: &'a Value, name: &str) -> Vec<&'a Value> {
    match value {
        Value::Object(members) => {
            let deeper = members.values().flat_map(|member| all(member, name));
            members.get(name).into_iter().chain(deeper).collect()
        }
        Value::Array(items) => items.iter().flat_map(|item| all(item, name)).collect(),
        _ => Vec::new(),
    }
}

proptest! {
    #[test]
    fn every_device_has_a_slot_of_its_own_and_the_same_when_restored(
        disks in 0_usize..14,
        nics in 0_usize..13,
    ) {
        let (spec, files) = (spec(disks, nics), files());
        let mut booted = new_vm(&spec, around(&files, false)).unwrap();
        booted["net"] = interfaces(&spec).into();
        let restored = restored_vm(&spec, around(&files, false)).unwrap();
        let slots = all(&booted, "pci_device_id");
        prop_assert_eq!(&slots, &all(&restored, "pci_device_id"));
        let numbers: BTreeSet<u64> = slots.iter().filter_map(|slot| slot.as_u64()).collect();
        prop_assert_eq!(numbers.len(), disks + nics + 2);
        // 0 is the host bridge, and there are 32.
        prop_assert!(numbers.iter().all(|slot| (1..32).contains(slot)));
    }
}

#[test]
fn a_new_vm_has_what_its_spec_says_and_no_nested_virtualisation() {
    let files = files();
    let config = new_vm(&spec(1, 1), around(&files, false)).unwrap();
    assert_eq!(config["cpus"]["boot_vcpus"], 2);
    assert_eq!(config["cpus"]["nested"], false);
    let zone = json!({"id": "ram", "size": 128 << 20, "file": "/run/memory", "shared": true});
    assert_eq!(config["memory"], json!({"size": 0, "zones": [zone]}));
    assert_eq!(config["payload"]["kernel"], "/run/api.files/kernel");
    assert_eq!(config["disks"][0]["readonly"], true);
    assert_eq!(config["disks"][0]["image_type"], "Raw");
    assert_eq!(config["net"], Value::Null);
    assert_eq!(config["landlock_enable"], false);
}

#[test]
fn a_confined_vmm_may_write_where_a_state_is_collected_and_nowhere_else_of_ours() {
    let files = files();
    let config = new_vm(&spec(1, 0), around(&files, true)).unwrap();
    assert_eq!(config["landlock_enable"], true);
    let rule = json!({"path": "/run/api.files/save", "access": "rw"});
    assert_eq!(config["landlock_rules"], json!([rule]));
}

#[test]
fn a_restored_vm_has_no_initrd_and_one_descriptor_to_come_for_each_interface() {
    let (files, spec) = (files(), spec(0, 2));
    let config = restored_vm(&spec, around(&files, false)).unwrap();
    assert_eq!(config["payload"].get("initramfs"), None);
    assert_eq!(config["net"][1]["fds"], json!([-1]));
    let request = restore(&spec, &files.restore(), MemoryMode::OnDemand).unwrap();
    let descriptors = json!([
        {"id": "nic-n0", "num_fds": 1},
        {"id": "nic-n1", "num_fds": 1},
    ]);
    assert_eq!(request["net_fds"], descriptors);
    assert_eq!(request["source_url"], "file:///run/api.files/restore");
    assert_eq!(request["memory_restore_mode"], "OnDemand");
}

#[test]
fn directories_are_on_a_segment_of_their_own_and_their_ram_is_shared() {
    let (files, mut spec) = (files(), spec(1, 0));
    let plain = new_vm(&spec, around(&files, false)).unwrap();
    assert_eq!(plain["fs"], Value::Null);
    assert_eq!(plain["platform"].get("num_pci_segments"), None);
    spec.memory.backing = Backing::Anonymous;
    let zone = |config: &Value| config["memory"]["zones"][0].clone();
    let alone = new_vm(&spec, around(&files, false)).unwrap();
    assert_eq!(zone(&alone).get("shared"), None);
    for tag in ["one", "two"] {
        spec.directories.push(SharedDirectory {
            tag: tag.to_owned(),
            path: "/srv/secret".into(),
            readonly: false,
        });
    }
    for config in [
        new_vm(&spec, around(&files, false)).unwrap(),
        restored_vm(&spec, around(&files, false)).unwrap(),
    ] {
        assert_eq!(zone(&config)["shared"], true);
        assert_eq!(config["platform"]["num_pci_segments"], 2);
        let two = json!({
            "id": "directory-two", "tag": "two", "pci_segment": 1, "pci_device_id": 2,
            "socket": "/run/api.files/directory.fs1",
        });
        assert_eq!(config["fs"][1], two);
        // The VMM is not told where they are.
        assert!(!config.to_string().contains("secret"));
    }
}
