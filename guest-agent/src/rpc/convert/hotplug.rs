//! Processors, memory, swap, and the guest's packet filter.

use super::diagnostics::absolute;
use super::network::SLOT_MAX;
use super::{ConvertError, invalid};
use crate::service::hotplug::{AddSwap, AddSwapDevice, OnlineResources, ProbeMemory};
use crate::service::memory_agent::{SetMemoryCompaction, SetMemoryReclaim};
use crate::service::packet_filter::{GetPacketFilter, SetPacketFilter};
use protocols::wire::agent;

/// The most processors a kernel can be built for on x86.
const PROCESSORS_MAX: usize = 8192;
/// The largest value of /proc/sys/vm/swappiness.
const SWAPPINESS_MAX: u64 = 200;
/// The largest order of pages that the kernel keeps.
const ORDER_MAX: u64 = 10;
const PERCENT_MAX: u64 = 100;

impl TryFrom<agent::OnlineCPUMemRequest> for OnlineResources {
    type Error = ConvertError;

    fn try_from(request: agent::OnlineCPUMemRequest) -> Result<Self, ConvertError> {
        let processors = usize::try_from(request.nb_cpus)
            .ok()
            .filter(|processors| *processors <= PROCESSORS_MAX)
            .ok_or_else(|| invalid("nb_cpus", &request.nb_cpus.to_string())("too many"))?;
        Ok(Self {
            processors: (processors != 0).then_some(processors),
            memory: !request.cpu_only,
        })
    }
}

impl TryFrom<agent::MemHotplugByProbeRequest> for ProbeMemory {
    type Error = ConvertError;

    fn try_from(request: agent::MemHotplugByProbeRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            addresses: request.memHotplugProbeAddr,
        })
    }
}

impl TryFrom<agent::AddSwapRequest> for AddSwapDevice {
    type Error = ConvertError;

    fn try_from(request: agent::AddSwapRequest) -> Result<Self, ConvertError> {
        if request.PCIPath.is_empty() {
            return Err(ConvertError::Missing { field: "PCIPath" });
        }
        let slot = |slot: &u32| {
            let number = u8::try_from(*slot).ok().filter(|slot| *slot <= SLOT_MAX);
            number.ok_or_else(|| invalid("PCIPath", &slot.to_string())("no slot of a PCI bus"))
        };
        Ok(Self {
            slots: request.PCIPath.iter().map(slot).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<agent::AddSwapPathRequest> for AddSwap {
    type Error = ConvertError;

    fn try_from(request: agent::AddSwapPathRequest) -> Result<Self, ConvertError> {
        let path = absolute("path", request.path)?.into();
        Ok(Self { path })
    }
}

impl TryFrom<agent::GetIPTablesRequest> for GetPacketFilter {
    type Error = ConvertError;

    fn try_from(request: agent::GetIPTablesRequest) -> Result<Self, ConvertError> {
        let is_ipv6 = request.is_ipv6;
        Ok(Self { is_ipv6 })
    }
}

impl TryFrom<agent::SetIPTablesRequest> for SetPacketFilter {
    type Error = ConvertError;

    fn try_from(request: agent::SetIPTablesRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            is_ipv6: request.is_ipv6,
            rules: request.data,
        })
    }
}

impl TryFrom<agent::MemAgentMemcgConfig> for SetMemoryReclaim {
    type Error = ConvertError;

    fn try_from(request: agent::MemAgentMemcgConfig) -> Result<Self, ConvertError> {
        let limit = request.period_psi_percent_limit.map(u64::from);
        let eviction = request.eviction_psi_percent_limit.map(u64::from);
        let swappiness = request.swappiness_max.map(u64::from);
        at_most("swappiness_max", swappiness, SWAPPINESS_MAX)?;
        at_most("period_psi_percent_limit", limit, PERCENT_MAX)?;
        at_most("eviction_psi_percent_limit", eviction, PERCENT_MAX)?;
        not_zero("period_secs", request.period_secs)?;
        Ok(Self)
    }
}

impl TryFrom<agent::MemAgentCompactConfig> for SetMemoryCompaction {
    type Error = ConvertError;

    fn try_from(request: agent::MemAgentCompactConfig) -> Result<Self, ConvertError> {
        let limit = request.period_psi_percent_limit.map(u64::from);
        let compact = request.compact_psi_percent_limit.map(u64::from);
        let order = request.compact_order.map(u64::from);
        at_most("period_psi_percent_limit", limit, PERCENT_MAX)?;
        at_most("compact_psi_percent_limit", compact, PERCENT_MAX)?;
        at_most("compact_order", order, ORDER_MAX)?;
        not_zero("period_secs", request.period_secs)?;
        if let Some(seconds) = request.compact_sec_max.filter(|seconds| *seconds <= 0) {
            return Err(invalid("compact_sec_max", &seconds.to_string())("no time"));
        }
        Ok(Self)
    }
}

fn at_most(field: &'static str, value: Option<u64>, limit: u64) -> Result<(), ConvertError> {
    match value {
        Some(value) if value > limit => Err(invalid(field, &value.to_string())(format!(
            "more than {limit}"
        ))),
        _ => Ok(()),
    }
}

fn not_zero(field: &'static str, value: Option<u64>) -> Result<(), ConvertError> {
    match value {
        Some(0) => Err(invalid(field, "0")("no time")),
        _ => Ok(()),
    }
}
