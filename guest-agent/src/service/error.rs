//! Why a request failed, in the words that existing clients match on.

use guest_runtime::container::{CreateError, ExecError, GuestHooksError, HookError, StartError};
use guest_runtime::hotplug::HotplugError;
use guest_runtime::network::NetworkError;
use guest_runtime::shared_files::SharedFileError;
use guest_runtime::storage::StorageError;
use guest_runtime::{ContainerId, ExecId};
use std::error::Error;
use std::io;
use std::time::Duration;

/// A failed request; `rpc::status` picks its ttrpc code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("Invalid container id: no container {0}")]
    UnknownContainer(ContainerId),
    #[error("process not found: no process {exec} in container {container}")]
    UnknownProcess {
        container: ContainerId,
        exec: String,
    },
    #[error("{0} already exists")]
    AlreadyExists(String),
    #[error("{call}: {reason}")]
    WrongState { call: &'static str, reason: String },
    #[error("release: a correction of the clock by {nanos} ns exceeds {limit:?}")]
    Correction { nanos: i64, limit: Duration },
    #[error("{call} changes the machine and is refused outside a VM")]
    OutsideGuest { call: &'static str },
    #[error("create container {container}")]
    Create {
        container: ContainerId,
        source: CreateError,
    },
    #[error("start container {container}")]
    Start {
        container: ContainerId,
        source: StartError,
    },
    #[error("exec {exec}")]
    Exec { exec: ExecId, source: ExecError },
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    GuestHooks(#[from] GuestHooksError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    SharedFile(#[from] SharedFileError),
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
    #[error("the guest has no {programs}")]
    NoProgram { programs: String },
    #[error("{program} failed with status {status}: {said}")]
    Program {
        program: &'static str,
        status: i32,
        said: String,
    },
    #[error("too many questions are being answered")]
    TooManyQuestions,
    #[error("mem-agent is disabled")]
    MemoryAgentDisabled,
    #[error("mem-agent: {reason}")]
    MemoryAgentUnavailable { reason: String },
    #[error("{call}")]
    System {
        call: &'static str,
        source: io::Error,
    },
    #[error("no {what}")]
    Unavailable { what: &'static str },
    #[error("the recipe panicked")]
    RecipePanicked,
    #[error("{call}: deadline exceeded")]
    Deadline { call: &'static str },
}

impl ServiceError {
    /// For `map_err` on a system call.
    pub(crate) fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}

/// The error and its causes on one line: no backtrace, no debug form.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
