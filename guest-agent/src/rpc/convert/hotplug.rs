//! Processors, memory, swap, and the guest's packet filter.

use super::diagnostics::absolute;
use super::network::SLOT_MAX;
use super::{ConvertError, invalid};
use crate::service::hotplug::{AddSwap, AddSwapDevice, OnlineResources, ProbeMemory};
use crate::service::memory_agent::{SetMemoryCompaction, SetMemoryReclaim};
use crate::service::packet_filter::{GetPacketFilter, SetPacketFilter};
use guest_runtime::memory::{
    CompactionChange, CompactionSettings, OutOfRange, ReclaimChange, ReclaimSettings,
};
use protocols::wire::agent;

/// The most processors a kernel can be built for on x86.
const PROCESSORS_MAX: usize = 8192;

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
        let change = ReclaimChange {
            disabled: request.disabled,
            swap: request.swap,
            swappiness_max: request.swappiness_max.map(u64::from),
            period_secs: request.period_secs,
            period_psi_percent_limit: request.period_psi_percent_limit.map(u64::from),
            eviction_psi_percent_limit: request.eviction_psi_percent_limit.map(u64::from),
            eviction_run_aging_count_min: request.eviction_run_aging_count_min,
        };
        // What can be does not depend on what is.
        ReclaimSettings::default().change(&change)?;
        Ok(Self { change })
    }
}

impl TryFrom<agent::MemAgentCompactConfig> for SetMemoryCompaction {
    type Error = ConvertError;

    fn try_from(request: agent::MemAgentCompactConfig) -> Result<Self, ConvertError> {
        let change = CompactionChange {
            disabled: request.disabled,
            period_secs: request.period_secs,
            period_psi_percent_limit: request.period_psi_percent_limit.map(u64::from),
            compact_psi_percent_limit: request.compact_psi_percent_limit.map(u64::from),
            compact_sec_max: request.compact_sec_max,
            compact_order: request.compact_order.map(u64::from),
            compact_threshold: request.compact_threshold,
            compact_force_times: request.compact_force_times,
        };
        CompactionSettings::default().change(&change)?;
        Ok(Self { change })
    }
}

impl From<OutOfRange> for ConvertError {
    fn from(error: OutOfRange) -> Self {
        invalid(error.field, &error.value)(error.reason)
    }
}
