//! Settings of a memory agent in the guest. There is none: what is asked for
//! is looked at, and refused by name.

use super::Agent;
use super::error::ServiceError;
use authz::Authorized;

/// Other settings for the reclaim of the workload's memory.
#[derive(Debug)]
pub(crate) struct SetMemoryReclaim;

/// Other settings for the compaction of the guest's memory.
#[derive(Debug)]
pub(crate) struct SetMemoryCompaction;

impl Agent {
    /// Refused, in the words of an agent whose memory agent is not enabled.
    #[expect(clippy::unused_self, reason = "it is called as every other request is")]
    pub(crate) fn set_memory_reclaim(
        &self,
        _request: Authorized<SetMemoryReclaim>,
    ) -> Result<(), ServiceError> {
        Err(ServiceError::MemoryAgentDisabled)
    }

    /// As [`Agent::set_memory_reclaim`].
    #[expect(clippy::unused_self, reason = "it is called as every other request is")]
    pub(crate) fn set_memory_compaction(
        &self,
        _request: Authorized<SetMemoryCompaction>,
    ) -> Result<(), ServiceError> {
        Err(ServiceError::MemoryAgentDisabled)
    }
}
