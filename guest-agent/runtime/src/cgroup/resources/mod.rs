//! Limits of a container, from OCI's numbers (which are of cgroup v1) to the
//! files of cgroup v2.

mod io;
#[cfg(test)]
mod tests;

use super::CgroupError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use io::{DeviceNumbers, IoLimitKind, IoResources};

/// The limits of a container (OCI `config-linux.md`, "Control groups"); none
/// is the kernel's default, -1 is "no limit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory, in bytes.
    pub memory_limit: Option<i64>,
    /// Memory that is kept from reclaim while it can be, in bytes.
    pub memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes.
    pub memory_swap: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// The share of CPU time under contention, 2 to 262144, 1024 being the
    /// default.
    pub cpu_shares: Option<u64>,
    /// CPU time in a period, in microseconds.
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
    /// The CPUs that may be used, as a list, cpuset(7).
    pub cpuset_cpus: Option<String>,
    /// The memory nodes that may be used, as a list, cpuset(7).
    pub cpuset_mems: Option<String>,
    /// CPU time of earlier periods that may be used later, in microseconds.
    pub cpu_burst: Option<u64>,
    /// Whether it runs only when nobody else wants to.
    pub cpu_idle: Option<bool>,
    /// The use of disks.
    pub io: IoResources,
    /// Bytes of huge pages, by their size as hugetlb names it, `2MB`.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Handles and objects of RDMA devices, by their name.
    pub rdma: BTreeMap<String, RdmaLimit>,
    /// Files of the cgroup and what is written to them, after all else.
    pub unified: BTreeMap<String, String>,
}

/// What may be used of an RDMA device; none is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaLimit {
    /// Handles.
    pub handles: Option<u32>,
    /// Objects.
    pub objects: Option<u32>,
}

/// A file of cgroup v2 and what to write to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) limit: String,
    pub(super) controller: String,
    pub(super) file: String,
    pub(super) value: String,
    /// Where there is such a file, it is written instead.
    pub(super) rather: Option<(&'static str, String)>,
    /// Whether the file's first word stays, and the value comes after it.
    pub(super) keeps_first: bool,
}

impl Setting {
    fn new(
        limit: impl Into<String>,
        controller: impl Into<String>,
        file: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        Self {
            limit: limit.into(),
            controller: controller.into(),
            file: file.into(),
            value: value.into(),
            rather: None,
            keeps_first: false,
        }
    }

    /// Whether the kernel does so without the file: no limit is missed, and a
    /// machine without swap uses none.
    pub(super) fn is_given(&self) -> bool {
        self.value == "max" || (self.file == "memory.swap.max" && self.value == "0")
    }
}

impl Setting {
    /// What to write to have what `content`, the file's, said before. Where the
    /// file has a line a device, the device's: one that it has none for has no
    /// limit (Documentation/admin-guide/cgroup-v2.rst, "Format").
    pub(super) fn back_to(&self, content: &str) -> String {
        let without = match self.file.as_str() {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            "io.weight" | "io.bfq.weight" => "default",
            "rdma.max" => "hca_handle=max hca_object=max",
            // An empty list is a line; nothing at all would not be written.
            _ => return format!("{}\n", content.trim_end()),
        };
        let key = self.value.split(' ').next().unwrap_or_default();
        let mut lines = content.lines();
        lines
            .find(|line| line.split(' ').next() == Some(key))
            .map_or_else(|| format!("{key} {without}"), Into::into)
    }
}

/// CPU shares of cgroup v1 and weights of v2: 2..=262144 onto 1..=10000, the
/// field's formula.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

fn bytes_or_max(limit: &'static str, value: i64) -> Result<String, CgroupError> {
    match value {
        -1 => Ok("max".into()),
        0.. => Ok(value.to_string()),
        _ => Err(impossible(limit, value, "neither an amount nor -1")),
    }
}

fn impossible(limit: &'static str, value: i64, reason: &'static str) -> CgroupError {
    CgroupError::Value {
        limit,
        value: value.to_string(),
        reason,
    }
}

/// v2 limits swap by itself: what is over memory.
fn swap(total: i64, memory: Option<i64>) -> Result<String, CgroupError> {
    const LIMIT: &str = "memory.swap";
    match (total, memory) {
        (-1, _) => Ok("max".into()),
        (..-1, _) => Err(impossible(LIMIT, total, "neither an amount nor -1")),
        (_, None | Some(-1)) => Err(impossible(LIMIT, total, "memory itself has no limit")),
        (_, Some(memory)) if total < memory => {
            Err(impossible(LIMIT, total, "less than the limit of memory"))
        }
        (_, Some(memory)) => Ok((total - memory).to_string()),
    }
}

impl Resources {
    /// What to write, in this order.
    ///
    /// # Errors
    /// [`CgroupError::Value`] for a number that means nothing.
    pub(super) fn settings(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut settings = Vec::new();
        let mut set = |limit, controller, file, value: String| {
            settings.push(Setting::new(limit, controller, file, value));
        };
        if let Some(limit) = self.memory_limit {
            let value = bytes_or_max("memory.limit", limit)?;
            set("memory.limit", "memory", "memory.max", value);
        }
        if let Some(limit) = self.memory_reservation {
            let value = bytes_or_max("memory.reservation", limit)?;
            set("memory.reservation", "memory", "memory.low", value);
        }
        if let Some(total) = self.memory_swap {
            let value = swap(total, self.memory_limit)?;
            set("memory.swap", "memory", "memory.swap.max", value);
        }
        if let Some(limit) = self.pids_limit {
            let value = bytes_or_max("pids.limit", limit)?;
            set("pids.limit", "pids", "pids.max", value);
        }
        if let Some(shares) = self.cpu_shares {
            set(
                "cpu.shares",
                "cpu",
                "cpu.weight",
                weight(shares).to_string(),
            );
        }
        let quota = self.cpu_quota.map(|quota| bytes_or_max("cpu.quota", quota));
        match (quota.transpose()?, self.cpu_period) {
            (Some(quota), Some(period)) => {
                set("cpu.quota", "cpu", "cpu.max", format!("{quota} {period}"));
            }
            (Some(quota), None) => set("cpu.quota", "cpu", "cpu.max", quota),
            (None, Some(period)) => {
                let period = period.to_string();
                let mut setting = Setting::new("cpu.period", "cpu", "cpu.max", period);
                setting.keeps_first = true;
                settings.push(setting);
            }
            (None, None) => {}
        }
        let mut set = |limit, controller, file, value: String| {
            settings.push(Setting::new(limit, controller, file, value));
        };
        if let Some(list) = &self.cpuset_cpus {
            set("cpuset.cpus", "cpuset", "cpuset.cpus", list.clone());
        }
        if let Some(list) = &self.cpuset_mems {
            set("cpuset.mems", "cpuset", "cpuset.mems", list.clone());
        }
        if let Some(burst) = self.cpu_burst {
            set("cpu.burst", "cpu", "cpu.max.burst", burst.to_string());
        }
        if let Some(idle) = self.cpu_idle {
            set("cpu.idle", "cpu", "cpu.idle", u8::from(idle).to_string());
        }
        settings.extend(self.io.settings()?);
        for (size, limit) in &self.hugepage_limits {
            settings.extend(hugepages(size, *limit)?);
        }
        for (device, limit) in &self.rdma {
            settings.push(rdma(device, limit)?);
        }
        for (file, value) in &self.unified {
            settings.push(unified(file, value)?);
        }
        Ok(settings)
    }
}

/// What is used, and what is only reserved (`.rsvd`), which would otherwise
/// come to be used without a limit.
fn hugepages(size: &str, limit: u64) -> Result<[Setting; 2], CgroupError> {
    const LIMIT: &str = "hugepageLimits";
    let unit = size.trim_start_matches(|letter: char| letter.is_ascii_digit());
    if unit == size || !["KB", "MB", "GB"].contains(&unit) {
        return Err(CgroupError::Value {
            limit: LIMIT,
            value: size.into(),
            reason: "no size of a page",
        });
    }
    let file = |suffix| format!("hugetlb.{size}{suffix}");
    let setting = |file| Setting::new(LIMIT, "hugetlb", file, limit.to_string());
    Ok([setting(file(".max")), setting(file(".rsvd.max"))])
}

fn rdma(device: &str, limit: &RdmaLimit) -> Result<Setting, CgroupError> {
    if device.is_empty() || device.contains([' ', '\n', '\0']) {
        return Err(CgroupError::Value {
            limit: "rdma",
            value: device.into(),
            reason: "no name of a device",
        });
    }
    let text = |limit: Option<u32>| limit.map_or("max".into(), |limit| limit.to_string());
    let value = format!(
        "{device} hca_handle={} hca_object={}",
        text(limit.handles),
        text(limit.objects)
    );
    Ok(Setting::new("rdma", "rdma", "rdma.max", value))
}

/// A file of a controller; those of the hierarchy itself (`cgroup.*`) are the
/// agent's.
fn unified(file: &str, value: &str) -> Result<Setting, CgroupError> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    match file.split_once('.') {
        Some((controller, rest))
            if !["", "cgroup"].contains(&controller)
                && !rest.is_empty()
                && file.chars().all(plain) =>
        {
            Ok(Setting::new(
                format!("unified {file}"),
                controller,
                file,
                value,
            ))
        }
        _ => Err(CgroupError::Value {
            limit: "unified",
            value: file.into(),
            reason: "no file of a controller",
        }),
    }
}
