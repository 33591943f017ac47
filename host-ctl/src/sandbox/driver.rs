//! Which VMM runs the sandboxes of this host. Finding out takes seconds (KVM is
//! believed only once it has run the kernel), so the answer is kept and looked
//! at again only where something it depends on has changed.

use crate::config::Paths;
use crate::host::{read_record, write_record};
use crate::store::Sha256;
use hypervisor::Error;
use hypervisor::qemu::{Deadlines, Probe, ProbeRequest, Qemu, probe};
use std::path::{Path, PathBuf};

/// The driver for guests with this kernel.
///
/// # Errors
/// When there is no VMM that can be used.
pub async fn driver(paths: &Paths, kernel: &Path, digest: &Sha256) -> Result<Qemu, Error> {
    let kept = kept_probe(paths, digest);
    let known = read_record::<Probe>(&kept).ok();
    let request = ProbeRequest {
        program: None,
        kernel: Some(kernel),
        kernel_digest: digest.as_str(),
    };
    let found = probe(&request, known.as_ref()).await?;
    if known.as_ref() != Some(&found) {
        // What could not be kept costs time the next time, nothing else.
        let _ = write_record(&kept, &found);
    }
    Ok(Qemu::new(&found, Deadlines::default()))
}

/// The driver a recorded VM is adopted with: any, for what differs between
/// kernels does not matter to a VM that runs.
///
/// # Errors
/// When there is no VMM that can be used.
pub async fn adopting_driver() -> Result<Qemu, Error> {
    let request = ProbeRequest {
        program: None,
        kernel: None,
        kernel_digest: "",
    };
    Ok(Qemu::new(
        &probe(&request, None).await?,
        Deadlines::default(),
    ))
}

fn kept_probe(paths: &Paths, kernel: &Sha256) -> PathBuf {
    paths.store.join(format!("probe-{kernel}.json"))
}
