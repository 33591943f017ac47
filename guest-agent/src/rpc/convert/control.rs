//! A container's pause, limits and numbers.

use super::ConvertError;
use super::container::container_id;
use super::resources::resources;
use crate::service::control::{
    ContainerStats, PauseContainer, ResumeContainer, StatsContainer, UpdateContainer,
};
use guest_runtime::cgroup::{CgroupStats, CpuStats, IoStats, MemoryStats};
use guest_runtime::network::LinkCounters;
use protobuf::MessageField;
use protocols::wire::agent;

impl TryFrom<agent::PauseContainerRequest> for PauseContainer {
    type Error = ConvertError;

    fn try_from(request: agent::PauseContainerRequest) -> Result<Self, ConvertError> {
        let id = container_id(&request.container_id)?;
        Ok(Self { id })
    }
}

impl TryFrom<agent::ResumeContainerRequest> for ResumeContainer {
    type Error = ConvertError;

    fn try_from(request: agent::ResumeContainerRequest) -> Result<Self, ConvertError> {
        let id = container_id(&request.container_id)?;
        Ok(Self { id })
    }
}

impl TryFrom<agent::StatsContainerRequest> for StatsContainer {
    type Error = ConvertError;

    fn try_from(request: agent::StatsContainerRequest) -> Result<Self, ConvertError> {
        let id = container_id(&request.container_id)?;
        Ok(Self { id })
    }
}

impl TryFrom<agent::UpdateContainerRequest> for UpdateContainer {
    type Error = ConvertError;

    fn try_from(request: agent::UpdateContainerRequest) -> Result<Self, ConvertError> {
        Ok(Self {
            id: container_id(&request.container_id)?,
            // Its device rules are those of its creation: clients that send all
            // of a container's resources mean no others.
            resources: request.resources.into_option().map(resources).transpose()?,
        })
    }
}

pub(in crate::rpc) fn stats_to_wire(stats: ContainerStats) -> agent::StatsContainerResponse {
    let mut reply = agent::StatsContainerResponse::new();
    reply.cgroup_stats = MessageField::some(cgroup(stats.cgroup));
    reply.network_stats = stats.links.into_iter().map(link).collect();
    reply
}

fn cgroup(stats: CgroupStats) -> agent::CgroupStats {
    let mut out = agent::CgroupStats::new();
    out.cpu_stats = MessageField::some(cpu(&stats.cpu));
    out.memory_stats = MessageField::some(memory(stats.memory));
    let mut pids = agent::PidsStats::new();
    pids.current = stats.pids.current;
    pids.limit = stats.pids.limit;
    out.pids_stats = MessageField::some(pids);
    out.blkio_stats = MessageField::some(block_io(&stats.io));
    for (size, pages) in stats.hugetlb {
        let mut huge = agent::HugetlbStats::new();
        huge.usage = pages.usage;
        huge.failcnt = pages.limit_hits;
        out.hugetlb_stats.insert(size, huge);
    }
    out
}

fn cpu(stats: &CpuStats) -> agent::CpuStats {
    let mut usage = agent::CpuUsage::new();
    usage.total_usage = stats.total;
    usage.usage_in_usermode = stats.user;
    usage.usage_in_kernelmode = stats.system;
    let mut throttling = agent::ThrottlingData::new();
    throttling.periods = stats.periods;
    throttling.throttled_periods = stats.throttled_periods;
    throttling.throttled_time = stats.throttled;
    let mut out = agent::CpuStats::new();
    out.cpu_usage = MessageField::some(usage);
    out.throttling_data = MessageField::some(throttling);
    out
}

fn memory(stats: MemoryStats) -> agent::MemoryStats {
    let mut usage = agent::MemoryData::new();
    usage.usage = stats.usage;
    usage.max_usage = stats.peak;
    usage.failcnt = stats.limit_hits;
    usage.limit = stats.limit;
    // As in cgroup v1, which the message is of: memory and swap together.
    let mut swap = agent::MemoryData::new();
    swap.usage = stats.usage.saturating_add(stats.swap);
    swap.failcnt = stats.swap_limit_hits;
    swap.limit = stats.limit.saturating_add(stats.swap_limit);
    let mut kernel = agent::MemoryData::new();
    kernel.usage = stats.kernel;
    let mut out = agent::MemoryStats::new();
    out.cache = stats.cache;
    out.usage = MessageField::some(usage);
    out.swap_usage = MessageField::some(swap);
    out.kernel_usage = MessageField::some(kernel);
    out.use_hierarchy = true;
    out.stats = stats.details.into_iter().collect();
    out
}

/// Bytes and requests apart, by the operations' names of cgroup v1.
fn block_io(devices: &[IoStats]) -> agent::BlkioStats {
    let entry = |device: &IoStats, op: &str, value| {
        let mut entry = agent::BlkioStatsEntry::new();
        entry.major = device.major;
        entry.minor = device.minor;
        entry.op = op.into();
        entry.value = value;
        entry
    };
    let mut out = agent::BlkioStats::new();
    for device in devices {
        out.io_service_bytes_recursive.extend([
            entry(device, "Read", device.read_bytes),
            entry(device, "Write", device.written_bytes),
            entry(device, "Discard", device.discarded_bytes),
        ]);
        out.io_serviced_recursive.extend([
            entry(device, "Read", device.reads),
            entry(device, "Write", device.writes),
            entry(device, "Discard", device.discards),
        ]);
    }
    out
}

fn link(link: LinkCounters) -> agent::NetworkStats {
    let mut out = agent::NetworkStats::new();
    out.name = link.name;
    out.rx_bytes = link.received.bytes;
    out.rx_packets = link.received.packets;
    out.rx_errors = link.received.errors;
    out.rx_dropped = link.received.dropped;
    out.tx_bytes = link.sent.bytes;
    out.tx_packets = link.sent.packets;
    out.tx_errors = link.sent.errors;
    out.tx_dropped = link.sent.dropped;
    out
}
