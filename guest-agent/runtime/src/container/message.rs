//! What the agent and a child tell each other.

use super::error::Failure;
use super::rlimit::RlimitSpec;
use super::spec::{ContainerSpec, ProcessSpec};
use serde::{Deserialize, Serialize};

/// To the stage. Descriptors: the cgroup's directory and, to enter, the pidfd
/// of the container's init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageOrder {
    /// For the clone, which inherits it.
    pub(super) oom_score_adj: i32,
    /// What the clone will set, and may have to be allowed before.
    pub(super) rlimits: Vec<RlimitSpec>,
    /// Whether it will have orders for a security module.
    pub(super) is_held: bool,
    pub(super) place: Place,
}

/// Where the stage clones.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Place {
    /// Clone the init of a container in its namespaces.
    Create(Box<ContainerSpec>),
    /// Clone a process in all namespaces of an init, of which these kinds may
    /// be the agent's.
    Enter { users: bool, time: bool },
    /// Clone a process in the agent's own namespaces.
    Guest,
}

/// To the clone. Descriptors: its three streams, or none if it is to open a
/// terminal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum InitOrder {
    /// Set up the container of the stage's order, then wait for [`Go`].
    Create,
    /// Execute at once.
    Process(Box<ProcessSpec>),
}

/// To an init that waits: go on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Go;

/// From the stage and the clone.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The stage has cloned. Descriptor: the pidfd of the clone.
    Cloned { pid: i32 },
    /// All is mounted, and hooks are to be run: waits for [`Go`].
    Mounted,
    /// The clone is set up. Descriptor: the master of its terminal, if any.
    Ready,
    /// It has failed and ends.
    Failed(Failure),
    /// It executes its program now.
    Executing,
    /// The program cannot be executed.
    ExecFailed { errno: i32 },
}
