//! What a sandbox is made of: the machine and the containers in it. A live
//! type: a template's manifest says the same with digests in place of paths,
//! so that a clone that cannot be restored can be booted cold.

use super::identity::Uuid;
use super::network::{NIC, NetworkKind};
use super::vmm::{Carrier, Vmm};
use crate::host::network::{HardwareAddress, TapRecord};
use agent_client::{ContainerConfig, HostDirectory, Rootfs};
use hypervisor::{Backing, Disk, Memory, Nic, NicBackend, SharedDirectory, VmSpec};
use protocols::VsockPeers;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The words that every guest kernel's command line begins with: the console,
/// few words on it, an end instead of a hang after a panic, and freed memory
/// zeroed (what a process left behind is in no template, and zero pages cost
/// none any space).
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 init_on_free=1";
/// What Firecracker's guests are told beside: its machine has no power switch
/// and ends when the keyboard controller resets it.
const NO_POWER_SWITCH: &str = "reboot=k agent.end=reset";
/// The file system of root images.
const ROOT_FILE_SYSTEM: &str = "erofs";

/// How much a guest takes a slot for, in bytes: what no image is longer than.
/// A guest asks for a disk's size when it finds it, and reads nothing of a
/// shorter image but what its file system says is there.
pub const SLOT_BYTES: u64 = 256 << 30;

/// A sandbox to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// What runs it.
    pub vmm: Vmm,
    /// What carries the link to its agent.
    pub carrier: Carrier,
    /// Its network.
    pub network: NetworkKind,
    /// CPUs of the guest.
    pub vcpus: u8,
    /// RAM of the guest in MiB.
    pub memory_mib: u32,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initrd, with the agent in it.
    pub initrd: PathBuf,
    /// Read-only images, in the order the guest sees them: the first is
    /// /dev/vda. None is a slot: plugged like any other, for an image that comes
    /// later.
    pub disks: Vec<Option<PathBuf>>,
    /// Directories of the host that its containers may see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<DirectoryPlan>,
    /// Containers, in the order they are started.
    pub containers: Vec<ContainerPlan>,
}

/// A directory of the host that is shared with a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryPlan {
    /// The directory.
    pub path: PathBuf,
    /// Whether the guest can only read it.
    pub readonly: bool,
}

/// A directory of a [`SandboxSpec`] in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenDirectory {
    /// Its index in [`SandboxSpec::directories`].
    pub directory: usize,
    /// Where the container sees it.
    pub at: PathBuf,
    /// Whether it can only be read there.
    pub readonly: bool,
}

/// A container of a [`SandboxSpec`]: one process on an overlay over one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPlan {
    /// Its id.
    pub id: String,
    /// Index of its image in [`SandboxSpec::disks`].
    pub disk: usize,
    /// Its command.
    pub args: Vec<String>,
    /// Its environment, `NAME=VALUE`, beside a common PATH.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// The directories of the host that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<SeenDirectory>,
}

/// The sockets and files of one sandbox's VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFiles {
    /// The VMM's end of the device that carries the agent's link.
    pub link: PathBuf,
    /// The guest kernel's console.
    pub console: PathBuf,
    /// The VMM's own control socket.
    pub monitor: PathBuf,
    /// What the VMM says on its standard error.
    pub log: PathBuf,
    /// What is plugged into a slot without an image: [`SLOT_BYTES`] long, and a
    /// hole.
    pub slot: PathBuf,
}

impl VmFiles {
    /// The files of a VM in the run directory of its sandbox, where
    /// [`crate::config::SandboxPaths`] has them.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self {
            link: directory.join("vmm/link.sock"),
            console: directory.join("console.sock"),
            monitor: directory.join("monitor.sock"),
            log: directory.join("vmm.log"),
            slot: directory.join("slot"),
        }
    }
}

/// What is one VM's own.
#[derive(Debug, Clone)]
pub struct Own<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its sockets and files.
    pub files: &'a VmFiles,
    /// Where its RAM lies.
    pub backing: Backing,
    /// Its context id, where the host's kernel tells VMs apart by it.
    pub cid: u32,
    /// What its interface is connected to, if it has one.
    pub tap: Option<&'a TapRecord>,
    /// The cgroup its VMM is started in, if one was made.
    pub cgroup: Option<&'a Path>,
}

impl SandboxSpec {
    /// The VM: for all sandboxes of this spec the same device for device, apart
    /// from what is its own.
    #[must_use]
    pub fn vm(&self, own: Own<'_>) -> VmSpec {
        let Own { files, .. } = own;
        let disk = |(index, image): (usize, &Option<PathBuf>)| Disk {
            id: disk_id(index),
            path: image.as_ref().unwrap_or(&files.slot).clone(),
            readonly: true,
        };
        VmSpec {
            name: own.name.to_owned(),
            uuid: own.uuid.to_string(),
            vcpus: self.vcpus,
            memory: Memory {
                size_mib: self.memory_mib,
                backing: own.backing,
            },
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.command_line(),
            disks: self.disks.iter().enumerate().map(disk).collect(),
            agent: self.carrier.device(files, own.cid),
            console: files.console.clone(),
            monitor: files.monitor.clone(),
            nics: self.nics(own.tap),
            directories: self.shared_directories(),
            cpu_model: None,
            log: files.log.clone(),
            cgroup: own.cgroup.map(Path::to_owned),
        }
    }

    /// The same machine with nothing in it: no container, and a slot for each
    /// disk. What is frozen of it serves all sandboxes of its size.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            disks: vec![None; self.disks.len()],
            containers: Vec::new(),
            ..self.clone()
        }
    }

    /// Whether an image is still to come.
    #[must_use]
    pub fn has_slots(&self) -> bool {
        self.disks.iter().any(Option::is_none)
    }

    /// Whether each image that is there is short enough for a slot.
    #[must_use]
    pub fn fits_slots(&self) -> bool {
        let mut images = self.disks.iter().flatten();
        images.all(|image| {
            image
                .metadata()
                .is_ok_and(|found| found.len() <= SLOT_BYTES)
        })
    }

    /// The images, each by the id of its disk.
    #[must_use]
    pub fn images(&self) -> BTreeMap<String, PathBuf> {
        let disks = self.disks.iter().enumerate();
        disks
            .filter_map(|(index, image)| Some((disk_id(index), image.clone()?)))
            .collect()
    }

    fn shared_directories(&self) -> Vec<SharedDirectory> {
        let shared = |(index, plan): (usize, &DirectoryPlan)| SharedDirectory {
            tag: directory_tag(index),
            path: plan.path.clone(),
            readonly: plan.readonly,
        };
        self.directories.iter().enumerate().map(shared).collect()
    }

    /// The interface, plugged before the guest boots, so that no clone has to.
    /// Without a tap the one of a VM in no place.
    fn nics(&self, tap: Option<&TapRecord>) -> Vec<Nic> {
        if self.network == NetworkKind::None {
            return Vec::new();
        }
        let mac = tap.map_or(HardwareAddress::TEMPLATE, |tap| tap.guest);
        let backend = tap.map_or(NicBackend::None, |tap| NicBackend::Tap {
            name: tap.name.clone(),
        });
        vec![Nic {
            id: NIC.to_owned(),
            mac: mac.to_string(),
            backend,
        }]
    }

    /// The guest kernel's command line, with where the agent listens, and to
    /// whom.
    fn command_line(&self) -> String {
        let mut line = format!(
            "{COMMAND_LINE} agent.server_addr={}",
            self.carrier.listens_at()
        );
        let peers = self.carrier.peers();
        if peers != VsockPeers::default() {
            line.push_str(&format!(" agent.vsock_peers={peers}"));
        }
        if self.vmm == Vmm::Firecracker {
            line.push(' ');
            line.push_str(NO_POWER_SWITCH);
        }
        line
    }

    /// The node the guest gives the disk with this index: virtio block devices
    /// are named in the order of their slots, vda first. No VM has more than 26.
    #[must_use]
    pub fn guest_device(index: usize) -> Option<String> {
        let letter = u8::try_from(index).ok().filter(|index| *index < 26)?;
        Some(format!("/dev/vd{}", char::from(b'a' + letter)))
    }
}

/// The id of the disk with this index, the same in every VM of a spec.
fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// What the guest mounts the directory with this index by.
fn directory_tag(index: usize) -> String {
    format!("directory{index}")
}

impl ContainerPlan {
    /// What the agent is asked for; none when no guest has such a disk.
    #[must_use]
    pub fn config(&self) -> Option<ContainerConfig> {
        let rootfs = Rootfs::OverlayDisk {
            device: SandboxSpec::guest_device(self.disk)?,
            fstype: ROOT_FILE_SYSTEM.into(),
            upper_size_mib: None,
        };
        let mut config = ContainerConfig::new(self.id.clone(), rootfs, self.args.clone());
        // Of two equal names most software takes the first.
        let is_path = |variable: &String| variable.starts_with("PATH=");
        if self.env.iter().any(is_path) {
            config.env.retain(|variable| !is_path(variable));
        }
        config.env.extend(self.env.iter().cloned());
        config.cwd = self.cwd.to_string_lossy().into_owned();
        config.directories = self
            .directories
            .iter()
            .map(|seen| HostDirectory {
                tag: directory_tag(seen.directory),
                destination: seen.at.to_string_lossy().into_owned(),
                readonly: seen.readonly,
            })
            .collect();
        Some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            vmm: Vmm::Qemu,
            carrier: Carrier::Serial,
            network: NetworkKind::None,
            vcpus: 2,
            memory_mib: 128,
            kernel: "/k".into(),
            initrd: "/i".into(),
            disks: vec![Some("/a".into()), Some("/b".into())],
            directories: Vec::new(),
            containers: vec![ContainerPlan {
                id: "main".into(),
                disk: 1,
                args: vec!["/bin/true".into()],
                env: vec!["A=b".into()],
                cwd: "/srv".into(),
                directories: Vec::new(),
            }],
        }
    }

    fn words(vmm: Vmm, carrier: Carrier) -> Vec<String> {
        let spec = SandboxSpec {
            vmm,
            carrier,
            ..spec()
        };
        let line = spec.command_line();
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_agent_is_told_the_port_it_finds_and_whom_to_take() {
        let serial = words(Vmm::Qemu, Carrier::Serial);
        assert!(serial.contains(&"agent.server_addr=serial://tardigrade.agent".to_owned()));
        let vsock = "agent.server_addr=vsock://-1:1024".to_owned();
        let peers = "agent.vsock_peers=privileged-host".to_owned();
        for (carrier, closed) in [
            (Carrier::Vsock { privileged: true }, true),
            (Carrier::Vsock { privileged: false }, false),
            (Carrier::HybridVsock, false),
        ] {
            let words = words(Vmm::Qemu, carrier);
            assert!(words.contains(&vsock), "{words:?}");
            assert_eq!(words.contains(&peers), closed, "{words:?}");
        }
    }

    #[test]
    fn only_a_machine_without_a_power_switch_ends_by_a_reset() {
        for vmm in Vmm::ALL {
            let words = words(vmm, vmm.default_carrier());
            let resets = words.contains(&"agent.end=reset".to_owned());
            assert_eq!(resets, vmm == Vmm::Firecracker);
        }
    }

    #[test]
    fn two_sandboxes_of_a_spec_differ_only_in_what_is_their_own() {
        let paths = crate::config::Paths {
            store: "/s".into(),
            run: "/r".into(),
        };
        let vm = || {
            let id = crate::config::SandboxId::random().unwrap();
            let paths = paths.sandbox(&id);
            let files = VmFiles::below(paths.directory());
            assert_eq!(files.link, paths.link());
            assert_eq!(files.console, paths.console());
            assert_eq!(files.monitor, paths.monitor());
            assert_eq!(files.log, paths.vmm_log());
            let uuid = Uuid::draw().unwrap();
            spec().vm(Own {
                name: &id.vm_name(),
                uuid,
                files: &files,
                backing: Backing::Anonymous,
                cid: 3,
                tap: None,
                cgroup: None,
            })
        };
        let (one, two) = (vm(), vm());
        one.validate().unwrap();
        assert_ne!(one.uuid, two.uuid);
        assert_ne!(one.monitor, two.monitor);
        let like_one = VmSpec {
            name: one.name.clone(),
            uuid: one.uuid.clone(),
            agent: one.agent.clone(),
            console: one.console.clone(),
            monitor: one.monitor.clone(),
            log: one.log.clone(),
            ..two
        };
        assert_eq!(like_one, one);
    }

    #[test]
    fn an_emptied_sandbox_has_the_same_devices_and_takes_the_images_later() {
        let (full, empty) = (spec(), spec().emptied());
        assert!(empty.has_slots() && empty.containers.is_empty() && empty.images().is_empty());
        assert!(!full.has_slots());
        let files = VmFiles::below(Path::new("/r"));
        let vm = |spec: &SandboxSpec| {
            spec.vm(Own {
                name: "n",
                uuid: Uuid::NIL,
                files: &files,
                backing: Backing::Anonymous,
                cid: 3,
                tap: None,
                cgroup: None,
            })
        };
        assert!(vm(&empty).disks.iter().all(|disk| disk.path == files.slot));
        let rebind = hypervisor::Rebind {
            disks: full.images(),
            ..Default::default()
        };
        assert_eq!(vm(&empty).rebound(&rebind).unwrap(), vm(&full));
    }

    #[test]
    fn a_container_starts_from_its_own_disk() {
        let config = spec().containers[0].config().unwrap();
        let Rootfs::OverlayDisk { device, .. } = &config.rootfs else {
            panic!("{:?}", config.rootfs);
        };
        assert_eq!(device, "/dev/vdb");
        assert_eq!(config.cwd, "/srv");
        assert!(config.env.iter().any(|variable| variable == "A=b"));
        assert!(
            config
                .env
                .iter()
                .any(|variable| variable.starts_with("PATH="))
        );
    }

    #[test]
    fn a_path_of_its_own_is_the_only_one() {
        let mut plan = spec().containers.remove(0);
        plan.env = vec!["PATH=/opt".into()];
        assert_eq!(plan.config().unwrap().env, ["PATH=/opt"]);
    }

    #[test]
    fn no_guest_has_a_27th_disk() {
        assert_eq!(SandboxSpec::guest_device(25).unwrap(), "/dev/vdz");
        assert_eq!(SandboxSpec::guest_device(26), None);
    }

    #[test]
    fn a_spec_survives_its_text() {
        let text = serde_json::to_string(&spec()).unwrap();
        assert_eq!(serde_json::from_str::<SandboxSpec>(&text).unwrap(), spec());
    }
}
