//! Calls about the memory agent of a guest, which is there where the guest's
//! command line asks for it (`agent.mem_agent_enable`).

use std::time::Duration;

use protocols::wire::agent;

use crate::call::call;
use crate::client::AgentClient;
use crate::error::ClientError;

/// How memory is taken back from containers that do not use it; what is `None`
/// stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryReclaim {
    /// Whether it is left to the kernel.
    pub disabled: Option<bool>,
    /// Whether anonymous memory is swapped out.
    pub swap: Option<bool>,
    /// How readily it is, 0 to 200.
    pub swappiness_max: Option<u32>,
    /// How long a container is looked at, in seconds.
    pub period_secs: Option<u64>,
    /// Of so many hundredths of the period it may have waited for memory.
    pub period_psi_percent_limit: Option<u32>,
    /// The same while memory is taken from it.
    pub eviction_psi_percent_limit: Option<u32>,
    /// For how many periods it must not have waited.
    pub eviction_run_aging_count_min: Option<u64>,
}

/// How the guest's free memory is put together; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryCompaction {
    /// Whether it is left to the kernel.
    pub disabled: Option<bool>,
    /// How often it is looked at, in seconds.
    pub period_secs: Option<u64>,
    /// Of so many hundredths of the period the guest may have waited for memory.
    pub period_psi_percent_limit: Option<u32>,
    /// The same while memory is put together.
    pub compact_psi_percent_limit: Option<u32>,
    /// The longest it may take, in seconds.
    pub compact_sec_max: Option<i64>,
    /// Which pieces are too small: those below this order.
    pub compact_order: Option<u32>,
    /// By how many pages they have to have grown.
    pub compact_threshold: Option<u64>,
    /// After how many periods without one there is one all the same.
    pub compact_force_times: Option<u64>,
}

impl AgentClient {
    /// Changes how memory is taken back.
    ///
    /// # Errors
    /// Any [`ClientError`]: the agent refuses it where there is no memory agent,
    /// and where its kernel cannot.
    pub async fn set_memory_reclaim(
        &self,
        change: &MemoryReclaim,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::MemAgentMemcgConfig {
            disabled: change.disabled,
            swap: change.swap,
            swappiness_max: change.swappiness_max,
            period_secs: change.period_secs,
            period_psi_percent_limit: change.period_psi_percent_limit,
            eviction_psi_percent_limit: change.eviction_psi_percent_limit,
            eviction_run_aging_count_min: change.eviction_run_aging_count_min,
            ..Default::default()
        };
        call("MemAgentMemcgSet", deadline, |context| {
            self.agent.mem_agent_memcg_set(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Changes how memory is put together.
    ///
    /// # Errors
    /// As [`AgentClient::set_memory_reclaim`].
    pub async fn set_memory_compaction(
        &self,
        change: &MemoryCompaction,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::MemAgentCompactConfig {
            disabled: change.disabled,
            period_secs: change.period_secs,
            period_psi_percent_limit: change.period_psi_percent_limit,
            compact_psi_percent_limit: change.compact_psi_percent_limit,
            compact_sec_max: change.compact_sec_max,
            compact_order: change.compact_order,
            compact_threshold: change.compact_threshold,
            compact_force_times: change.compact_force_times,
            ..Default::default()
        };
        call("MemAgentCompactSet", deadline, |context| {
            self.agent.mem_agent_compact_set(context, &request)
        })
        .await?;
        Ok(())
    }
}
