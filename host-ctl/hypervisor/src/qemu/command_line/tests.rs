//! That no text of a spec can become an option.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::spec::Memory;

const TCG: Platform = Platform {
    accelerator: Accelerator::Tcg,
    version: Version { major: 7, minor: 2 },
};

fn spec() -> VmSpec {
    VmSpec {
        name: "vm".into(),
        uuid: "01234567-89ab-cdef-0123-456789abcdef".into(),
        vcpus: 2,
        memory: Memory {
            size_mib: 256,
            backing: Backing::FileBacked {
                path: "/m".into(),
                shared: false,
            },
        },
        kernel: "/kernel".into(),
        initrd: "/initrd".into(),
        cmdline: "console=ttyS0".into(),
        disks: vec![Disk {
            id: "root".into(),
            path: "/disk".into(),
            readonly: true,
        }],
        agent: AgentDevice::Serial {
            socket: "/agent".into(),
            port_name: "agent.port".into(),
        },
        console: "/console".into(),
        monitor: "/monitor".into(),
        nics: vec![Nic {
            id: "net".into(),
            mac: "52:54:00:00:00:01".into(),
            backend: NicBackend::User,
        }],
        directories: Vec::new(),
        cpu_model: None,
        log: "/log".into(),
        cgroup: None,
    }
}

fn descriptors() -> Descriptors {
    Descriptors {
        monitor: 10,
        console: 11,
        agent: Some(12),
        disks: vec![13],
        taps: vec![],
        directories: vec![],
        handed: HandedFiles::default(),
    }
}

#[test]
fn what_is_handed_over_is_not_named_by_its_path() {
    let descriptors = Descriptors {
        handed: HandedFiles {
            memory: Some(20),
            kernel: Some(21),
            initrd: Some(22),
            vsock: None,
        },
        ..descriptors()
    };
    let mut spec = spec();
    spec.memory.backing = Backing::FileBacked {
        path: "/memory".into(),
        shared: true,
    };
    let line = arguments(&spec, TCG, Start::Boot, &descriptors).unwrap();
    assert_eq!(values(&line, "-kernel"), ["/proc/self/fd/21"]);
    assert_eq!(values(&line, "-initrd"), ["/proc/self/fd/22"]);
    let memory: Value = serde_json::from_str(values(&line, "-object")[0]).unwrap();
    assert_eq!(memory["mem-path"], "/proc/self/fd/20");
}

fn made(spec: &VmSpec, platform: Platform, start: Start) -> Vec<String> {
    arguments(spec, platform, start, &descriptors()).unwrap()
}

/// The values of an option, in order.
fn values<'a>(line: &'a [String], option: &str) -> Vec<&'a str> {
    let pairs = line.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| pair[1].as_str()).collect()
}

fn memory_object(line: &[String]) -> Value {
    serde_json::from_str(values(line, "-object")[0]).unwrap()
}

#[test]
fn a_boot_looks_like_this() {
    let expected = "-nodefaults -no-user-config -display none -no-reboot \
        -machine pc-q35-7.2,usb=off,vmport=off,sata=off,smbus=off,dump-guest-core=off,memory-backend=ram \
        -bios qboot.rom -accel tcg,thread=multi,tb-size=128 \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
        -name guest=vm -uuid 01234567-89ab-cdef-0123-456789abcdef -cpu max -smp 2 -m 256M \
        -object {\"dump\":false,\"id\":\"ram\",\"mem-path\":\"/m\",\"merge\":false,\"qom-type\":\"memory-backend-file\",\"share\":false,\"size\":268435456} \
        -chardev socket,id=monitor,fd=10,server=on,wait=off -mon chardev=monitor,mode=control \
        -chardev socket,id=console,fd=11,server=on,wait=off -serial chardev:console \
        -chardev socket,id=agent,fd=12,server=on,wait=off \
        -device {\"addr\":\"3\",\"disable-legacy\":\"on\",\"driver\":\"virtio-serial-pci\",\"id\":\"serial\"} \
        -device {\"bus\":\"serial.0\",\"chardev\":\"agent\",\"driver\":\"virtserialport\",\"id\":\"agent\",\"name\":\"agent.port\"} \
        -add-fd fd=13,set=0 \
        -blockdev {\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/dev/fdset/0\",\"locking\":\"off\",\"read-only\":true},\"node-name\":\"image-root\",\"read-only\":true} \
        -device {\"addr\":\"4\",\"disable-legacy\":\"on\",\"drive\":\"image-root\",\"driver\":\"virtio-blk-pci\",\"id\":\"disk-root\",\"serial\":\"root\"} \
        -netdev user,id=network-net,restrict=on \
        -device {\"addr\":\"5\",\"disable-legacy\":\"on\",\"driver\":\"virtio-net-pci\",\"id\":\"nic-net\",\"mac\":\"52:54:00:00:00:01\",\"netdev\":\"network-net\",\"romfile\":\"\"} \
        -kernel /kernel -initrd /initrd -append console=ttyS0";
    assert_eq!(made(&spec(), TCG, Start::Boot).join(" "), expected);
}

#[test]
fn a_restore_differs_from_a_boot_only_in_how_it_begins() {
    let boot = made(&spec(), TCG, Start::Boot);
    let restore = made(&spec(), TCG, Start::Restore);
    let common = boot
        .iter()
        .zip(&restore)
        .take_while(|(one, other)| one == other)
        .count();
    assert_eq!(boot[common], "-kernel");
    assert_eq!(
        restore[common..].join(" "),
        "-option-rom linuxboot_dma.bin -S -incoming defer"
    );
}

#[test]
fn a_private_file_is_opened_read_only_where_qemu_can() {
    let old = memory_object(&made(&spec(), TCG, Start::Restore));
    assert_eq!(old.get("readonly"), None);
    let platform = Platform {
        version: Version { major: 8, minor: 2 },
        ..TCG
    };
    let new = memory_object(&made(&spec(), platform, Start::Restore));
    assert_eq!(
        (&new["readonly"], &new["rom"]),
        (&json!(true), &json!("off"))
    );
    let mut shared = spec();
    shared.memory.backing = Backing::FileBacked {
        path: "/m".into(),
        shared: true,
    };
    assert_eq!(
        memory_object(&made(&shared, platform, Start::Restore)).get("readonly"),
        None
    );
}

#[test]
fn descriptors_of_another_spec_are_refused() {
    for wrong in [
        Descriptors {
            disks: vec![],
            ..descriptors()
        },
        Descriptors {
            disks: vec![13, 14],
            ..descriptors()
        },
        Descriptors {
            agent: None,
            ..descriptors()
        },
    ] {
        assert!(
            arguments(&spec(), TCG, Start::Boot, &wrong).is_err(),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_vsock_device_has_the_guests_context_id() {
    let spec = VmSpec {
        agent: AgentDevice::Vsock { cid: 77 },
        ..spec()
    };
    let descriptors = Descriptors {
        agent: None,
        ..descriptors()
    };
    let line = arguments(&spec, TCG, Start::Boot, &descriptors).unwrap();
    let device = values(&line, "-device")[0];
    assert_eq!(
        serde_json::from_str::<Value>(device).unwrap()["guest-cid"],
        json!(77)
    );
}

/// Paths with all that QEMU's option parsers react to.
fn path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec(
        prop_oneof![
            "[a-z]{1,4}",
            Just(",id=x".into()),
            Just("=\"\\".into()),
            Just(" -S ".into()),
            "\\PC{1,4}"
        ],
        1..5,
    )
    .prop_map(|parts: Vec<String>| PathBuf::from(format!("/{}", parts.concat())))
}

proptest! {
    #[test]
    fn a_path_arrives_as_it_is_and_adds_no_argument(memory in path(), kernel in path(), initrd in path(), disk in path()) {
        let plain = made(&spec(), TCG, Start::Boot);
        let mut odd = spec();
        odd.memory.backing = Backing::FileBacked { path: memory.clone(), shared: true };
        (odd.kernel, odd.initrd) = (kernel.clone(), initrd.clone());
        odd.disks[0].path = disk;
        let line = made(&odd, TCG, Start::Boot);
        prop_assert_eq!(line.len(), plain.len());
        let object = memory_object(&line);
        prop_assert_eq!(object["mem-path"].as_str().map(PathBuf::from), Some(memory));
        prop_assert_eq!(values(&line, "-kernel"), [kernel.to_str().unwrap()]);
        prop_assert_eq!(values(&line, "-initrd"), [initrd.to_str().unwrap()]);
        // All others are the same: no path is in them.
        let changed = plain.iter().zip(&line).filter(|(one, other)| one != other).count();
        prop_assert!(changed <= 3);
    }

    #[test]
    fn a_path_with_a_control_character_or_a_relative_one_is_refused(start in "[a-z/,]{0,8}", control in "[\\x00-\\x1f\\x7f]", end in "[a-z]{0,8}") {
        for path in [format!("/{start}{control}{end}"), format!("{end}x/y")] {
            let mut odd = spec();
            odd.kernel = path.clone().into();
            prop_assert!(arguments(&odd, TCG, Start::Boot, &descriptors()).is_err());
            let mut odd = spec();
            odd.memory.backing = Backing::FileBacked { path: path.into(), shared: true };
            prop_assert!(arguments(&odd, TCG, Start::Boot, &descriptors()).is_err());
        }
    }

    #[test]
    fn words_that_qemu_parses_hold_nothing_but_words(name in "\\PC{0,12}", id in "\\PC{0,12}", model in "\\PC{0,12}", port in "\\PC{0,12}") {
        let mut odd = spec();
        odd.name = name.clone();
        odd.disks[0].id = id;
        odd.cpu_model = Some(model);
        odd.agent = AgentDevice::Serial { socket: "/agent".into(), port_name: port };
        if let Ok(line) = arguments(&odd, TCG, Start::Boot, &descriptors()) {
            prop_assert_eq!(line.len(), made(&spec(), TCG, Start::Boot).len());
            prop_assert!(!name.contains([',', '=', ' ']));
        }
    }
}

#[test]
fn a_tap_is_an_inherited_descriptor_and_every_one_belongs_to_an_interface() {
    let mut spec = spec();
    spec.nics[0].backend = NicBackend::Tap {
        name: "tap0".to_owned(),
    };
    let taps = |taps: &[RawFd]| Descriptors {
        taps: taps.to_vec(),
        ..descriptors()
    };
    let line = arguments(&spec, TCG, Start::Boot, &taps(&[14])).unwrap();
    let network = format!("tap,id=network-{},fd=14", spec.nics[0].id);
    assert_eq!(values(&line, "-netdev"), [network]);
    for wrong in [vec![], vec![14, 15]] {
        assert!(arguments(&spec, TCG, Start::Boot, &taps(&wrong)).is_err());
    }
}

#[test]
fn a_directory_is_a_device_behind_a_connection_and_its_ram_is_shared() {
    let mut spec = spec();
    spec.memory.backing = Backing::Anonymous;
    spec.directories = vec![SharedDirectory {
        tag: "data".into(),
        path: "/srv/secret".into(),
        readonly: true,
    }];
    let with = Descriptors {
        directories: vec![30],
        ..descriptors()
    };
    let line = arguments(&spec, TCG, Start::Boot, &with).unwrap();
    let memory = memory_object(&line);
    assert_eq!(memory["qom-type"], "memory-backend-memfd");
    assert_eq!(memory["share"], true);
    assert!(values(&line, "-chardev").contains(&"socket,id=served-data,fd=30"));
    let device: Value = serde_json::from_str(values(&line, "-device").last().unwrap()).unwrap();
    assert_eq!(device["driver"], "vhost-user-fs-pci");
    assert_eq!(
        (&device["tag"], &device["addr"]),
        (&json!("data"), &json!("6"))
    );
    // QEMU is not told where it is.
    assert!(!line.iter().any(|word| word.contains("secret")), "{line:?}");
    assert!(arguments(&spec, TCG, Start::Boot, &descriptors()).is_err());
    spec.directories.clear();
    assert!(arguments(&spec, TCG, Start::Boot, &with).is_err());
    let alone = arguments(&spec, TCG, Start::Boot, &descriptors()).unwrap();
    assert_eq!(memory_object(&alone)["qom-type"], "memory-backend-ram");
}
