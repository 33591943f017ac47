//! The Cloud Hypervisor driver.
//!
//! Tried with 53, which is the oldest that is supported: it takes its control
//! socket as a descriptor, maps a memory zone privately from a file opened
//! read-only, and gives the console's socket one client after another. It runs
//! guests with KVM and in no other way.
//!
//! A saved state is `state`, and where the RAM does not lie in a shared file,
//! `memory-ranges` next to it; or `memory`, where it was mapped from a file and is
//! to be mapped from this one. What the VMM writes is laid out as the memory file
//! of a VM is: its zones in their order. The VMM's own account of its configuration is
//! thrown away: a restored VM gets one made from its spec, so that no path that
//! was stored with a state is ever used.
//!
//! Beside its control socket a VM has a directory, `<socket>.files`, in which
//! the VMM finds and leaves what is between it and the driver. It vanishes with
//! [`crate::Vm::kill`] and [`crate::Vm::shutdown`].
//!
//! Where the kernel can (Landlock), the VMM keeps itself to the files of its VM.
//! Among them is the whole directory of the agent's socket, in which it may make
//! and remove files: whoever keeps records elsewhere keeps them from it. One with
//! a user of its own gets at nothing else to begin with ([`view`]).
//!
//! A guest that resets is over: the VMM has no such option, but finds no kernel
//! to start again and ends with status 1.
//!
//! A directory's virtiofsd is connected to by a socket that lies among the VM's
//! files while it is made. Its RAM is shared with that, and saved with the state:
//! neither a private mapping of a memory file nor pages that come on demand go
//! along with it. Passed-through devices and other things that a state could not
//! be saved with are in no spec, so that no VM has them.

mod config;
mod files;
mod floor;
mod launch;
mod making;
mod probe;
mod view;
mod vm;
mod vmm;

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use self::files::Files;
use self::view::files_seen;
use crate::error::Error;
use crate::process::Confinement;
use crate::spec::{AgentDevice, Backing, MemoryMode, NicBackend, Rebind, VmSpec};
use crate::vm::{Accelerator, AgentDevices, Capabilities, Deadlines, Hypervisor, Vm};

pub use probe::{Probe, Version, probe};
pub(crate) use vm::adopt;

/// The driver's name in records.
pub const DRIVER: &str = "cloud-hypervisor";

/// The file of a saved state with all but the RAM.
pub const STATE_FILE: &str = "state";

/// The file of a saved state with the RAM of a VM that had it in no file.
pub const MEMORY_FILE: &str = "memory-ranges";

/// The file of RAM that was mapped privately from another: the clones of a
/// clone map it.
pub const MAPPED_MEMORY_FILE: &str = "memory";

/// The CPU model that there is: the host's, less what KVM can't give.
const CPU_MODEL: &str = "host";

/// The longest path of a socket that the VMM binds or connects to: `sun_path`
/// has 108 bytes, the last of which is zero (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// Cloud Hypervisor on this host.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    program: PathBuf,
    confines_files: bool,
    capabilities: Capabilities,
    deadlines: Deadlines,
    confinement: Confinement,
}

impl CloudHypervisor {
    /// The driver for what a probe has found.
    #[must_use]
    pub fn new(probe: &Probe, deadlines: Deadlines) -> Self {
        let mut memory_modes = vec![MemoryMode::CopyOnWrite, MemoryMode::Copy];
        if probe.loads_on_demand {
            memory_modes.push(MemoryMode::OnDemand);
        }
        Self {
            program: probe.program.clone(),
            confines_files: probe.confines_files,
            capabilities: Capabilities {
                vmm: DRIVER.to_owned(),
                version: probe.version_text.clone(),
                accelerator: Accelerator::Kvm,
                accelerator_reason: "cloud hypervisor has no other, and has opened /dev/kvm"
                    .to_owned(),
                // It has one machine of its own, which has no version: a state
                // loads into the version that wrote it.
                machine: format!("{DRIVER}-{}", probe.version),
                default_cpu_model: CPU_MODEL.to_owned(),
                private_memory_is_read_only: true,
                agent_devices: AgentDevices {
                    serial: false,
                    vsock: false,
                    hybrid_vsock: true,
                },
                boots_on_memory_file: true,
                saves_anonymous_memory: true,
                memory_modes,
                console_outlives_owner: true,
                shared_directories: true,
            },
            deadlines,
            confinement: Confinement::default(),
        }
    }

    /// The same, whose VMs are confined. One with a user of its own has no
    /// /dev/userfaultfd, and so loads no RAM on demand.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        if confinement.user().is_some() {
            let modes = &mut self.capabilities.memory_modes;
            modes.retain(|mode| *mode != MemoryMode::OnDemand);
        }
        Self {
            confinement,
            ..self
        }
    }

    fn check(&self, spec: &VmSpec) -> Result<(), Error> {
        spec.validate()?;
        if !self.capabilities.agent_devices.has(&spec.agent) {
            return Err(Error::Unsupported(match spec.agent {
                AgentDevice::Vsock { .. } => "the host kernel's vsock",
                _ => "a virtio-serial port",
            }));
        }
        if spec.cpu_model.as_deref().unwrap_or(CPU_MODEL) != CPU_MODEL {
            return Err(Error::Unsupported("a cpu model other than the host's"));
        }
        for nic in &spec.nics {
            match nic.backend {
                NicBackend::Tap { .. } => {}
                NicBackend::User => return Err(Error::Unsupported("a user-mode network")),
                // It would make a tap device of its own.
                NicBackend::None => {
                    return Err(Error::Unsupported(
                        "a network interface that is connected to nothing",
                    ));
                }
            }
        }
        let console = ("console", spec.console.as_path());
        let agent = match &spec.agent {
            AgentDevice::HybridVsock { socket, .. } => Some(("agent.socket", socket.as_path())),
            _ => None,
        };
        let mut bound = std::iter::once(console).chain(agent);
        bound.try_for_each(|(field, path)| fits_a_socket(field, path))?;
        // That of a directory it connects to, as it sees it.
        let files = files_seen(self.confinement.noted(), &Files::of(&spec.monitor));
        let last = spec.directories.len().checked_sub(1);
        let last = last.map(|last| files.directory_socket(last));
        last.map_or(Ok(()), |last| fits_a_socket("monitor", &last))
    }

    /// How the RAM gets into a restored VM. A memory file is mapped, and what
    /// was saved with the state is read: another mode would be one the VMM does
    /// not look at.
    fn memory_mode(
        &self,
        wanted: Option<MemoryMode>,
        backing: &Backing,
    ) -> Result<MemoryMode, Error> {
        let is_mapped = matches!(backing, Backing::FileBacked { .. });
        let mode = match (wanted, is_mapped) {
            (None, true) => MemoryMode::CopyOnWrite,
            (None, false) => MemoryMode::Copy,
            (Some(mode), _) => mode,
        };
        let reason = match (mode, is_mapped) {
            (MemoryMode::CopyOnWrite, false) => "copy-on-write of ram without a memory file",
            (MemoryMode::Copy, true) => "copying a memory file",
            (MemoryMode::OnDemand, true) => "loading a memory file on demand",
            (mode, _) if self.capabilities.memory_modes.contains(&mode) => return Ok(mode),
            _ => "loading ram on demand: the vmm has no /dev/userfaultfd",
        };
        Err(Error::Unsupported(reason))
    }
}

/// Refuses a path that is too long for a socket of the VMM's.
fn fits_a_socket(field: &'static str, path: &Path) -> Result<(), Error> {
    let length = path.as_os_str().len();
    if length <= LONGEST_SOCKET {
        return Ok(());
    }
    Err(Error::Spec {
        field,
        reason: format!("{length} bytes, a unix socket's path has at most {LONGEST_SOCKET}"),
    })
}

#[async_trait]
impl Hypervisor for CloudHypervisor {
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
        Ok(Box::new(making::boot(self, spec).await?))
    }

    async fn restore(
        &self,
        state: &Path,
        spec: &VmSpec,
        rebind: &Rebind,
    ) -> Result<Box<dyn Vm>, Error> {
        let spec = spec.rebound(rebind)?;
        self.check(&spec)?;
        let mode = self.memory_mode(rebind.memory_mode, &spec.memory.backing)?;
        Ok(Box::new(making::restore(self, &spec, state, mode).await?))
    }
}
