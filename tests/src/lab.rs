//! What the tests of the nested host share. They are in binaries called
//! `lab_*`, each in a module named after the VMM it needs (`qemu`,
//! `cloud_hypervisor`, `firecracker`), and run by `make test-lab` only.

use crate::machine::{self, Failure};
use hypervisor::{AgentDevice, VmSpec};
use protocols::{AgentAddress, Link, LinkError, port};
use std::path::Path;
use std::time::{Duration, Instant};

/// What the nested host leaves for everyone to see.
const MARK: &str = "/run/tardigrade-lab";
/// Between two calls to a guest that is not listening yet: vsock answers such a
/// call at once, and has no event for a port that opens in another machine.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes sure that this is the nested host.
///
/// # Panics
/// Elsewhere: a test of the lab that ran on a machine without KVM would show
/// nothing.
pub fn assert_nested_host() {
    assert!(
        Path::new(MARK).exists(),
        "this test runs in the nested host: make test-lab"
    );
}

/// [`machine::spec`] with the agent on vsock instead of a serial port.
#[must_use]
pub fn vsock_spec(directory: &Path, memory_mib: u32, rootfs: Option<&Path>, cid: u32) -> VmSpec {
    let mut spec = machine::spec(directory, memory_mib, rootfs);
    spec.agent = AgentDevice::Vsock { cid };
    spec.cmdline = format!(
        "console=ttyS0 quiet panic=-1 agent.server_addr=vsock://-1:{}",
        port::RPC
    );
    spec
}

/// Dials the agent at `address` until it listens.
///
/// # Errors
/// The last refusal, when the deadline has passed.
pub async fn dial(address: &AgentAddress, deadline: Duration) -> Result<Link, Failure> {
    let begun = Instant::now();
    loop {
        let left = deadline.saturating_sub(begun.elapsed());
        match Link::connect(address, left).await {
            Ok(link) => return Ok(link),
            // No driver in the guest yet (the call times out, or the VMM hangs
            // up), or no listener.
            Err(
                error @ (LinkError::Refused { .. }
                | LinkError::Connect { .. }
                | LinkError::Open { .. }),
            ) => {
                if begun.elapsed() + PAUSE > deadline {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
