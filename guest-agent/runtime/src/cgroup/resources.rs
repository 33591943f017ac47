//! Limits of a container, from OCI's numbers (which are of cgroup v1) to the
//! files of cgroup v2.

use super::CgroupError;
use serde::{Deserialize, Serialize};

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
}

/// A file of cgroup v2 and what to write to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) limit: &'static str,
    pub(super) controller: &'static str,
    pub(super) file: &'static str,
    pub(super) value: String,
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
        let mut set = |limit, controller, file, value| {
            settings.push(Setting {
                limit,
                controller,
                file,
                value,
            });
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
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            let quota = bytes_or_max("cpu.quota", self.cpu_quota.unwrap_or(-1))?;
            let value = match self.cpu_period {
                Some(period) => format!("{quota} {period}"),
                None => quota,
            };
            set("cpu.quota", "cpu", "cpu.max", value);
        }
        if let Some(list) = &self.cpuset_cpus {
            set("cpuset.cpus", "cpuset", "cpuset.cpus", list.clone());
        }
        if let Some(list) = &self.cpuset_mems {
            set("cpuset.mems", "cpuset", "cpuset.mems", list.clone());
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(resources: &Resources) -> Vec<(&'static str, String)> {
        let settings = resources.settings().unwrap();
        settings
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    #[test]
    fn a_pids_limit_is_set_when_it_is_there_and_only_then() {
        assert!(written(&Resources::default()).is_empty());
        let resources = Resources {
            pids_limit: Some(20),
            ..Resources::default()
        };
        assert_eq!(written(&resources), [("pids.max", "20".into())]);
    }

    #[test]
    fn swap_is_what_is_over_memory() {
        let resources = Resources {
            memory_limit: Some(100),
            memory_swap: Some(150),
            ..Resources::default()
        };
        assert_eq!(
            written(&resources),
            [
                ("memory.max", "100".into()),
                ("memory.swap.max", "50".into())
            ]
        );
        let alone = Resources {
            memory_swap: Some(150),
            ..Resources::default()
        };
        assert!(alone.settings().is_err());
    }

    #[test]
    fn minus_one_takes_a_limit_away_and_minus_two_is_refused() {
        let resources = |value| Resources {
            cpu_quota: Some(value),
            cpu_period: Some(100_000),
            ..Resources::default()
        };
        assert_eq!(written(&resources(-1)), [("cpu.max", "max 100000".into())]);
        assert!(resources(-2).settings().is_err());
    }

    proptest! {
        #[test]
        fn every_share_has_a_weight_the_kernel_takes(shares: u64) {
            prop_assert!((1..=10_000).contains(&weight(shares)));
        }

        #[test]
        fn no_number_makes_the_conversion_panic(limit: i64, total: i64, period: u64) {
            let resources = Resources {
                memory_limit: Some(limit),
                memory_swap: Some(total),
                cpu_quota: Some(total),
                cpu_period: Some(period),
                ..Resources::default()
            };
            let _ = resources.settings();
        }
    }
}
