//! Taking over a VM whose owner went away.

use crate::error::Error;
use crate::process::Process;
use crate::vm::{Deadlines, Vm, VmRecord};
use crate::{cloud_hypervisor, firecracker, qemu};

/// Takes over a VM, after checking that the process is the recorded one. The
/// VMM's program is not looked for, nor started: it may be another by now, or
/// gone.
///
/// # Errors
/// [`Error::Identity`] when it is gone or another one; [`Error::Monitor`] when
/// it does not answer, for instance because its owner still holds its control
/// socket; [`Error::Unsupported`] for a driver that is not one of ours. The
/// process is left alone in each case.
pub async fn adopt(record: &VmRecord, deadlines: Deadlines) -> Result<Box<dyn Vm>, Error> {
    let process = || Process::of_record(record);
    Ok(match record.driver.as_str() {
        qemu::DRIVER => Box::new(qemu::adopt(record, process()?, deadlines).await?),
        cloud_hypervisor::DRIVER => {
            Box::new(cloud_hypervisor::adopt(record, process()?, deadlines).await?)
        }
        firecracker::DRIVER => Box::new(firecracker::adopt(record, process()?, deadlines).await?),
        _ => return Err(Error::Unsupported("adopting another driver's vm")),
    })
}
