//! No message makes a conversion panic, whatever it holds.

use super::ConvertError;
use super::arbitrary::message_of;
use crate::service::container::CreateContainer;
use crate::service::process::ExecProcess;
use guest_runtime::container::{Clock, HookKind, IdMapping, NamespaceKind};
use proptest::prelude::*;
use protobuf::MessageFull;
use protocols::wire::agent;

fn arbitrary<M: MessageFull>(numbers: Vec<u64>) -> M {
    let made = message_of(&M::descriptor(), numbers);
    *made.downcast_box().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_container_makes_the_conversion_panic(
        numbers in prop::collection::vec(any::<u64>(), 0..600),
    ) {
        let mut request: agent::CreateContainerRequest = arbitrary(numbers);
        // What every other message would be refused for at once.
        request.container_id = "container".into();
        request.devices.clear();
        request.shared_mounts.clear();
        request.sandbox_pidns = false;
        (request.stdin_port, request.stdout_port, request.stderr_port) = (0, 0, 0);
        if let Some(spec) = request.OCI.as_mut() {
            spec.Solaris.clear();
            spec.Windows.clear();
        }
        let converted: Result<CreateContainer, ConvertError> = request.try_into();
        if let Ok(create) = converted {
            let _ = create.spec.validate();
        }
    }

    #[test]
    fn no_process_makes_the_conversion_panic(
        numbers in prop::collection::vec(any::<u64>(), 0..200),
    ) {
        let mut request: agent::ExecProcessRequest = arbitrary(numbers);
        request.container_id = "container".into();
        request.exec_id = "exec".into();
        (request.stdin_port, request.stdout_port, request.stderr_port) = (0, 0, 0);
        let converted: Result<ExecProcess, ConvertError> = request.try_into();
        if let Ok(exec) = converted {
            let _ = exec.process.validate();
        }
    }
}

fn create(change: impl FnOnce(&mut agent::Spec)) -> Result<CreateContainer, ConvertError> {
    let mut spec = agent::Spec::new();
    spec.Process.mut_or_insert_default().Args = vec!["true".into()];
    spec.Root.mut_or_insert_default().Path = "/root".into();
    spec.Linux.mut_or_insert_default();
    change(&mut spec);
    let mut request = agent::CreateContainerRequest::new();
    request.container_id = "container".into();
    request.OCI = Some(spec).into();
    request.try_into()
}

#[test]
fn what_the_wire_has_no_field_for_comes_as_an_annotation() {
    let with = |text: &str| {
        create(|spec| {
            spec.Annotations
                .insert("dev.tardigrade.oci".into(), text.into());
        })
    };
    let text = "{\"domainname\":\"d\",\"process\":{\"user\":{\"umask\":18},\
                \"ioPriority\":{\"class\":\"IOPRIO_CLASS_IDLE\"},\
                \"scheduler\":{\"policy\":\"SCHED_BATCH\",\"nice\":-3}},\
                \"linux\":{\"timeOffsets\":{\"boottime\":{\"secs\":-5,\"nanosecs\":7}},\"resources\":{\"cpu\":{\"burst\":0,\"idle\":1},\
                \"rdma\":{\"mlx\":{\"hcaHandles\":2}},\"unified\":{\"memory.high\":\"9\"}}}}";
    let spec = with(text).unwrap().spec;
    assert_eq!(spec.process.umask, Some(0o22));
    assert_eq!(spec.process.scheduler.unwrap().nice, -3);
    assert!(spec.process.io_priority.is_some());
    assert_eq!(spec.sysctl["kernel.domainname"], "d");
    let offset = spec.time_offsets[&Clock::Boottime];
    assert_eq!((offset.secs, offset.nanosecs), (-5, 7));
    assert_eq!(spec.resources.cpu_burst, Some(0));
    assert_eq!(spec.resources.cpu_idle, Some(true));
    assert_eq!(spec.resources.rdma["mlx"].handles, Some(2));
    assert_eq!(spec.resources.unified["memory.high"], "9");
    for wrong in [
        "",
        "[]",
        "{\"mounts\":[{\"destination\":\"/data\"}]}",
        "{\"mounts\":[{\"destination\":\"/x\",\"uidMappings\":[],\"gidMappings\":[]}]}",
        "{\"linux\":{\"timeOffsets\":{\"realtime\":{}}}}",
        "{\"linux\":{\"timeOffsets\":{\"boottime\":{\"nanosecs\":-1}}}}",
        "{\"process\":{\"execCPUAffinity\":{}}}",
        "{\"linux\":{\"resources\":{\"cpu\":{\"idle\":2}}}}",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_socket_of_the_transport_is_allowed_by_one_word_alone() {
    let with = |word: &str| {
        create(|spec| {
            spec.Annotations
                .insert("dev.tardigrade.vsock".into(), word.into());
        })
    };
    assert!(!create(|_| {}).unwrap().spec.process.vsock);
    assert!(with("allowed").unwrap().spec.process.vsock);
    for wrong in ["", "Allowed", "true", "refused"] {
        let error = with(wrong).unwrap_err();
        assert!(error.to_string().contains("dev.tardigrade.vsock"));
    }
}

#[test]
fn what_no_container_can_have_is_refused_by_its_name() {
    type Change = fn(&mut agent::CreateContainerRequest);
    let cases: [(&str, Change); 5] = [
        ("devices", |request| {
            request.devices.push(agent::Device::new());
        }),
        ("shared_mounts", |request| {
            request.shared_mounts.push(agent::SharedMount::new());
        }),
        ("sandbox_pidns", |request| request.sandbox_pidns = true),
        ("passing of stdio", |request| request.stdout_port = 1),
        ("fs_group", |request| {
            let mut storage = agent::Storage::new();
            storage.fs_group.mut_or_insert_default();
            request.storages.push(storage);
        }),
    ];
    for (name, change) in cases {
        let mut request = agent::CreateContainerRequest::new();
        request.container_id = "container".into();
        let spec = request.OCI.mut_or_insert_default();
        spec.Process.mut_or_insert_default().Args = vec!["true".into()];
        spec.Root.mut_or_insert_default().Path = "/root".into();
        assert!(CreateContainer::try_from(request.clone()).is_ok());
        change(&mut request);
        let error = CreateContainer::try_from(request).unwrap_err();
        assert!(matches!(error, ConvertError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn every_hook_stays_of_its_kind() {
    let hook = |path: &str| {
        let mut hook = agent::Hook::new();
        hook.Path = path.into();
        vec![hook]
    };
    let create = create(|spec| {
        let hooks = spec.Hooks.mut_or_insert_default();
        hooks.Prestart = hook("/prestart");
        hooks.CreateRuntime = hook("/createRuntime");
        hooks.CreateContainer = hook("/createContainer");
        hooks.StartContainer = hook("/startContainer");
        hooks.Poststart = hook("/poststart");
        hooks.Poststop = hook("/poststop");
    });
    let hooks = create.unwrap().spec.hooks;
    for kind in [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
        HookKind::StartContainer,
        HookKind::Poststart,
        HookKind::Poststop,
    ] {
        let [hook] = hooks.of(kind) else {
            panic!("{kind}: not one hook");
        };
        assert_eq!(hook.path.to_str(), Some(format!("/{kind}").as_str()));
        // One without arguments is called by its path.
        assert_eq!(hook.args, [format!("/{kind}")]);
        assert_eq!(hook.timeout.as_secs(), 10);
    }
}

#[test]
fn a_mount_gets_its_own_mappings_by_the_annotation() {
    let fragment = "{\"mounts\":[{\"destination\":\"/data\",\
                    \"uidMappings\":[{\"containerID\":1,\"hostID\":2,\"size\":3}],\
                    \"gidMappings\":[{\"containerID\":4,\"hostID\":5,\"size\":6}]}]}";
    let with = |destinations: &[&str]| {
        create(|spec| {
            for destination in destinations {
                let mut mount = agent::Mount::new();
                mount.destination = (*destination).into();
                spec.Mounts.push(mount);
            }
            let key = "dev.tardigrade.oci".into();
            spec.Annotations.insert(key, fragment.into());
        })
    };
    let spec = with(&["/other", "/data"]).unwrap().spec;
    assert_eq!(spec.mounts[0].id_mappings, None);
    let mappings = spec.mounts[1].id_mappings.as_ref().unwrap();
    let mapping = |inside, outside, size| IdMapping {
        inside,
        outside,
        size,
    };
    assert_eq!(mappings.users, [mapping(1, 2, 3)]);
    assert_eq!(mappings.groups, [mapping(4, 5, 6)]);
    for destinations in [&["/other"][..], &["/data", "/data"]] {
        assert!(with(destinations).is_err());
    }
}

#[test]
fn what_a_security_module_is_to_do_is_passed_on_and_nothing_is_no_request() {
    let with = |profile: &str, label: &str| {
        let created = create(|spec| {
            let process = spec.Process.mut_or_insert_default();
            process.ApparmorProfile = profile.into();
            process.SelinuxLabel = label.into();
            spec.Linux.mut_or_insert_default().MountLabel = label.into();
        });
        let spec = created.unwrap().spec;
        (
            spec.process.apparmor_profile,
            spec.process.selinux_label,
            spec.mount_label,
        )
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(with("", ""), (None, None, None));
    assert_eq!(with("unconfined", ""), (None, None, None));
    assert_eq!(with("x", "y"), (some("x"), some("y"), some("y")));
}

type Change = fn(&mut agent::Linux);

#[test]
fn what_is_not_done_is_refused_by_its_name() {
    let cases: [(&str, Change); 4] = [
        ("\"vendor\"", |linux| {
            let mut namespace = agent::LinuxNamespace::new();
            namespace.Type = "vendor".into();
            linux.Namespaces.push(namespace);
        }),
        ("SCMP_ACT_NOTIFY", |linux| {
            linux.Seccomp.mut_or_insert_default().DefaultAction = "SCMP_ACT_NOTIFY".into();
        }),
        ("swappiness", |linux| {
            let resources = linux.Resources.mut_or_insert_default();
            resources.Memory.mut_or_insert_default().Swappiness = 1;
        }),
        ("leafWeight", |linux| {
            let resources = linux.Resources.mut_or_insert_default();
            resources.BlockIO.mut_or_insert_default().LeafWeight = 1;
        }),
    ];
    for (name, change) in cases {
        let error = create(|spec| change(spec.Linux.mut_or_insert_default())).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_user_namespace_and_both_its_mappings_are_passed_on() {
    let spec = create(|spec| {
        let linux = spec.Linux.mut_or_insert_default();
        let mut namespace = agent::LinuxNamespace::new();
        namespace.Type = "user".into();
        linux.Namespaces.push(namespace);
        for (list, first) in [(&mut linux.UIDMappings, 100), (&mut linux.GIDMappings, 200)] {
            let mut mapping = agent::LinuxIDMapping::new();
            (mapping.ContainerID, mapping.HostID, mapping.Size) = (1, first, 3);
            list.push(mapping);
        }
    });
    let spec = spec.unwrap().spec;
    assert_eq!(spec.namespaces[0].kind, NamespaceKind::User);
    let mapping = |outside| IdMapping {
        inside: 1,
        outside,
        size: 3,
    };
    assert_eq!(spec.id_mappings.users, [mapping(100)]);
    assert_eq!(spec.id_mappings.groups, [mapping(200)]);
}
