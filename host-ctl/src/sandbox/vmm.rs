//! Which VMM runs a sandbox, and which device carries the link to its agent.

use hypervisor::MemoryMode;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A VMM that sandboxes can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// QEMU; the only one that needs no KVM.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
}

/// Text that names no [`Vmm`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected qemu, cloud-hypervisor or firecracker")]
pub struct UnknownVmm;

/// The device that carries the link to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Carrier {
    /// A virtio-serial port, reached by a socket of the run directory.
    Serial,
    /// The host kernel's vsock, which every process of the host can dial.
    Vsock {
        /// Whether the agent takes none but the host's privileged processes.
        privileged: bool,
    },
    /// A vsock of the VMM's own, reached by a socket of the run directory.
    HybridVsock,
}

impl Vmm {
    /// All there are.
    pub const ALL: [Vmm; 3] = [Vmm::Qemu, Vmm::CloudHypervisor, Vmm::Firecracker];

    /// Its name, which is its driver's too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Vmm::Qemu => "qemu",
            Vmm::CloudHypervisor => "cloud-hypervisor",
            Vmm::Firecracker => "firecracker",
        }
    }

    /// The variable that names its program, where that is not found on PATH by
    /// its own name.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Vmm::Qemu => "QEMU",
            Vmm::CloudHypervisor => "CLOUD_HYPERVISOR",
            Vmm::Firecracker => "FIRECRACKER",
        }
    }

    /// How the agent is reached unless something else is asked for.
    #[must_use]
    pub fn default_carrier(self) -> Carrier {
        match self {
            Vmm::Qemu => Carrier::Serial,
            Vmm::CloudHypervisor | Vmm::Firecracker => Carrier::HybridVsock,
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Vmm {
    type Err = UnknownVmm;

    fn from_str(text: &str) -> Result<Self, UnknownVmm> {
        let all = Self::ALL.into_iter();
        all.into_iter()
            .find(|vmm| vmm.name() == text)
            .ok_or(UnknownVmm)
    }
}

/// The word for a way of RAM into a clone, as `clone --memory` takes it.
#[must_use]
pub fn memory_mode_name(mode: MemoryMode) -> &'static str {
    match mode {
        MemoryMode::CopyOnWrite => "cow",
        MemoryMode::Copy => "copy",
        MemoryMode::OnDemand => "on-demand",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_reads_back_as_written_and_is_saved_by_its_name() {
        for vmm in Vmm::ALL {
            assert_eq!(vmm.to_string().parse(), Ok(vmm));
            let text = serde_json::to_string(&vmm).unwrap();
            assert_eq!(text, format!("\"{vmm}\""));
        }
        assert_eq!("xen".parse::<Vmm>(), Err(UnknownVmm));
    }
}
