//! The Firecracker driver.
//!
//! Tried with 1.16.1. Firecracker runs on KVM only, boots uncompressed kernels
//! only (an ELF vmlinux, so without address space randomisation of the kernel),
//! and its agent device is a vsock of its own. What differs from QEMU:
//!
//! - A VM boots on anonymous RAM. A save writes all of it to the file `memory`
//!   next to `state`, and the VM may run on: the file is not its RAM. A restored
//!   VM maps the file privately, and can be saved again like any other.
//! - No file is named to Firecracker by its path, so that a saved state holds
//!   none: see `request`. What the jailer does with chroot and hard links is not
//!   used, as it closes all descriptors.
//! - The console is a task of whoever booted or restored the VM; it ends with
//!   that process, and the VM runs on without.
//! - Connections to the agent do not outlive a pause.
//! - The serial number a guest reads of a disk is Firecracker's, not the spec's.

mod arrival;
mod console;
mod floor;
mod launch;
mod probe;
mod request;
mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::process::Confinement;
use crate::rest::Request;
use crate::spec::{Backing, MemoryMode, Rebind, VmSpec};
use crate::vm::{Accelerator, AgentDevices, Capabilities, Deadlines, Hypervisor, Vm};
use launch::{Start, Started, agent_of, launch};
use vm::FirecrackerVm;

pub use probe::{Probe, Version, probe};
pub(crate) use vm::adopt;

/// The driver's name in records.
pub const DRIVER: &str = "firecracker";

/// The file of a saved state.
pub const STATE_FILE: &str = "state";

/// The file of a saved VM's RAM, next to the state.
pub const MEMORY_FILE: &str = "memory";

/// Firecracker on this host.
#[derive(Debug, Clone)]
pub struct Firecracker {
    program: PathBuf,
    version: Version,
    capabilities: Capabilities,
    deadlines: Deadlines,
    confinement: Confinement,
}

impl Firecracker {
    /// The driver for what a probe has found.
    #[must_use]
    pub fn new(probe: &Probe, deadlines: Deadlines) -> Self {
        Self {
            program: probe.program.clone(),
            version: probe.version,
            capabilities: Capabilities {
                vmm: DRIVER.to_owned(),
                version: probe.version_text.clone(),
                accelerator: Accelerator::Kvm,
                accelerator_reason: "firecracker has no other".to_owned(),
                machine: format!("pci, state format {}", probe.state_format),
                default_cpu_model: "host".to_owned(),
                private_memory_is_read_only: true,
                agent_devices: AgentDevices {
                    serial: false,
                    vsock: false,
                    hybrid_vsock: true,
                },
                boots_on_memory_file: false,
                saves_anonymous_memory: false,
                memory_modes: vec![MemoryMode::CopyOnWrite],
                console_outlives_owner: false,
                shared_directories: false,
            },
            deadlines,
            confinement: Confinement::default(),
        }
    }

    /// The same, whose VMs are confined. With a tap they keep our network
    /// namespace; one with a user of its own becomes the tap's owner.
    #[must_use]
    pub fn confined(self, confinement: Confinement) -> Self {
        Self {
            confinement,
            ..self
        }
    }

    /// Refuses what Firecracker has not, before there is a process.
    fn check(&self, spec: &VmSpec) -> Result<(), Error> {
        spec.validate()?;
        if spec.cpu_model.is_some() {
            return Err(Error::Unsupported("choosing a cpu model"));
        }
        if !spec.directories.is_empty() {
            return Err(Error::Unsupported(
                "a shared directory: it has no virtio-fs",
            ));
        }
        // All that is refused is refused by making the requests.
        let (_, agent) = agent_of(spec)?;
        request::boot(spec, agent).map(drop)
    }

    /// Sends requests to a Firecracker that has no guest yet.
    async fn ask_all(
        &self,
        verb: &'static str,
        started: &Started,
        requests: Vec<Request<'static>>,
        last: Duration,
    ) -> Result<(), Error> {
        let count = requests.len();
        for (request, number) in requests.into_iter().zip(1..) {
            let begun = crate::span::now();
            let name = format!("{} {}{}", request.method, request.path, request.id);
            let deadline = if number == count {
                last
            } else {
                self.deadlines.command
            };
            started.vmm.ask(verb, request, deadline).await?;
            started.timeline.since(name, begun);
        }
        Ok(())
    }
}

/// Refuses ways of getting RAM that Firecracker has not.
fn check_restored_memory(wanted: Option<MemoryMode>, backing: &Backing) -> Result<(), Error> {
    match wanted {
        None | Some(MemoryMode::CopyOnWrite) => {}
        Some(MemoryMode::Copy) => return Err(Error::Unsupported("copying a memory file")),
        Some(MemoryMode::OnDemand) => {
            return Err(Error::Unsupported(
                "loading ram on demand: it takes a process that handles page faults",
            ));
        }
    }
    match backing {
        Backing::FileBacked { shared: false, .. } => Ok(()),
        Backing::FileBacked { shared: true, .. } => {
            Err(Error::Unsupported("a shared mapping of a memory file"))
        }
        Backing::Anonymous => Err(Error::Unsupported("restoring without a memory file")),
    }
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, Error> {
        self.check(spec)?;
        if spec.memory.backing != Backing::Anonymous {
            return Err(Error::Unsupported("booting on a memory file"));
        }
        let requests = request::boot(spec, agent_of(spec)?.1)?;
        let started = launch(self, spec, Start::Boot).await?;
        self.ask_all("boot", &started, requests, self.deadlines.boot)
            .await?;
        Ok(Box::new(FirecrackerVm::new(
            started,
            spec,
            self.deadlines,
            false,
        )))
    }

    async fn restore(
        &self,
        state: &Path,
        spec: &VmSpec,
        rebind: &Rebind,
    ) -> Result<Box<dyn Vm>, Error> {
        let spec = spec.rebound(rebind)?;
        self.check(&spec)?;
        check_restored_memory(rebind.memory_mode, &spec.memory.backing)?;
        if self.version < probe::MOVES_VSOCK {
            return Err(Error::Unsupported(
                "restoring with a version before 1.16, which binds the saved vm's vsock socket",
            ));
        }
        let requests = request::restore(&spec, agent_of(&spec)?.1)?;
        let started = launch(self, &spec, Start::Restore(state)).await?;
        let asked = self.ask_all("restore", &started, requests, self.deadlines.load);
        asked
            .await
            .map_err(|error| vm::in_its_words("restore", error))?;
        Ok(Box::new(FirecrackerVm::new(
            started,
            &spec,
            self.deadlines,
            true,
        )))
    }
}
