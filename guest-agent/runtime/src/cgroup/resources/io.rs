//! Limits of the use of disks, from OCI's blkio to cgroup v2's io controller.

use super::{CgroupError, Setting};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A block device by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumbers {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What of a device is limited, a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IoLimitKind {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reads.
    ReadOperations,
    /// Writes.
    WriteOperations,
}

/// The use of disks (OCI `config-linux.md`, "Block IO").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoResources {
    /// The share under contention, 10 to 1000.
    pub weight: Option<u32>,
    /// The same, of single devices.
    pub device_weights: Vec<(DeviceNumbers, u32)>,
    /// What may be used of single devices, each kind at most once a device; 0
    /// is no limit, as in cgroup v1.
    pub limits: Vec<(DeviceNumbers, IoLimitKind, u64)>,
}

impl fmt::Display for DeviceNumbers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

impl IoLimitKind {
    fn key(self) -> &'static str {
        match self {
            Self::ReadBytes => "rbps",
            Self::WriteBytes => "wbps",
            Self::ReadOperations => "riops",
            Self::WriteOperations => "wiops",
        }
    }
}

/// The weights of cgroup v1's blkio, onto 1..=10000 of v2's io.weight, the
/// field's formula.
pub(super) fn weight(weight: u32) -> Result<u32, CgroupError> {
    match weight {
        10..=1000 => Ok(1 + (weight - 10) * 9999 / 990),
        _ => Err(CgroupError::Value {
            limit: "blockIO.weight",
            value: weight.to_string(),
            reason: "not between 10 and 1000",
        }),
    }
}

impl IoResources {
    pub(super) fn settings(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut settings = Vec::new();
        let mut weigh = |device: &str, value: u32| -> Result<(), CgroupError> {
            let mut setting = Setting::new(
                "blockIO.weight",
                "io",
                "io.weight",
                format!("{device}{}", weight(value)?),
            );
            // That scheduler keeps to the numbers of v1.
            setting.rather = Some(("io.bfq.weight", format!("{device}{value}")));
            settings.push(setting);
            Ok(())
        };
        if let Some(weight) = self.weight {
            weigh("default ", weight)?;
        }
        for (device, weight) in &self.device_weights {
            weigh(&format!("{device} "), *weight)?;
        }
        let mut of_device: BTreeMap<DeviceNumbers, BTreeMap<IoLimitKind, u64>> = BTreeMap::new();
        for (device, kind, rate) in &self.limits {
            let earlier = of_device.entry(*device).or_default().insert(*kind, *rate);
            if earlier.is_some() {
                return Err(CgroupError::Value {
                    limit: "blockIO.throttle",
                    value: device.to_string(),
                    reason: "limited twice",
                });
            }
        }
        for (device, limits) in of_device {
            let mut value = device.to_string();
            for (kind, rate) in limits {
                let rate = match rate {
                    0 => "max".into(),
                    rate => rate.to_string(),
                };
                value.push_str(&format!(" {}={rate}", kind.key()));
            }
            settings.push(Setting::new("blockIO.throttle", "io", "io.max", value));
        }
        Ok(settings)
    }
}
