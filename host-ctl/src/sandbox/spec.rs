//! What a sandbox is made of: the machine and the containers in it. A live
//! type: a template's manifest says the same with digests in place of paths,
//! so that a clone that cannot be restored can be booted cold.

use super::identity::Uuid;
use agent_client::{ContainerConfig, Rootfs};
use hypervisor::{AgentDevice, Backing, Disk, Memory, VmSpec};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The name of the virtio-serial port the agent listens on.
pub const AGENT_PORT_NAME: &str = "tardigrade.agent";
/// The words of the guest kernel's command line: the console, few words on it,
/// an end instead of a hang after a panic, freed memory zeroed (what a process
/// left behind is in no template, and zero pages cost none any space), and where
/// the agent listens.
pub const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 init_on_free=1 agent.server_addr=serial://tardigrade.agent";
/// The file system of root images.
const ROOT_FILE_SYSTEM: &str = "erofs";

/// A sandbox to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// CPUs of the guest.
    pub vcpus: u8,
    /// RAM of the guest in MiB.
    pub memory_mib: u32,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initrd, with the agent in it.
    pub initrd: PathBuf,
    /// Read-only images, in the order the guest sees them: the first is
    /// /dev/vda.
    pub disks: Vec<PathBuf>,
    /// Containers, in the order they are started.
    pub containers: Vec<ContainerPlan>,
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
}

/// The sockets and files of one sandbox's VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFiles {
    /// The chardev of the agent's serial port.
    pub serial: PathBuf,
    /// The guest kernel's console.
    pub console: PathBuf,
    /// The VMM's own control socket.
    pub monitor: PathBuf,
    /// What the VMM says on its standard error.
    pub log: PathBuf,
}

impl VmFiles {
    /// The files of a VM in the run directory of its sandbox, where
    /// [`crate::config::SandboxPaths`] has them.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self {
            serial: directory.join("serial.sock"),
            console: directory.join("console.sock"),
            monitor: directory.join("qmp.sock"),
            log: directory.join("vmm.log"),
        }
    }
}

impl SandboxSpec {
    /// The VM: for all sandboxes of this spec the same device for device, apart
    /// from its name, UUID, sockets and where its RAM lies.
    #[must_use]
    pub fn vm(&self, name: &str, uuid: Uuid, files: &VmFiles, backing: Backing) -> VmSpec {
        let disk = |(index, path): (usize, &PathBuf)| Disk {
            id: format!("disk{index}"),
            path: path.clone(),
            readonly: true,
        };
        VmSpec {
            name: name.to_owned(),
            uuid: uuid.to_string(),
            vcpus: self.vcpus,
            memory: Memory {
                size_mib: self.memory_mib,
                backing,
            },
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: COMMAND_LINE.to_owned(),
            disks: self.disks.iter().enumerate().map(disk).collect(),
            agent: AgentDevice::Serial {
                socket: files.serial.clone(),
                port_name: AGENT_PORT_NAME.to_owned(),
            },
            console: files.console.clone(),
            monitor: files.monitor.clone(),
            nics: Vec::new(),
            cpu_model: None,
            log: files.log.clone(),
        }
    }

    /// The node the guest gives the disk with this index: virtio block devices
    /// are named in the order of their slots, vda first. No VM has more than 26.
    #[must_use]
    pub fn guest_device(index: usize) -> Option<String> {
        let letter = u8::try_from(index).ok().filter(|index| *index < 26)?;
        Some(format!("/dev/vd{}", char::from(b'a' + letter)))
    }
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
        Some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            vcpus: 2,
            memory_mib: 128,
            kernel: "/k".into(),
            initrd: "/i".into(),
            disks: vec!["/a".into(), "/b".into()],
            containers: vec![ContainerPlan {
                id: "main".into(),
                disk: 1,
                args: vec!["/bin/true".into()],
                env: vec!["A=b".into()],
                cwd: "/srv".into(),
            }],
        }
    }

    #[test]
    fn the_agent_is_told_the_port_it_finds() {
        let words: Vec<_> = COMMAND_LINE.split(' ').collect();
        let address = format!("agent.server_addr=serial://{AGENT_PORT_NAME}");
        assert!(words.contains(&address.as_str()));
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
            assert_eq!(files.serial, paths.serial());
            assert_eq!(files.console, paths.console());
            assert_eq!(files.monitor, paths.monitor());
            assert_eq!(files.log, paths.vmm_log());
            let uuid = Uuid::draw().unwrap();
            spec().vm(&id.vm_name(), uuid, &files, Backing::Anonymous)
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
