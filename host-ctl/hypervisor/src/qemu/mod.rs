//! The QEMU driver.
//!
//! Tried with 7.2, which is the oldest that is supported. Emulation (TCG) is the
//! usual accelerator of an embedded host; KVM is used where a probe has shown
//! that it runs the very kernel.

mod command_line;
mod floor;
mod incoming;
mod launch;
mod line;
mod probe;
mod qmp;
mod ram;
mod vm;
mod vmm;

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::error::Error;
use crate::process::Confinement;
use crate::spec::{AgentDevice, Backing, MemoryMode, Rebind, VmSpec};
use crate::virtiofsd::Offer;
use crate::vm::{AgentDevices, Capabilities, Deadlines, Hypervisor, Vm};

pub use command_line::{Descriptors, HandedFiles, Platform, Start, arguments};
pub use floor::RestoreInput;
pub use probe::{AcceleratorProbe, Probe, ProbeRequest, Version, probe};
pub(crate) use vm::adopt;

/// The driver's name in records.
pub const DRIVER: &str = "qemu";

/// The file of a saved state, next to the memory file if there is one.
pub const STATE_FILE: &str = "state";

/// The file of RAM that was private until it was saved.
pub const MEMORY_FILE: &str = "memory";

/// QEMU on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    platform: Platform,
    capabilities: Capabilities,
    deadlines: Deadlines,
    confinement: Confinement,
}

impl Qemu {
    /// The driver for what a probe has found.
    #[must_use]
    pub fn new(probe: &Probe, deadlines: Deadlines) -> Self {
        let platform = probe.platform();
        Self {
            program: probe.program.clone(),
            capabilities: Capabilities {
                vmm: DRIVER.to_owned(),
                version: probe.version_text.clone(),
                accelerator: platform.accelerator,
                accelerator_reason: probe.accelerator.reason.clone(),
                machine: platform.machine(),
                default_cpu_model: platform.default_cpu_model().to_owned(),
                private_memory_is_read_only: platform.maps_read_only(),
                agent_devices: AgentDevices {
                    serial: true,
                    vsock: Path::new(launch::VSOCK_DEVICE).exists(),
                    hybrid_vsock: false,
                },
                boots_on_memory_file: true,
                saves_anonymous_memory: true,
                memory_modes: vec![MemoryMode::CopyOnWrite, MemoryMode::Copy],
                console_outlives_owner: true,
                shared_directories: true,
            },
            platform,
            deadlines,
            confinement: Confinement::default(),
        }
    }

    /// The same, whose VMs are confined.
    #[must_use]
    pub fn confined(self, confinement: Confinement) -> Self {
        Self {
            confinement,
            ..self
        }
    }

    /// What the bare measure of a restore needs to do the same one.
    #[must_use]
    pub fn restore_input(&self, state: &Path, spec: &VmSpec) -> RestoreInput {
        RestoreInput {
            program: self.program.clone(),
            platform: self.platform,
            state: state.to_owned(),
            spec: spec.clone(),
        }
    }

    fn check(&self, spec: &VmSpec) -> Result<(), Error> {
        spec.validate()?;
        if !self.capabilities.agent_devices.has(&spec.agent) {
            return Err(Error::Unsupported(match spec.agent {
                AgentDevice::Vsock { .. } => "vsock: the host has no /dev/vhost-vsock",
                _ => "a vsock device of the vmm's own",
            }));
        }
        Ok(())
    }
}

/// Refuses a mode that does not fit where the RAM lies: QEMU maps a memory
/// file, and reads what was saved within the state.
fn check_mode(wanted: Option<MemoryMode>, backing: &Backing) -> Result<(), Error> {
    let has = match backing {
        Backing::FileBacked { .. } => MemoryMode::CopyOnWrite,
        Backing::Anonymous => MemoryMode::Copy,
    };
    match wanted {
        Some(mode) if mode != has => Err(Error::Unsupported(match mode {
            MemoryMode::CopyOnWrite => "copy-on-write of ram without a memory file",
            MemoryMode::Copy => "copying a memory file",
            MemoryMode::OnDemand => "loading ram on demand",
        })),
        _ => Ok(()),
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, Error> {
        self.check(spec)?;
        if matches!(
            spec.memory.backing,
            Backing::FileBacked { shared: false, .. }
        ) {
            return Err(Error::Unsupported("booting on a private mapping of a file"));
        }
        let offer = Offer::of(spec, &self.confinement).await?;
        let started = launch::launch(self, spec, Start::Boot, &offer)?;
        Ok(Box::new(incoming::boot(self, spec, started).await?))
    }

    async fn restore(
        &self,
        state: &Path,
        spec: &VmSpec,
        rebind: &Rebind,
    ) -> Result<Box<dyn Vm>, Error> {
        let spec = spec.rebound(rebind)?;
        self.check(&spec)?;
        check_mode(rebind.memory_mode, &spec.memory.backing)?;
        if !spec.directories.is_empty() {
            // vhost-user-fs-pci of 7.2 does not migrate, and later ones were not
            // tried.
            return Err(Error::Unsupported("restoring a vm with a shared directory"));
        }
        let state = launch::open_state(state)?;
        let offer = Offer::of(&spec, &self.confinement).await?;
        let started = launch::launch(self, &spec, Start::Restore, &offer)?;
        Ok(Box::new(
            incoming::restore(self, &spec, state, started).await?,
        ))
    }
}
