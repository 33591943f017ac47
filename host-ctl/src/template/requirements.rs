//! A machine and its containers, as a manifest keeps them.

use std::path::{Path, PathBuf};

use hypervisor::{Accelerator, AgentDevice, Backing, Capabilities, VmSpec};
use policy::Policy;
use rustix::process::geteuid;

use crate::host::{CallFailed, cpu, tsc_khz};
use crate::sandbox::agent::HYBRID_CID;
use crate::sandbox::driver::Driver;
use crate::sandbox::identity::Uuid;
use crate::sandbox::network::NetworkKind;
use crate::sandbox::spec::{ContainerPlan, Own, SandboxSpec, VmFiles};
use crate::sandbox::vmm::Carrier;
use crate::store::{
    CloneRefusal, FORMAT, Requirements, SavedAgentDevice, SavedContainer, SavedDisk, SavedMachine,
    SavedNic, SavedOrigin, SavedVmm, SavedWarmUp, Sha256, Store,
};

/// The digests of a machine's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Images {
    pub(super) kernel: Sha256,
    pub(super) initrd: Sha256,
    /// In the order of the disks; none for a slot.
    pub(super) disks: Vec<Option<Sha256>>,
}

impl Images {
    /// The files a manifest names.
    pub(super) fn of(requirements: &Requirements) -> Images {
        let machine = &requirements.machine;
        Images {
            kernel: machine.kernel.clone(),
            initrd: machine.initrd.clone(),
            disks: machine
                .disks
                .iter()
                .map(|disk| disk.image.clone())
                .collect(),
        }
    }
}

/// What a saved state depends on beside what the VMM says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    program: Sha256,
    cpu: Option<Sha256>,
    tsc_khz: Option<u64>,
}

impl Platform {
    /// That of this host, for guests of this driver. An emulated CPU is the
    /// VMM's own, whatever the host's is.
    pub(super) fn of(store: &Store, driver: &Driver) -> Result<Platform, CallFailed> {
        let on_the_cpu = driver.capabilities().accelerator == Accelerator::Kvm;
        let cpu = on_the_cpu.then(|| cpu().map(|text| Sha256::of(text.as_bytes())));
        Ok(Platform {
            program: store.digest_of(&driver.program)?,
            cpu: cpu.transpose()?,
            tsc_khz: tsc_khz().filter(|_| on_the_cpu),
        })
    }
}

/// What must match for a template of this sandbox, built or wanted on this
/// host by this program, driver and VMM. `origin` is the sandbox that it is,
/// where nobody could make it again.
pub(super) fn requirements(
    spec: &SandboxSpec,
    images: &Images,
    warm_up: &SavedWarmUp,
    origin: Option<SavedOrigin>,
    capabilities: &Capabilities,
    platform: &Platform,
) -> Requirements {
    let vm = any_vm(spec);
    let default_model = || capabilities.default_cpu_model.clone();
    Requirements {
        format: FORMAT,
        owner: geteuid().as_raw(),
        vmm: SavedVmm {
            kind: capabilities.vmm.clone(),
            version: capabilities.version.clone(),
            program: platform.program.clone(),
            accelerator: capabilities.accelerator.to_string(),
            machine_type: capabilities.machine.clone(),
            cpu_model: vm.cpu_model.clone().unwrap_or_else(default_model),
            cpu: platform.cpu.clone(),
            tsc_khz: platform.tsc_khz,
        },
        machine: saved_machine(&vm, spec.carrier, images),
        // The one an agent has until it is given another.
        policy: Policy::AllowAll.digest().to_string(),
        containers: spec.containers.iter().map(saved_container).collect(),
        warm_up: warm_up.clone(),
        origin,
    }
}

/// A sandbox's VM in no place: of what is here made up, a restore rebinds all,
/// and a manifest holds none.
pub(super) fn any_vm(spec: &SandboxSpec) -> VmSpec {
    let nowhere = VmFiles::below(Path::new("/nonexistent"));
    spec.vm(Own {
        name: "template",
        uuid: Uuid::NIL,
        files: &nowhere,
        backing: Backing::Anonymous,
        cid: HYBRID_CID,
        tap: None,
        cgroup: None,
    })
}

/// The sandbox that a manifest describes, made of kept files.
///
/// # Errors
/// [`CloneRefusal::Vmm`] for a VMM that this program does not know.
pub(super) fn sandbox_spec(
    requirements: &Requirements,
    store: &Store,
) -> Result<SandboxSpec, CloneRefusal> {
    let kind = &requirements.vmm.kind;
    let unknown = |_| CloneRefusal::Vmm(kind.clone());
    let machine = &requirements.machine;
    let kept = |image: &Sha256| -> PathBuf { store.blob_path(image) };
    Ok(SandboxSpec {
        vmm: kind.parse().map_err(unknown)?,
        carrier: carrier(&machine.agent),
        network: network(&machine.nics),
        vcpus: machine.vcpus,
        memory_mib: machine.memory_mib,
        kernel: kept(&machine.kernel),
        initrd: kept(&machine.initrd),
        disks: machine
            .disks
            .iter()
            .map(|disk| disk.image.as_ref().map(kept))
            .collect(),
        // A sandbox with one is not made a template.
        directories: Vec::new(),
        containers: requirements.containers.iter().map(container).collect(),
    })
}

fn carrier(saved: &SavedAgentDevice) -> Carrier {
    match saved {
        SavedAgentDevice::Serial { .. } => Carrier::Serial,
        SavedAgentDevice::Vsock { privileged } => Carrier::Vsock {
            privileged: *privileged,
        },
        SavedAgentDevice::HybridVsock { .. } => Carrier::HybridVsock,
    }
}

fn network(saved: &[SavedNic]) -> NetworkKind {
    if saved.is_empty() {
        NetworkKind::None
    } else {
        NetworkKind::Tap
    }
}

fn saved_machine(vm: &VmSpec, carrier: Carrier, images: &Images) -> SavedMachine {
    let disks = vm.disks.iter().zip(&images.disks);
    SavedMachine {
        vcpus: vm.vcpus,
        memory_mib: vm.memory.size_mib,
        kernel: images.kernel.clone(),
        initrd: images.initrd.clone(),
        cmdline: vm.cmdline.clone(),
        disks: disks
            .map(|(disk, image)| SavedDisk {
                id: disk.id.clone(),
                image: image.clone(),
                readonly: disk.readonly,
            })
            .collect(),
        agent: match &vm.agent {
            AgentDevice::Serial { port_name, .. } => SavedAgentDevice::Serial {
                port_name: port_name.clone(),
            },
            AgentDevice::Vsock { .. } => SavedAgentDevice::Vsock {
                privileged: carrier == Carrier::Vsock { privileged: true },
            },
            AgentDevice::HybridVsock { cid, .. } => SavedAgentDevice::HybridVsock { cid: *cid },
        },
        nics: vm
            .nics
            .iter()
            .map(|nic| SavedNic {
                id: nic.id.clone(),
                mac: nic.mac.clone(),
            })
            .collect(),
    }
}

fn saved_container(container: &ContainerPlan) -> SavedContainer {
    SavedContainer {
        id: container.id.clone(),
        disk: container.disk,
        args: container.args.clone(),
        env: container.env.clone(),
        cwd: container.cwd.clone(),
    }
}

fn container(saved: &SavedContainer) -> ContainerPlan {
    ContainerPlan {
        id: saved.id.clone(),
        disk: saved.disk,
        args: saved.args.clone(),
        env: saved.env.clone(),
        cwd: saved.cwd.clone(),
        directories: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Paths;
    use crate::sandbox::stand_in;
    use crate::sandbox::vmm::Vmm;
    use crate::store::compare;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            vmm: Vmm::Qemu,
            carrier: Carrier::Serial,
            network: NetworkKind::None,
            vcpus: 1,
            memory_mib: 128,
            kernel: "/k".into(),
            initrd: "/i".into(),
            disks: vec![Some("/a".into())],
            directories: Vec::new(),
            containers: vec![ContainerPlan {
                id: "main".into(),
                disk: 0,
                args: vec!["/bin/true".into()],
                env: Vec::new(),
                cwd: "/".into(),
                directories: Vec::new(),
            }],
        }
    }

    fn capabilities() -> Capabilities {
        Capabilities {
            vmm: "qemu".into(),
            ..stand_in::capabilities()
        }
    }

    fn platform() -> Platform {
        Platform {
            program: Sha256::of(b"qemu"),
            cpu: None,
            tsc_khz: None,
        }
    }

    fn saved(spec: &SandboxSpec, capabilities: &Capabilities) -> Requirements {
        let image = Sha256::of(b"image");
        let images = Images {
            kernel: image.clone(),
            initrd: image.clone(),
            disks: vec![Some(image)],
        };
        let warm_up = SavedWarmUp::default();
        requirements(spec, &images, &warm_up, None, capabilities, &platform())
    }

    #[test]
    fn a_manifest_gives_back_the_sandbox_it_was_made_from() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(&root.path().join("state")).unwrap();
        let store = Store::open(&paths).unwrap();
        let have = saved(&spec(), &capabilities());
        let back = sandbox_spec(&have, &store).unwrap();
        assert_eq!(back.containers, spec().containers);
        assert_eq!(back.disks, [Some(store.blob_path(&Sha256::of(b"image")))]);
        // The way to the files is not part of what must match.
        let images = Images::of(&have);
        let again = requirements(
            &back,
            &images,
            &have.warm_up,
            None,
            &capabilities(),
            &platform(),
        );
        assert_eq!(compare(&again, &have).unwrap(), None);
    }

    #[test]
    fn a_manifest_gives_back_the_carrier_of_the_agents_link_and_the_network() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(&root.path().join("state")).unwrap();
        let store = Store::open(&paths).unwrap();
        for carrier in [
            Carrier::Serial,
            Carrier::Vsock { privileged: true },
            Carrier::Vsock { privileged: false },
            Carrier::HybridVsock,
        ] {
            let made = SandboxSpec { carrier, ..spec() };
            let have = saved(&made, &capabilities());
            assert_eq!(sandbox_spec(&have, &store).unwrap().carrier, carrier);
        }
        for network in [NetworkKind::None, NetworkKind::Tap] {
            let made = SandboxSpec { network, ..spec() };
            let have = saved(&made, &capabilities());
            assert_eq!(sandbox_spec(&have, &store).unwrap().network, network);
        }
        let mut have = saved(&spec(), &capabilities());
        have.vmm.kind = "xen".into();
        let refusal = sandbox_spec(&have, &store).unwrap_err();
        assert!(refusal.reason().contains("xen"), "{}", refusal.reason());
    }

    #[test]
    fn whatever_the_guest_could_notice_makes_another_template() {
        let have = saved(&spec(), &capabilities());
        let changes: [fn(&mut SandboxSpec); 4] = [
            |spec| spec.vcpus += 1,
            |spec| spec.memory_mib += 1,
            |spec| spec.disks.clear(),
            |spec| spec.containers[0].env.push("A=b".into()),
        ];
        for change in changes {
            let mut changed = spec();
            change(&mut changed);
            let difference = compare(&saved(&changed, &capabilities()), &have).unwrap();
            assert!(difference.is_some(), "{changed:?}");
        }
        let newer = Capabilities {
            version: "8.0".into(),
            accelerator_reason: "another".into(),
            ..capabilities()
        };
        let difference = compare(&saved(&spec(), &newer), &have).unwrap().unwrap();
        assert_eq!(difference.field, "vmm.version");
        let changes: [(&str, Platform); 3] = [
            (
                "vmm.program",
                Platform {
                    program: Sha256::of(b"rebuilt"),
                    ..platform()
                },
            ),
            (
                "vmm.cpu",
                Platform {
                    cpu: Some(Sha256::of(b"cpu")),
                    ..platform()
                },
            ),
            (
                "vmm.tsc_khz",
                Platform {
                    tsc_khz: Some(1),
                    ..platform()
                },
            ),
        ];
        for (field, changed) in changes {
            let images = Images::of(&have);
            let wanted = requirements(
                &spec(),
                &images,
                &have.warm_up,
                None,
                &capabilities(),
                &changed,
            );
            let difference = compare(&wanted, &have).unwrap().unwrap();
            assert_eq!(difference.field, field);
        }
    }

    /// A template of each VMM, and what a clone on another machine would want:
    /// the field that differs.
    type Change = fn(&mut Images, &mut Capabilities, &mut Platform);

    #[test]
    fn what_changed_under_a_template_is_named_on_each_vmm() {
        let changes: [(&str, Change); 9] = [
            ("machine.kernel", |images, _, _| {
                images.kernel = Sha256::of(b"other");
            }),
            ("machine.initrd", |images, _, _| {
                images.initrd = Sha256::of(b"other");
            }),
            ("machine.disks[0].image", |images, _, _| {
                images.disks[0] = Some(Sha256::of(b"other"));
            }),
            ("vmm.cpu", |_, _, platform| {
                platform.cpu = Some(Sha256::of(b"flags"));
            }),
            ("vmm.cpu_model", |_, vmm, _| {
                vmm.default_cpu_model = "max".into();
            }),
            ("vmm.tsc_khz", |_, _, platform| platform.tsc_khz = Some(2)),
            ("vmm.program", |_, _, platform| {
                platform.program = Sha256::of(b"other");
            }),
            ("vmm.version", |_, vmm, _| vmm.version = "2".into()),
            ("vmm.accelerator", |_, vmm, _| {
                vmm.accelerator = Accelerator::Tcg;
            }),
        ];
        for vmm in Vmm::ALL {
            let spec = SandboxSpec {
                vmm,
                carrier: Carrier::HybridVsock,
                ..spec()
            };
            let capabilities = Capabilities {
                vmm: vmm.name().into(),
                accelerator: Accelerator::Kvm,
                ..capabilities()
            };
            let platform = Platform {
                program: Sha256::of(b"program"),
                cpu: Some(Sha256::of(b"cpu")),
                tsc_khz: Some(1),
            };
            let images = Images {
                kernel: Sha256::of(b"kernel"),
                initrd: Sha256::of(b"initrd"),
                disks: vec![Some(Sha256::of(b"disk"))],
            };
            let warm_up = SavedWarmUp::default();
            let made = |images: &Images, capabilities: &Capabilities, platform: &Platform| {
                requirements(&spec, images, &warm_up, None, capabilities, platform)
            };
            let have = made(&images, &capabilities, &platform);
            for (field, change) in changes {
                let (mut images, mut capabilities) = (images.clone(), capabilities.clone());
                let mut platform = platform.clone();
                change(&mut images, &mut capabilities, &mut platform);
                let wanted = made(&images, &capabilities, &platform);
                let difference = compare(&wanted, &have).unwrap().unwrap();
                assert_eq!(difference.field, field, "{vmm}");
                // It is another template, then: that one is not found either.
                assert_ne!(wanted.digest().unwrap(), have.digest().unwrap());
            }
        }
    }
}
