//! From the options of `run` and `template build` to a sandbox of files that
//! are there.

use super::CliError;
use super::arguments::{
    AgentLink, ContainerArguments, DirectoryArgument, GuestImage, MachineArguments, Network,
};
use super::text::escape;
use crate::sandbox::network::NetworkKind;
use crate::sandbox::spec::{ContainerPlan, DirectoryPlan, SandboxSpec, SeenDirectory};
use crate::sandbox::vmm::{Carrier, Vmm};
use rustix::thread::CapabilitySet;
use std::path::{Path, PathBuf};

/// The variables that name the guest's files when no option does.
pub(super) const KERNEL_VARIABLE: &str = "TARDIGRADE_KERNEL";
pub(super) const INITRD_VARIABLE: &str = "TARDIGRADE_INITRD";
/// The variable that names the VMM when no option does.
const VMM_VARIABLE: &str = "TARDIGRADE_VMM";

/// The VMM of sandboxes whose options name none.
pub(super) fn default_vmm() -> Result<Vmm, CliError> {
    let Some(named) = std::env::var_os(VMM_VARIABLE) else {
        return Ok(Vmm::Qemu);
    };
    let named = named.to_string_lossy();
    named.parse().map_err(|_| CliError::Missing {
        what: format!("{VMM_VARIABLE}={}: no such vmm", escape(&named)),
        hint: "set it to qemu, cloud-hypervisor or firecracker",
    })
}

/// What carries the agent's link with this VMM, as far as that is a choice.
fn carrier(vmm: Vmm, wish: Option<AgentLink>) -> Result<Carrier, CliError> {
    match (vmm, wish) {
        (Vmm::Qemu, Some(AgentLink::Vsock)) => Ok(Carrier::Vsock {
            privileged: protocols::vsock::dials_privileged(),
        }),
        (Vmm::Qemu, _) | (_, None | Some(AgentLink::Vsock)) => Ok(vmm.default_carrier()),
        (_, Some(AgentLink::Serial)) => Err(CliError::Missing {
            what: format!("{vmm} has no virtio-serial port"),
            hint: "leave --agent-link out",
        }),
    }
}

/// The network, if this process may make one.
fn network(wish: Network) -> Result<NetworkKind, CliError> {
    let Network::Tap = wish else {
        return Ok(NetworkKind::None);
    };
    let own = rustix::thread::capabilities(None);
    if own.is_ok_and(|own| own.effective.contains(CapabilitySet::NET_ADMIN)) {
        Ok(NetworkKind::Tap)
    } else {
        Err(CliError::Missing {
            what: "--network tap needs CAP_NET_ADMIN".to_owned(),
            hint: "run as root, or leave --network out",
        })
    }
}

impl GuestImage {
    /// The kernel's path, which need not exist.
    pub(super) fn kernel(&self) -> Option<PathBuf> {
        named(self.kernel.as_deref(), KERNEL_VARIABLE)
    }

    /// The initrd's path, which need not exist.
    pub(super) fn initrd(&self) -> Option<PathBuf> {
        named(self.initrd.as_deref(), INITRD_VARIABLE)
    }
}

impl MachineArguments {
    /// The sandbox, with a slot for the image where there is no container yet;
    /// every file of it exists.
    pub(super) fn spec(
        &self,
        container: Option<&ContainerArguments>,
    ) -> Result<SandboxSpec, CliError> {
        let missing = |what: &str, hint| CliError::Missing {
            what: format!("no {what}"),
            hint,
        };
        let kernel = self.guest.kernel();
        let initrd = self.guest.initrd();
        let kernel =
            kernel.ok_or_else(|| missing("kernel", "give --kernel or set TARDIGRADE_KERNEL"))?;
        let initrd =
            initrd.ok_or_else(|| missing("initrd", "give --initrd or set TARDIGRADE_INITRD"))?;
        let vmm = self.vmm.map_or_else(default_vmm, Ok)?;
        let image = container.map(|container| existing("root file system", &container.rootfs));
        Ok(SandboxSpec {
            vmm,
            carrier: carrier(vmm, self.agent_link)?,
            network: network(self.network)?,
            vcpus: self.cpus,
            memory_mib: self.memory,
            kernel: existing("kernel", &kernel)?,
            initrd: existing("initrd", &initrd)?,
            disks: vec![image.transpose()?],
            directories: Vec::new(),
            containers: container
                .map(ContainerArguments::plan)
                .into_iter()
                .collect(),
        })
    }
}

/// Has the containers of a sandbox see directories of this host, which must be
/// there.
pub(super) fn share(spec: &mut SandboxSpec, asked: &[DirectoryArgument]) -> Result<(), CliError> {
    if spec.vmm == Vmm::Firecracker && !asked.is_empty() {
        return Err(CliError::Missing {
            what: "firecracker has no virtio-fs".to_owned(),
            hint: "leave --directory out, or take another --vmm",
        });
    }
    for directory in asked {
        let readonly = directory.readonly;
        let index = spec.directories.len();
        spec.directories.push(DirectoryPlan {
            path: existing_directory(&directory.host)?,
            readonly,
        });
        for container in &mut spec.containers {
            container.directories.push(SeenDirectory {
                directory: index,
                at: directory.guest.clone(),
                readonly,
            });
        }
    }
    Ok(())
}

/// The absolute path of a directory.
fn existing_directory(path: &Path) -> Result<PathBuf, CliError> {
    let failed = |reason: String| CliError::File {
        what: "directory",
        path: path.to_owned(),
        reason,
    };
    let absolute = path
        .canonicalize()
        .map_err(|error| failed(error.to_string()))?;
    if absolute.is_dir() {
        Ok(absolute)
    } else {
        Err(failed("not a directory".into()))
    }
}

impl ContainerArguments {
    /// It, on the first disk.
    fn plan(&self) -> ContainerPlan {
        ContainerPlan {
            id: self.id.clone(),
            disk: 0,
            args: self.command.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            directories: Vec::new(),
        }
    }
}

/// The file an option names, else the one a variable does.
fn named(option: Option<&Path>, variable: &str) -> Option<PathBuf> {
    let from_environment = || std::env::var_os(variable).map(PathBuf::from);
    option.map(Path::to_owned).or_else(from_environment)
}

/// The absolute path of a regular file.
pub(super) fn existing(what: &'static str, path: &Path) -> Result<PathBuf, CliError> {
    let failed = |reason: String| CliError::File {
        what,
        path: path.to_owned(),
        reason,
    };
    let absolute = path
        .canonicalize()
        .map_err(|error| failed(error.to_string()))?;
    if absolute.is_file() {
        Ok(absolute)
    } else {
        Err(failed("not a regular file".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qemu_leaves_a_choice_of_the_agents_device() {
        let privileged = protocols::vsock::dials_privileged();
        let vsock = Some(AgentLink::Vsock);
        assert_eq!(carrier(Vmm::Qemu, None).unwrap(), Carrier::Serial);
        assert_eq!(
            carrier(Vmm::Qemu, vsock).unwrap(),
            Carrier::Vsock { privileged }
        );
        for vmm in [Vmm::CloudHypervisor, Vmm::Firecracker] {
            assert_eq!(carrier(vmm, None).unwrap(), Carrier::HybridVsock);
            assert_eq!(carrier(vmm, vsock).unwrap(), Carrier::HybridVsock);
            let error = carrier(vmm, Some(AgentLink::Serial)).unwrap_err();
            assert!(error.to_string().contains(vmm.name()), "{error}");
        }
    }
}
