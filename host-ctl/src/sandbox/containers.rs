//! The containers of a sandbox whose agent answers, started one after the other:
//! the end of a boot, and of a clone that was frozen with nothing in it.

use super::spec::ContainerPlan;
use crate::timeline::Timeline;
use agent_client::{AgentClient, ClientError};
use std::time::Duration;

/// The step from which on a container may run.
const START: &str = "start container";
/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// It is to start from a disk that no guest has.
    #[error("container {container}: there is no disk {disk}")]
    Disk {
        /// The container.
        container: String,
        /// The index of its disk.
        disk: usize,
    },
    /// The agent refused, failed or did not answer.
    #[error("{step} {container}")]
    Agent {
        /// The step.
        step: &'static str,
        /// The container.
        container: String,
        /// What the client said.
        #[source]
        source: ClientError,
    },
}

impl ContainerError {
    /// Whether the guest was not heard of: it says nothing of the container.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Agent { source, .. } => {
                source.is_dead() || matches!(source, ClientError::Deadline { .. })
            }
            Self::Disk { .. } => false,
        }
    }
}

impl ContainerError {
    /// Whether the container may run, or have run.
    pub(crate) fn was_starting(&self) -> bool {
        matches!(self, Self::Agent { step: START, .. })
    }
}

/// What a recipe calls the two steps of each container.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) create: &'static str,
    pub(super) start: &'static str,
}

/// Creates and starts containers, in order.
///
/// # Errors
/// The first that failed; those before it run.
pub(super) async fn start_containers(
    containers: &[ContainerPlan],
    client: &AgentClient,
    steps: Steps,
    timeline: &Timeline,
) -> Result<(), ContainerError> {
    for container in containers {
        let failed = |step| {
            move |source| ContainerError::Agent {
                step,
                container: container.id.clone(),
                source,
            }
        };
        let config = container.config().ok_or_else(|| ContainerError::Disk {
            container: container.id.clone(),
            disk: container.disk,
        })?;
        {
            let _span = timeline.step(steps.create);
            let created = client.create_container(&config, CALL_DEADLINE).await;
            created.map_err(failed("create container"))?;
        }
        let _span = timeline.step(steps.start);
        let started = client.start_container(&container.id, CALL_DEADLINE).await;
        started.map_err(failed(START))?;
    }
    Ok(())
}
