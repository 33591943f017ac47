//! Which specs are refused, and what a rebind changes.

use super::*;

fn spec() -> VmSpec {
    let disk = |id: &str| Disk {
        id: id.into(),
        path: format!("/{id}").into(),
        readonly: true,
    };
    VmSpec {
        name: "vm-1".into(),
        uuid: "01234567-89ab-cdef-0123-456789abcdef".into(),
        vcpus: 1,
        memory: Memory {
            size_mib: 128,
            backing: Backing::Anonymous,
        },
        kernel: "/kernel".into(),
        initrd: "/initrd".into(),
        cmdline: String::new(),
        disks: vec![disk("a"), disk("b")],
        agent: AgentDevice::Serial {
            socket: "/agent".into(),
            port_name: "port".into(),
        },
        console: "/console".into(),
        monitor: "/monitor".into(),
        nics: vec![Nic {
            id: "n".into(),
            mac: "52:54:00:00:00:01".into(),
            backend: NicBackend::None,
        }],
        directories: Vec::new(),
        cpu_model: None,
        log: "/log".into(),
        cgroup: None,
    }
}

fn refused(change: impl FnOnce(&mut VmSpec)) -> &'static str {
    let mut spec = spec();
    change(&mut spec);
    match spec.validate() {
        Err(Error::Spec { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sound_spec_passes_and_survives_its_json() {
    spec().validate().unwrap();
    let json = serde_json::to_string(&spec()).unwrap();
    assert_eq!(serde_json::from_str::<VmSpec>(&json).unwrap(), spec());
}

#[test]
fn the_wrong_field_is_named() {
    assert_eq!(refused(|spec| spec.name = "a,b".into()), "name");
    assert_eq!(refused(|spec| spec.name = "-S".into()), "name");
    assert_eq!(
        refused(|spec| spec.uuid = "01234567-89ab-cdef-0123-456789abcdeg".into()),
        "uuid"
    );
    assert_eq!(refused(|spec| spec.vcpus = 0), "vcpus");
    assert_eq!(refused(|spec| spec.memory.size_mib = 1), "memory.size_mib");
    assert_eq!(refused(|spec| spec.cmdline = "x".repeat(2048)), "cmdline");
    assert_eq!(refused(|spec| spec.cmdline = "a\nb".into()), "cmdline");
    assert_eq!(
        refused(|spec| spec.cpu_model = Some("max,\n".into())),
        "cpu_model"
    );
    assert_eq!(refused(|spec| spec.log = "log".into()), "log");
    assert_eq!(refused(|spec| spec.disks[1].id = "a".into()), "disks.id");
    assert_eq!(
        refused(|spec| spec.disks[1].id = "b".repeat(21)),
        "disks.id"
    );
    assert_eq!(refused(|spec| spec.nics[0].id = "a".into()), "nics.id");
    assert_eq!(
        refused(|spec| spec.nics[0].mac = "01:00:5e:00:00:01".into()),
        "nics.mac"
    );
    assert_eq!(
        refused(|spec| spec.nics[0].mac = "52:54:00:00:00".into()),
        "nics.mac"
    );
    assert_eq!(
        refused(|spec| spec.nics = vec![spec.nics[0].clone(); 25]),
        "disks"
    );
    assert_eq!(
        refused(|spec| {
            spec.nics[0].backend = NicBackend::Tap {
                name: "a".repeat(16),
            }
        }),
        "nics.backend"
    );
    assert_eq!(
        refused(|spec| spec.agent = AgentDevice::Vsock { cid: 2 }),
        "agent.cid"
    );
}

#[test]
fn a_rebind_changes_what_it_names_and_nothing_else() {
    assert_eq!(spec().rebound(&Rebind::default()).unwrap(), spec());
    let rebind = Rebind {
        name: Some("clone".into()),
        agent: Some(AgentDevice::Serial {
            socket: "/other".into(),
            port_name: "port".into(),
        }),
        memory: Some(Backing::FileBacked {
            path: "/m".into(),
            shared: false,
        }),
        disks: [("b".to_owned(), PathBuf::from("/c"))].into(),
        nics: [("n".to_owned(), NicBackend::User)].into(),
        cgroup: Some("/sys/fs/cgroup/clone".into()),
        ..Rebind::default()
    };
    let mut expected = spec();
    expected.name = "clone".into();
    expected.agent = AgentDevice::Serial {
        socket: "/other".into(),
        port_name: "port".into(),
    };
    expected.memory.backing = Backing::FileBacked {
        path: "/m".into(),
        shared: false,
    };
    expected.disks[1].path = "/c".into();
    expected.nics[0].backend = NicBackend::User;
    expected.cgroup = Some("/sys/fs/cgroup/clone".into());
    assert_eq!(spec().rebound(&rebind).unwrap(), expected);
}

#[test]
fn a_rebind_cannot_change_what_the_guest_sees() {
    for rebind in [
        Rebind {
            agent: Some(AgentDevice::Vsock { cid: 5 }),
            ..Rebind::default()
        },
        Rebind {
            agent: Some(AgentDevice::Serial {
                socket: "/x".into(),
                port_name: "other".into(),
            }),
            ..Rebind::default()
        },
        Rebind {
            disks: [("z".to_owned(), PathBuf::from("/c"))].into(),
            ..Rebind::default()
        },
        Rebind {
            nics: [("z".to_owned(), NicBackend::None)].into(),
            ..Rebind::default()
        },
    ] {
        assert!(
            matches!(spec().rebound(&rebind), Err(Error::Spec { .. })),
            "{rebind:?}"
        );
    }
}

fn directory(tag: &str) -> SharedDirectory {
    SharedDirectory {
        tag: tag.to_owned(),
        path: "/srv/data".into(),
        readonly: true,
    }
}

#[test]
fn a_directory_has_a_tag_of_its_own_and_a_clean_path_and_is_found_by_its_tag() {
    let with = |directories: &[SharedDirectory]| VmSpec {
        directories: directories.to_vec(),
        ..spec()
    };
    with(&[directory("one"), directory("two")])
        .validate()
        .unwrap();
    let taken = spec().disks[0].id.clone();
    for tag in [
        "",
        "two words",
        "a,b",
        "a".repeat(37).as_str(),
        taken.as_str(),
    ] {
        assert!(with(&[directory(tag)]).validate().is_err(), "{tag:?}");
    }
    assert!(
        with(&[directory("one"), directory("one")])
            .validate()
            .is_err()
    );
    let relative = SharedDirectory {
        path: "data".into(),
        ..directory("one")
    };
    assert!(with(&[relative]).validate().is_err());
    let rebind = |tag: &str| Rebind {
        directories: [(tag.to_owned(), PathBuf::from("/srv/other"))].into(),
        ..Rebind::default()
    };
    let shared = with(&[directory("one")]);
    let rebound = shared.rebound(&rebind("one")).unwrap();
    assert_eq!(rebound.directories[0].path, PathBuf::from("/srv/other"));
    assert!(shared.rebound(&rebind("two")).is_err());
    // What was written before there were directories is read as before.
    let text = serde_json::to_string(&spec()).unwrap();
    assert!(!text.contains("directories"));
    assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec());
}
