//! From the name of a VMM to its driver on this host. Finding out what a VMM
//! can do takes up to seconds (KVM is believed only once it has run the
//! kernel), so the answer is kept and looked at again only where something it
//! depends on has changed.

use super::vmm::Vmm;
use crate::config::{ConfigError, Paths, first_vmm_user};
use crate::host::{read_record, write_shared_record};
use crate::store::Sha256;
use hypervisor::{
    Capabilities, Confinement, Deadlines, Error, Hypervisor, cloud_hypervisor, firecracker, qemu,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The range of users is none.
    #[error(transparent)]
    Users(#[from] ConfigError),
    /// It would be less confined than it should.
    #[error("a VMM as it should be; --insecure takes less")]
    Confinement(#[source] Error),
    /// The VMM is not there, or cannot be used.
    #[error("find {vmm}; ${} names its program", vmm.variable())]
    Vmm {
        /// Which.
        vmm: Vmm,
        /// What its probe said.
        #[source]
        source: Error,
    },
}

/// A guest's kernel: a VMM may have to show that it runs it.
#[derive(Debug, Clone, Copy)]
pub struct GuestKernel<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its digest.
    pub digest: &'a Sha256,
}

/// A VMM on this host.
pub struct Driver {
    /// What makes VMs.
    pub hypervisor: Box<dyn Hypervisor>,
    /// The VMM's program.
    pub program: PathBuf,
}

impl Driver {
    /// What the VMM can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.hypervisor.capabilities()
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Driver({})", self.program.display())
    }
}

/// The driver of a VMM for guests with this kernel, its VMs as confined as can
/// be unless that is not wanted. What was found out is kept below `paths`.
///
/// # Errors
/// When the VMM cannot be used, or not be confined.
pub async fn driver(
    paths: &Paths,
    vmm: Vmm,
    kernel: GuestKernel<'_>,
    insecure: bool,
) -> Result<Driver, DriverError> {
    let confinement = if insecure {
        Confinement::Insecure
    } else {
        strictest()?
    };
    let name = match vmm {
        // Its answer depends on the kernel.
        Vmm::Qemu => format!("probe-{}.json", kernel.digest),
        Vmm::CloudHypervisor | Vmm::Firecracker => format!("probe-{vmm}.json"),
    };
    let kept = Kept(paths.store.join(name));
    find(vmm, Some(kernel), &kept, confinement).await
}

/// Whether a program can be started as confined as a VMM is: tried on this one,
/// which is no VMM.
///
/// # Errors
/// What the kernel refuses.
pub async fn try_confinement(confinement: &Confinement) -> Result<(), Error> {
    let own = std::env::current_exe().map_err(|source| Error::Process {
        call: "readlink /proc/self/exe",
        source,
    })?;
    hypervisor::printed(&own, "--version", confinement)
        .await
        .map(drop)
}

/// The most that confines a VMM here.
///
/// # Errors
/// When a VMM would have less than it should.
pub fn strictest() -> Result<Confinement, DriverError> {
    Confinement::strictest(first_vmm_user()?).map_err(DriverError::Confinement)
}

/// The driver of a VMM as it is found now when it is confined like this, whatever
/// was kept.
///
/// # Errors
/// When the VMM cannot be used.
pub async fn fresh_driver(
    vmm: Vmm,
    kernel: Option<GuestKernel<'_>>,
    confinement: Confinement,
) -> Result<Driver, DriverError> {
    find(vmm, kernel, &Kept::nowhere(), confinement).await
}

async fn find(
    vmm: Vmm,
    kernel: Option<GuestKernel<'_>>,
    kept: &Kept,
    confinement: Confinement,
) -> Result<Driver, DriverError> {
    let found = match vmm {
        Vmm::Qemu => find_qemu(kernel, kept, confinement).await,
        Vmm::CloudHypervisor => find_cloud_hypervisor(kept, confinement).await,
        Vmm::Firecracker => find_firecracker(kept, confinement).await,
    };
    found.map_err(|source| DriverError::Vmm { vmm, source })
}

async fn find_qemu(
    kernel: Option<GuestKernel<'_>>,
    kept: &Kept,
    confinement: Confinement,
) -> Result<Driver, Error> {
    let request = qemu::ProbeRequest {
        program: None,
        kernel: kernel.map(|kernel| kernel.path),
        kernel_digest: kernel.map_or("", |kernel| kernel.digest.as_str()),
    };
    let known = kept.read();
    let found = qemu::probe(&request, known.as_ref(), &confinement).await?;
    kept.update(known.as_ref(), &found);
    Ok(Driver {
        hypervisor: Box::new(qemu::Qemu::new(&found, Deadlines::default()).confined(confinement)),
        program: found.program,
    })
}

async fn find_cloud_hypervisor(kept: &Kept, confinement: Confinement) -> Result<Driver, Error> {
    use cloud_hypervisor::{CloudHypervisor, probe};
    let known = kept.read();
    let found = probe(None, known.as_ref(), &confinement).await?;
    kept.update(known.as_ref(), &found);
    Ok(Driver {
        hypervisor: Box::new(
            CloudHypervisor::new(&found, Deadlines::default()).confined(confinement),
        ),
        program: found.program,
    })
}

async fn find_firecracker(kept: &Kept, confinement: Confinement) -> Result<Driver, Error> {
    use firecracker::{Firecracker, probe};
    let known = kept.read();
    let found = probe(None, known.as_ref(), &confinement).await?;
    kept.update(known.as_ref(), &found);
    Ok(Driver {
        hypervisor: Box::new(Firecracker::new(&found, Deadlines::default()).confined(confinement)),
        program: found.program,
    })
}

/// A probe's answer on disk.
struct Kept(PathBuf);

impl Kept {
    /// No answer, and none is kept.
    fn nowhere() -> Self {
        Self(PathBuf::new())
    }

    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        read_record(&self.0).ok()
    }

    fn update<T: Serialize + PartialEq>(&self, known: Option<&T>, found: &T) {
        if known != Some(found) && !self.0.as_os_str().is_empty() {
            // What could not be kept costs time the next time, nothing else.
            let _ = write_shared_record(&self.0, found);
        }
    }
}
