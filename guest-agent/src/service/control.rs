//! A container while it runs: paused, resumed, given other limits, counted.

use super::Agent;
use super::container::{Activity, Container};
use super::error::ServiceError;
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::ContainerId;
use guest_runtime::cgroup::{CgroupError, CgroupStats};
use guest_runtime::container::Resources;
use guest_runtime::network::{LinkCounters, link_counters};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long the processes of a container may take to stand still.
const PAUSE_DEADLINE: Duration = Duration::from_secs(10);

/// A container to pause.
#[derive(Debug)]
pub(crate) struct PauseContainer {
    pub(crate) id: ContainerId,
}

/// A container to resume.
#[derive(Debug)]
pub(crate) struct ResumeContainer {
    pub(crate) id: ContainerId,
}

/// Other limits for a container; none leaves all of them as they are.
#[derive(Debug)]
pub(crate) struct UpdateContainer {
    pub(crate) id: ContainerId,
    pub(crate) resources: Option<Resources>,
}

/// A question for what a container uses.
#[derive(Debug)]
pub(crate) struct StatsContainer {
    pub(crate) id: ContainerId,
}

/// What a container uses.
#[derive(Debug)]
pub(crate) struct ContainerStats {
    pub(crate) cgroup: CgroupStats,
    pub(crate) links: Vec<LinkCounters>,
}

impl Agent {
    /// Stops every process of a container, and returns when they stand still.
    /// One that does not in time runs on, as do the others.
    pub(crate) async fn pause_container(
        self: &Arc<Self>,
        request: Authorized<PauseContainer>,
    ) -> Result<(), ServiceError> {
        const CALL: &str = "pause container";
        self.lifecycle.require_running(CALL)?;
        let container = self.registry.get(&request.into_inner().id)?;
        let launcher = Arc::clone(self.launcher()?);
        let recipe = async move {
            container.begin_activity(CALL, Activity::Awake, Activity::Pausing)?;
            let workload = launcher.workload();
            let frozen = workload.freeze_container(&container.cgroup, PAUSE_DEADLINE);
            let frozen = frozen.await;
            let activity = if frozen.is_ok() {
                Activity::Paused
            } else {
                // The failure before is the one to tell.
                let _ = workload.unfreeze_container(&container.cgroup);
                Activity::Awake
            };
            container.set_activity(activity);
            frozen.map_err(failed("freeze the container's cgroup"))
        };
        self.recipes.run(recipe).await
    }

    /// Lets a paused container go on.
    pub(crate) async fn resume_container(
        self: &Arc<Self>,
        request: Authorized<ResumeContainer>,
    ) -> Result<(), ServiceError> {
        const CALL: &str = "resume container";
        self.lifecycle.require_running(CALL)?;
        let container = self.registry.get(&request.into_inner().id)?;
        let launcher = self.launcher()?;
        container.begin_activity(CALL, Activity::Paused, Activity::Awake)?;
        let resumed = launcher.workload().unfreeze_container(&container.cgroup);
        if resumed.is_err() {
            container.set_activity(Activity::Paused);
        }
        resumed.map_err(failed("unfreeze the container's cgroup"))
    }

    /// Changes the limits that are named; all of them or none.
    pub(crate) async fn update_container(
        self: &Arc<Self>,
        request: Authorized<UpdateContainer>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("update container")?;
        let request = request.into_inner();
        let container = self.registry.get(&request.id)?;
        let launcher = Arc::clone(self.launcher()?);
        let Some(wanted) = request.resources else {
            return Ok(());
        };
        let update = move || {
            // Held while the files are written, on this thread alone: two
            // updates of one container would mix.
            let mut limits = container
                .limits
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let wanted = with_memory_of(&limits, wanted);
            let workload = launcher.workload();
            workload.update_container(&container.cgroup, &wanted)?;
            limits.memory_limit = wanted.memory_limit.or(limits.memory_limit);
            limits.memory_swap = wanted.memory_swap.or(limits.memory_swap);
            Ok(())
        };
        let recipe = async move {
            let updated: Result<(), CgroupError> = blocking(update).await?;
            updated.map_err(failed("update the container's cgroup"))
        };
        self.recipes.run(recipe).await
    }

    /// Counts what a container uses. Of one that has ended there are no links.
    pub(crate) async fn container_stats(
        &self,
        request: Authorized<StatsContainer>,
    ) -> Result<ContainerStats, ServiceError> {
        let container = self.registry.get(&request.get().id)?;
        let count = move || {
            let cgroup = container.cgroup.stats()?;
            let init = &container.processes.init().process;
            let links = link_counters(init.pid()).unwrap_or_default();
            // Once it has ended the number may be another's.
            let links = if init.has_ended() { Vec::new() } else { links };
            Ok(ContainerStats { cgroup, links })
        };
        let counted: Result<_, CgroupError> = blocking(count).await?;
        counted.map_err(failed("read the container's cgroup"))
    }
}

/// Swap is limited together with memory: who changes one of the two means the
/// other to stay as it is.
fn with_memory_of(limits: &Resources, wanted: Resources) -> Resources {
    let changes_memory = wanted.memory_limit.is_some() || wanted.memory_swap.is_some();
    if !changes_memory {
        return wanted;
    }
    Resources {
        memory_limit: wanted.memory_limit.or(limits.memory_limit),
        memory_swap: wanted.memory_swap.or(limits.memory_swap),
        ..wanted
    }
}

fn failed(call: &'static str) -> impl FnOnce(CgroupError) -> ServiceError {
    move |source| ServiceError::System {
        call,
        source: io::Error::other(source),
    }
}

impl Container {
    /// Moves on from one activity to another, if the first is what it does.
    fn begin_activity(
        &self,
        call: &'static str,
        from: Activity,
        to: Activity,
    ) -> Result<(), ServiceError> {
        let ended = self.processes.init().process.has_ended();
        let mut state = self.state();
        if ended || state.removing || state.activity != from {
            let is = state.activity;
            let reason = match (ended, state.removing) {
                (true, _) => format!("container {} is stopped", self.id),
                (_, true) => format!("container {} is being removed", self.id),
                _ => format!("container {} is {is}", self.id),
            };
            return Err(ServiceError::WrongState { call, reason });
        }
        state.activity = to;
        Ok(())
    }

    fn set_activity(&self, activity: Activity) {
        self.state().activity = activity;
    }

    /// Refuses a call that a container standing still would hold up.
    pub(super) fn require_awake(&self, call: &'static str) -> Result<(), ServiceError> {
        match self.state().activity {
            Activity::Awake => Ok(()),
            activity => Err(ServiceError::WrongState {
                call,
                reason: format!("container {} is {activity}", self.id),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_of_memory_keeps_the_limit_of_swap_and_the_other_way_round() {
        let limits = Resources {
            memory_limit: Some(100),
            memory_swap: Some(150),
            ..Resources::default()
        };
        let more_memory = Resources {
            memory_limit: Some(120),
            ..Resources::default()
        };
        let merged = with_memory_of(&limits, more_memory);
        assert_eq!(
            (merged.memory_limit, merged.memory_swap),
            (Some(120), Some(150))
        );
        let more_swap = Resources {
            memory_swap: Some(-1),
            ..Resources::default()
        };
        let merged = with_memory_of(&limits, more_swap);
        assert_eq!(
            (merged.memory_limit, merged.memory_swap),
            (Some(100), Some(-1))
        );
        let neither = Resources {
            pids_limit: Some(5),
            ..Resources::default()
        };
        assert_eq!(with_memory_of(&limits, neither.clone()), neither);
    }
}
