//! What the agent and a child tell each other.

use super::error::Failure;
use super::spec::{ContainerSpec, NamespaceKind, ProcessSpec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// To the stage. Descriptors: the cgroup's directory and, to enter, the pidfd
/// of the container's init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageOrder {
    /// For the clone, which inherits it.
    pub(super) oom_score_adj: i32,
    pub(super) place: Place,
}

/// Where the stage clones.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Place {
    /// Clone an init in new namespaces, after joining others.
    Create {
        new: Vec<NamespaceKind>,
        join: Vec<(NamespaceKind, PathBuf)>,
    },
    /// Clone a process in all namespaces of an init.
    Enter,
    /// Clone a process in the agent's own namespaces.
    Guest,
}

/// To the clone. Descriptors: its three streams, or none if it is to open a
/// terminal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum InitOrder {
    /// Set up a container, then wait for [`Go`].
    Create(Box<ContainerSpec>),
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
    /// The program cannot be executed.
    ExecFailed { errno: i32 },
}
