//! The wire's limits to the runtime's. On the wire absent and 0 are the same;
//! -1 is "no limit".

use super::{ConvertError, invalid, refuse};
use guest_runtime::cgroup::{DeviceNumbers, IoLimitKind, IoResources};
use guest_runtime::container::Resources;
use protocols::wire::agent;

pub(super) fn resources(resources: agent::LinuxResources) -> Result<Resources, ConvertError> {
    let network = resources.Network.into_option().unwrap_or_default();
    let network = network.ClassID != 0 || !network.Priorities.is_empty();
    refuse(network, "resources.network")?;
    let memory = resources.Memory.into_option().unwrap_or_default();
    let cpu = resources.CPU.into_option().unwrap_or_default();
    let pids = resources.Pids.into_option().unwrap_or_default();
    refuse(memory.DisableOOMKiller, "resources.memory.disableOOMKiller")?;
    // cgroup v2 has neither; no limit is none.
    refuse(memory.Kernel > 0, "resources.memory.kernel")?;
    refuse(memory.KernelTCP > 0, "resources.memory.kernelTCP")?;
    refuse(memory.Swappiness != 0, "resources.memory.swappiness")?;
    refuse(
        cpu.RealtimePeriod != 0 || cpu.RealtimeRuntime != 0,
        "real-time scheduling of a cgroup",
    )?;
    let set = |value: i64| (value != 0).then_some(value);
    let pages = resources.HugepageLimits.into_iter();
    Ok(Resources {
        memory_limit: set(memory.Limit),
        memory_reservation: set(memory.Reservation),
        memory_swap: set(memory.Swap),
        pids_limit: set(pids.Limit),
        cpu_shares: (cpu.Shares != 0).then_some(cpu.Shares),
        cpu_quota: set(cpu.Quota),
        cpu_period: (cpu.Period != 0).then_some(cpu.Period),
        cpuset_cpus: (!cpu.Cpus.is_empty()).then_some(cpu.Cpus),
        cpuset_mems: (!cpu.Mems.is_empty()).then_some(cpu.Mems),
        io: io(&resources.BlockIO.into_option().unwrap_or_default())?,
        hugepage_limits: pages.map(|page| (page.Pagesize, page.Limit)).collect(),
        ..Resources::default()
    })
}

fn io(io: &agent::LinuxBlockIO) -> Result<IoResources, ConvertError> {
    const LEAF: &str = "resources.blockIO.leafWeight";
    refuse(io.LeafWeight != 0, LEAF)?;
    let mut device_weights = Vec::with_capacity(io.WeightDevice.len());
    for device in &io.WeightDevice {
        refuse(device.LeafWeight != 0, LEAF)?;
        if device.Weight != 0 {
            device_weights.push((numbers(device.Major, device.Minor)?, device.Weight));
        }
    }
    let mut limits = Vec::new();
    for (kind, devices) in [
        (IoLimitKind::ReadBytes, &io.ThrottleReadBpsDevice),
        (IoLimitKind::WriteBytes, &io.ThrottleWriteBpsDevice),
        (IoLimitKind::ReadOperations, &io.ThrottleReadIOPSDevice),
        (IoLimitKind::WriteOperations, &io.ThrottleWriteIOPSDevice),
    ] {
        for device in devices {
            limits.push((numbers(device.Major, device.Minor)?, kind, device.Rate));
        }
    }
    Ok(IoResources {
        weight: (io.Weight != 0).then_some(io.Weight),
        device_weights,
        limits,
    })
}

fn numbers(major: i64, minor: i64) -> Result<DeviceNumbers, ConvertError> {
    let number = |value: i64| {
        u32::try_from(value).map_err(invalid("resources.blockIO device", &value.to_string()))
    };
    Ok(DeviceNumbers {
        major: number(major)?,
        minor: number(minor)?,
    })
}
